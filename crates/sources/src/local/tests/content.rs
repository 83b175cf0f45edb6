//! What is known of the content, and how it is written.
use treehash::Options;

use super::*;

/// The digest of a whole version: from what passed, and by reading it from the disk.
fn digests(dir: &Versions) -> (oci::Digest, oci::Digest) {
    let tree = Disk(dir.path());
    let checksum = |mut records: Records| records.checksum(&tree, "/", &Options::default()).unwrap();
    (checksum(dir.records.clone().expect("all files were hashed")), {
        // The root's own header counts as empty for received files; leave it out of both.
        let mut records = Records::received();
        for path in tree.paths() {
            let (put, digest) = tree.entry(&path);
            records.put(&path, put, digest);
        }
        checksum(records)
    })
}

struct Disk(PathBuf);

impl Disk {
    fn paths(&self) -> Vec<PathBuf> {
        fn walk(root: &Path, dir: &Path, out: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                out.push(Path::new("/").join(path.strip_prefix(root).unwrap()));
                if std::fs::symlink_metadata(&path).unwrap().is_dir() {
                    walk(root, &path, out);
                }
            }
        }
        let mut all = Vec::new();
        walk(&self.0, &self.0, &mut all);
        all
    }

    fn entry(&self, path: &Path) -> (treehash::Put, oci::Digest) {
        let full = self.0.join(path.strip_prefix("/").unwrap());
        let metadata = std::fs::symlink_metadata(&full).unwrap();
        let target = std::fs::read_link(&full).map(|t| t.into_os_string().into_encoded_bytes()).unwrap_or_default();
        let (kind, put) = match () {
            () if metadata.is_dir() => (treehash::Kind::Dir, treehash::Put::Dir),
            () if metadata.is_symlink() => (treehash::Kind::Symlink, treehash::Put::Symlink { target: target.clone() }),
            () => (treehash::Kind::File, treehash::Put::File),
        };
        let (uid, gid, permissions) = (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777);
        let header = treehash::Header { kind, permissions, uid, gid, size: metadata.size(), link: &target, device: (0, 0) };
        let mut hash = treehash::FileHash::new(&header, []);
        if metadata.is_file() {
            hash.update(&std::fs::read(&full).unwrap());
        }
        (put, hash.finish())
    }
}

impl treehash::Tree for Disk {
    fn stat(&self, path: &Path) -> std::io::Result<Option<treehash::Stat>> {
        panic!("{path:?} should be known")
    }
    fn read_dir(&self, path: &Path) -> std::io::Result<Vec<(Vec<u8>, treehash::Stat)>> {
        panic!("{path:?} should be known")
    }
    fn read_link(&self, path: &Path) -> std::io::Result<Vec<u8>> {
        panic!("{path:?} should be known")
    }
    fn load(&self, path: &Path, _: &treehash::Stat) -> std::io::Result<treehash::Loaded> {
        panic!("{path:?} should be known")
    }
}

#[tokio::test]
async fn digests_are_known_without_reading_a_file_again() {
    let mut dir = Versions::new();
    dir.sync(&sample(), plain()).await;
    let (received, read) = digests(&dir);
    assert_eq!(received, read);
    let mut tree = sample().without("a.b").file("a/x", "changed");
    tree.0.get_mut("a/x").unwrap().0.mod_time += 1;
    assert_eq!(dir.sync(&tree, plain()).await, (true, vec!["a/x".to_owned()]));
    let (after, read) = digests(&dir);
    assert_eq!(after, read);
    assert_ne!(after, received);
}

#[tokio::test]
async fn a_file_that_grew_while_it_was_sent_has_no_digest() {
    let mut tree = sample();
    tree.0.get_mut("z").unwrap().1 = "longer than announced".into();
    let mut dir = Versions::new();
    dir.sync(&tree, plain()).await;
    assert_eq!(dir.read("z"), "longer than announced");
    assert_eq!(dir.records, None);
}

/// A client that answers as late as it can: only when there is nothing more to read. Tells the most requests that it ever had before it.
fn lazy_client(files: usize) -> (Box<Wire>, tokio::sync::oneshot::Receiver<usize>) {
    let (to_client, mut inbox) = mpsc::unbounded_channel();
    let (outbox, from_client) = mpsc::unbounded_channel();
    let (tell, most) = tokio::sync::oneshot::channel();
    task::spawn("client", async move {
        for n in 0..files {
            let stat = Stat { path: format!("{n:05}"), mode: 0o644, size: 5, mod_time: 1, ..Stat::default() };
            outbox.send(Packet::Stat(stat)).unwrap();
        }
        outbox.send(Packet::StatEnd).unwrap();
        let (mut waiting, mut most) = (std::collections::VecDeque::new(), 0);
        loop {
            let packet = match inbox.try_recv() {
                Ok(packet) => Some(packet),
                Err(_) if waiting.is_empty() => Some(inbox.recv().await.unwrap()),
                Err(_) => None,
            };
            match packet {
                Some(Packet::Request { id }) => waiting.push_back(id),
                Some(Packet::Fin) => break,
                Some(other) => panic!("{other:?}"),
                None => {
                    most = most.max(waiting.len());
                    let id = waiting.pop_front().unwrap();
                    outbox.send(Packet::Data { id, data: format!("{id:05}").into() }).unwrap();
                    outbox.send(Packet::Data { id, data: Bytes::new() }).unwrap();
                    tokio::task::yield_now().await;
                }
            }
        }
        outbox.send(Packet::Fin).unwrap();
        tell.send(most).unwrap();
    });
    (Box::new(Wire { to_client, from_client }), most)
}

#[tokio::test]
async fn many_tiny_files_are_asked_for_a_bounded_number_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let writer = Writer::new(None, plain(), Box::new(move || Ok(path)));
    let (stream, most) = lazy_client(10_000);
    let row = Reporter::silent().row("t", "t", 0);
    let Synced::Changed(changes) = receive(stream, writer, row, &Cancel::new()).await.unwrap() else { panic!("all is new") };
    assert_eq!(changes.index.entries.len(), 10_000);
    for n in [0, 4095, 4096, 9_999] {
        assert_eq!(std::fs::read_to_string(dir.path().join(format!("{n:05}"))).unwrap(), format!("{n:05}"));
    }
    let most = most.await.unwrap();
    assert!((1..=super::super::pace::FILES).contains(&most), "{most}");
}

#[tokio::test]
async fn permissions_are_right_whatever_new_files_get() {
    let modes = [0o644, 0o600, 0o666, 0o777, 0o444, 0o000, go_mode::SETUID | 0o755];
    let tree = modes.iter().fold(Tree::default(), |tree, mode| tree.add(&format!("{mode:o}"), *mode, b"x"));
    let mut dir = Versions::new();
    dir.sync(&tree, plain()).await;
    for mode in modes {
        let made = std::fs::metadata(dir.path().join(format!("{mode:o}"))).unwrap().mode();
        assert_eq!(made & 0o7777, go_mode::to_posix(mode) & 0o7777, "{mode:o}");
    }
}

#[tokio::test]
async fn what_comes_in_small_pieces_is_written_in_order() {
    let content: Vec<u8> = (0..2_000_000u32).map(|n| (n % 251) as u8).collect();
    let tree = Tree::default().add("large", 0o644, &content).add("other", 0o644, &content[..1000]);
    let mut dir = Versions::new();
    dir.sync(&tree, plain()).await;
    assert!(std::fs::read(dir.path().join("large")).unwrap() == content);
    let (received, read) = digests(&dir);
    assert_eq!(received, read);
}
