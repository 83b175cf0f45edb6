//! What goes over the wire, and what becomes of it.
use super::*;

#[tokio::test]
async fn takes_a_tree_with_its_metadata() {
    let mut dir = Versions::new();
    let mut tree = sample().add("s", go_mode::SETUID | go_mode::STICKY | 0o4, b"s").add("f", go_mode::NAMED_PIPE | 0o600, b"");
    tree.0.get_mut("a/x").unwrap().0.xattrs.insert("user.k".into(), "v".into());
    tree.0.get_mut("a/x").unwrap().0.xattrs.insert("trusted.overlay.opaque".into(), "y".into());
    let (changed, mut requested) = dir.sync(&tree, plain()).await;
    requested.sort();
    assert!(changed);
    assert_eq!(requested, ["a.b", "a/x", "a/y", "s", "z"]);
    assert_eq!((dir.read("a/x").as_str(), dir.read("a/y").as_str(), dir.read("a.b").as_str()), ("hello", "", "world!"));
    assert_eq!(std::fs::read_link(dir.path().join("l")).unwrap(), Path::new("../../etc"));
    let stat = |path: &str| std::fs::symlink_metadata(dir.path().join(path)).unwrap();
    assert_eq!((stat("s").mode(), stat("f").mode(), stat("a").mode()), (0o105004, 0o010600, 0o040755));
    assert_eq!(
        (stat("a/x").mtime(), stat("a/x").mtime_nsec(), stat("a").mtime_nsec(), stat("l").mtime()),
        (1_700_000_000, 123_456_789, 123_456_789, 5)
    );
    let mut value = [0; 8];
    let path = dir.path().join("a/x");
    assert_eq!(rustix::fs::lgetxattr(&path, "user.k", &mut value).unwrap(), 1);
    assert!(rustix::fs::lgetxattr(&path, "trusted.overlay.opaque", &mut value).is_err(), "a client must not hide lower layers");
}

#[tokio::test]
async fn unchanged_trees_transfer_nothing() {
    let mut dir = Versions::new();
    dir.sync(&sample(), plain()).await;
    assert_eq!(dir.sync(&sample(), plain()).await, (false, vec![]));
    let mut touched = sample();
    touched.0.get_mut("a").unwrap().0.mod_time += 1;
    assert_eq!(dir.sync(&touched, plain()).await, (false, vec![]), "the time of a directory alone is no change");
}

#[tokio::test]
async fn one_change_transfers_one_file() {
    for path in ["a/x", "a/y", "a.b", "z"] {
        let mut dir = Versions::new();
        dir.sync(&sample(), plain()).await;
        let (before, old) = (inode(&dir.path().join("z")), dir.path());
        let mut tree = sample().file(path, "changed");
        tree.0.get_mut(path).unwrap().0.mod_time += 1;
        assert_eq!(dir.sync(&tree, plain()).await, (true, vec![path.to_owned()]));
        for (other, content) in [("a/x", "hello"), ("a/y", ""), ("a.b", "world!"), ("z", "end")] {
            assert_eq!(dir.read(other), if other == path { "changed" } else { content });
            assert_eq!(std::fs::read_to_string(old.join(other)).unwrap(), content, "the last version stays as it was");
        }
        assert_eq!(inode(&dir.path().join("z")) == before, path != "z", "what did not change is linked");
    }
}

#[tokio::test]
async fn additions_and_deletions_transfer_what_is_new() {
    let mut dir = Versions::new();
    dir.sync(&sample(), plain()).await;
    assert_eq!(dir.sync(&sample().without("a"), plain()).await, (true, vec![]));
    assert!(!dir.path().join("a").exists());
    assert_eq!(dir.read("a.b"), "world!");
    let (changed, mut requested) = dir.sync(&sample().without("z").file("b", "new"), plain()).await;
    requested.sort();
    assert_eq!((changed, requested), (true, vec!["a/x".to_owned(), "a/y".into(), "b".into()]));
    assert!(!dir.path().join("z").exists());
    assert_eq!(dir.sync(&Tree::default(), plain()).await, (true, vec![]));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    assert_eq!(dir.sync(&Tree::default(), plain()).await, (false, vec![]));
}

#[tokio::test]
async fn kinds_may_change() {
    let mut dir = Versions::new();
    dir.sync(&sample(), plain()).await;
    let tree = sample().without("a").file("a", "now a file").without("z").dir("z").file("z/in", "deep").without("l").file("l", "no link");
    dir.sync(&tree, plain()).await;
    assert_eq!((dir.read("a").as_str(), dir.read("z/in").as_str(), dir.read("l").as_str()), ("now a file", "deep", "no link"));
}

#[tokio::test]
async fn hard_links_stay_together() {
    let tree = |content: &str| Tree::default().file("a", content).dir("d").link("d/b", 0o644, "a").link("d/c", 0o644, "a");
    let mut dir = Versions::new();
    for (content, requested) in [("one", vec!["a".to_owned()]), ("two!", vec!["a".to_owned()])] {
        assert_eq!(dir.sync(&tree(content), plain()).await, (true, requested));
        assert_eq!(dir.read("d/c"), content);
        let inodes = ["a", "d/b", "d/c"].map(|p| inode(&dir.path().join(p)));
        assert!(inodes[0] == inodes[1] && inodes[1] == inodes[2]);
    }
    assert_eq!(dir.sync(&tree("two!"), plain()).await, (false, vec![]));
    assert_eq!(dir.sync(&tree("two!").file("e", "x"), plain()).await, (true, vec!["e".to_owned()]));
    assert_eq!(inode(&dir.path().join("a")), inode(&dir.path().join("d/b")));
}

#[tokio::test]
async fn everything_is_asked_for_without_a_differ() {
    let mut dir = Versions::new();
    let everything = || Wanted { everything: true, metadata_only: None };
    dir.sync(&sample(), everything()).await;
    let (changed, requested) = dir.sync(&sample(), everything()).await;
    assert_eq!((changed, requested.len()), (false, 4), "what came is what was there");
    // The metadata says nothing of this change.
    let (changed, requested) = dir.sync(&sample().file("a/x", "jello"), everything()).await;
    assert_eq!((changed, requested.len(), dir.read("a/x").as_str()), (true, 4, "jello"));
    let (changed, _) = dir.sync(&sample().file("a/x", "jello").without("a/y"), everything()).await;
    assert!(changed && !dir.path().join("a/y").exists());
}

#[tokio::test]
async fn files_lost_from_the_last_version_come_again() {
    let mut dir = Versions::new();
    dir.sync(&sample(), plain()).await;
    std::fs::remove_file(dir.path().join("a/x")).unwrap();
    let (changed, mut requested) = dir.sync(&sample().file("n", "new"), plain()).await;
    requested.sort();
    assert_eq!((changed, requested), (true, vec!["a/x".to_owned(), "n".into()]));
    assert_eq!(dir.read("a/x"), "hello");
}

#[tokio::test]
async fn metadata_transfers_list_everything_and_send_little() {
    let mut dir = Versions::new();
    let wanted = || Wanted { everything: false, metadata_only: Some(Matcher::new(["a/x"]).unwrap()) };
    assert_eq!(dir.sync(&sample(), wanted()).await, (true, vec!["a/x".to_owned()]));
    assert_eq!((dir.read("a/x").as_str(), dir.path().join("z").exists()), ("hello", false));
    let listing = std::fs::read(dir.path().join(".fsutil-metadata")).unwrap();
    let mut rest = listing.as_slice();
    let mut count = 0;
    while let Some((length, tail)) = rest.split_first_chunk::<4>() {
        rest = &tail[u32::from_le_bytes(*length) as usize..];
        count += 1;
    }
    assert_eq!(count, sample().0.len());
    assert_eq!(dir.sync(&sample(), wanted()).await, (false, vec![]));
    assert_eq!(dir.sync(&sample().file("zz", "more"), wanted()).await, (true, vec![]), "the list alone may change");
}

#[tokio::test]
async fn lies_are_refused_and_the_client_told() {
    let file = |path: &str| (Stat { path: path.into(), mode: 0o644, ..Stat::default() }, Bytes::new());
    let device = (Stat { path: "w".into(), mode: go_mode::DEVICE | go_mode::CHAR_DEVICE | 0o600, ..Stat::default() }, Bytes::new());
    for (entries, text) in [
        (vec![file("../x")], "escape check ../x: invalid argument"),
        (vec![file("b"), file("a")], "changes out of order: \"a\" \"b\""),
        (vec![device], "w is a character device 0:0, which layers use for deletions"),
    ] {
        let mut dir = Versions::new();
        let (outcome, told) = dir.try_sync(entries, plain()).await;
        assert_eq!(outcome.unwrap_err().to_string(), text);
        assert!(told.contains(&format!("error: {text}")), "{told:?}");
    }
}

#[tokio::test]
async fn a_client_that_goes_away_is_an_error() {
    let (to_client, _inbox) = mpsc::unbounded_channel();
    let (outbox, from_client) = mpsc::unbounded_channel();
    outbox.send(Packet::Stat(Stat { path: "a".into(), ..Stat::default() })).unwrap();
    drop(outbox);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let writer = Writer::new(None, plain(), Box::new(move || Ok(path)));
    let row = Reporter::silent().row("t", "t", 0);
    let outcome = receive(Box::new(Wire { to_client, from_client }), writer, row, &Cancel::new()).await;
    assert_eq!(outcome.err().unwrap().to_string(), "the client ended the transfer early");
}

#[tokio::test]
async fn data_nobody_asked_for_is_refused() {
    let (to_client, _inbox) = mpsc::unbounded_channel();
    let (outbox, from_client) = mpsc::unbounded_channel();
    outbox.send(Packet::Data { id: 7, data: "x".into() }).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let writer = Writer::new(None, plain(), Box::new(move || Ok(path)));
    let row = Reporter::silent().row("t", "t", 0);
    let outcome = receive(Box::new(Wire { to_client, from_client }), writer, row, &Cancel::new()).await;
    assert_eq!(outcome.err().unwrap().to_string(), "invalid file request 7");
}
