//! A scripted client and a directory on disk.
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use patterns::Matcher;
use progress::Reporter;
use session::{FileStream, Packet, PacketSink, PacketSource, Stat, go_mode};
use task::Cancel;
use tokio::sync::mpsc;
use treehash::{Options, Records};

use super::index::{Index, compare};
use super::receive::receive;
use super::writer::{Previous, Synced, Wanted, Writer};

/// A directory at the client: path to stat and content.
#[derive(Clone, Default)]
struct Tree(BTreeMap<String, (Stat, Bytes)>);

impl Tree {
    fn add(mut self, path: &str, mode: u32, content: &[u8]) -> Self {
        let size = if mode & go_mode::DIR == 0 { content.len() as i64 } else { 0 };
        let stat = Stat { path: path.into(), mode, size, mod_time: 1_700_000_000_123_456_789, ..Stat::default() };
        self.0.insert(path.into(), (stat, Bytes::copy_from_slice(content)));
        self
    }

    fn dir(self, path: &str) -> Self {
        self.add(path, go_mode::DIR | 0o755, b"")
    }

    fn file(self, path: &str, content: &str) -> Self {
        self.add(path, 0o644, content.as_bytes())
    }

    fn link(mut self, path: &str, mode: u32, target: &str) -> Self {
        let stat = Stat { path: path.into(), mode, linkname: target.into(), mod_time: 5_000_000_000, ..Stat::default() };
        self.0.insert(path.into(), (stat, Bytes::new()));
        self
    }

    fn without(mut self, path: &str) -> Self {
        self.0.retain(|p, _| p != path && !p.starts_with(&format!("{path}/")));
        self
    }

    fn walk(&self) -> Vec<(Stat, Bytes)> {
        let mut all: Vec<_> = self.0.values().cloned().collect();
        all.sort_by(|a, b| compare(&a.0.path, &b.0.path));
        all
    }
}

/// The client's end of a stream: sends its tree, answers requests, echoes the end. Says what it was asked for.
struct Client {
    entries: Vec<(Stat, Bytes)>,
    requested: Arc<Mutex<Vec<String>>>,
}

struct Wire {
    to_client: mpsc::UnboundedSender<Packet>,
    from_client: mpsc::UnboundedReceiver<Packet>,
}

impl Client {
    fn serve(self) -> Box<Wire> {
        let (to_client, mut inbox) = mpsc::unbounded_channel();
        let (outbox, from_client) = mpsc::unbounded_channel();
        task::spawn("client", async move {
            for (stat, _) in &self.entries {
                let _ = outbox.send(Packet::Stat(stat.clone()));
            }
            let _ = outbox.send(Packet::StatEnd);
            while let Some(packet) = inbox.recv().await {
                match packet {
                    Packet::Request { id } => {
                        let (stat, data) = &self.entries[id as usize];
                        self.requested.lock().unwrap().push(stat.path.clone());
                        for chunk in data.chunks(3) {
                            let _ = outbox.send(Packet::Data { id, data: Bytes::copy_from_slice(chunk) });
                        }
                        let _ = outbox.send(Packet::Data { id, data: Bytes::new() });
                    }
                    Packet::Fin => {
                        let _ = outbox.send(Packet::Fin);
                        return;
                    }
                    Packet::Error(message) => {
                        self.requested.lock().unwrap().push(format!("error: {message}"));
                        return;
                    }
                    other => panic!("{other:?}"),
                }
            }
        });
        Box::new(Wire { to_client, from_client })
    }
}

#[async_trait]
impl FileStream for Wire {
    async fn send(&mut self, packet: Packet) -> fault::Result<()> {
        let _ = self.to_client.send(packet);
        Ok(())
    }

    async fn receive(&mut self) -> fault::Result<Option<Packet>> {
        Ok(self.from_client.recv().await)
    }

    fn split(self: Box<Self>) -> (Box<dyn PacketSink>, Box<dyn PacketSource>) {
        (Box::new(Sink(self.to_client)), Box::new(Source(self.from_client)))
    }
}

struct Sink(mpsc::UnboundedSender<Packet>);
struct Source(mpsc::UnboundedReceiver<Packet>);

#[async_trait]
impl PacketSink for Sink {
    async fn send(&mut self, packet: Packet) -> fault::Result<()> {
        let _ = self.0.send(packet);
        Ok(())
    }
}

#[async_trait]
impl PacketSource for Source {
    async fn receive(&mut self) -> fault::Result<Option<Packet>> {
        Ok(self.0.recv().await)
    }
}

/// Versions of a synced directory.
struct Synced_ {
    root: tempfile::TempDir,
    version: usize,
    index: Option<Arc<Index>>,
    records: Option<Records>,
}

impl Synced_ {
    fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap(), version: 0, index: None, records: None }
    }

    fn path(&self) -> PathBuf {
        self.root.path().join(self.version.to_string())
    }

    /// Syncs, and returns whether there is a new version, and what was asked for.
    async fn sync(&mut self, tree: &Tree, wanted: Wanted) -> (bool, Vec<String>) {
        let (outcome, requested) = self.try_sync(tree.walk(), wanted).await;
        (outcome.unwrap(), requested)
    }

    async fn try_sync(&mut self, entries: Vec<(Stat, Bytes)>, wanted: Wanted) -> (fault::Result<bool>, Vec<String>) {
        let records = self.records.clone();
        let previous = self.index.clone().map(|index| Previous { index, path: self.path(), records: Box::new(move || records) });
        let next = self.root.path().join((self.version + 1).to_string());
        let begin = next.clone();
        let writer = Writer::new(previous, wanted, Box::new(move || Ok(std::fs::create_dir(&begin).map(|()| begin)?)));
        let requested = Arc::<Mutex<Vec<String>>>::default();
        let stream = Client { entries, requested: requested.clone() }.serve();
        let row = Reporter::silent().row("transferring", "transferring", 0);
        let outcome = receive(stream, writer, row, &Cancel::new()).await;
        let outcome = outcome.map(|synced| match synced {
            Synced::Unchanged => {
                // As a draft that is dropped.
                let _ = std::fs::remove_dir_all(&next);
                false
            }
            Synced::Changed(changes) => {
                self.version += 1;
                let decoded = Index::decode(&changes.index.encode()).unwrap();
                assert_eq!(decoded, changes.index);
                self.index = Some(Arc::new(decoded));
                self.records = changes.records;
                true
            }
        });
        // The client's task sees our last packet soon after.
        tokio::task::yield_now().await;
        let requested = requested.lock().unwrap().clone();
        (outcome, requested)
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.path().join(path)).unwrap()
    }
}

fn plain() -> Wanted {
    Wanted { everything: false, metadata_only: None }
}

fn sample() -> Tree {
    Tree::default()
        .dir("a")
        .file("a/x", "hello")
        .file("a/y", "")
        .dir("a/z")
        .file("a.b", "world!")
        .link("l", go_mode::SYMLINK | 0o777, "../../etc")
        .file("z", "end")
}

fn inode(path: &Path) -> u64 {
    std::fs::symlink_metadata(path).unwrap().ino()
}

#[tokio::test]
async fn takes_a_tree_with_its_metadata() {
    let mut dir = Synced_::new();
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
    let mut dir = Synced_::new();
    dir.sync(&sample(), plain()).await;
    assert_eq!(dir.sync(&sample(), plain()).await, (false, vec![]));
    let mut touched = sample();
    touched.0.get_mut("a").unwrap().0.mod_time += 1;
    assert_eq!(dir.sync(&touched, plain()).await, (false, vec![]), "the time of a directory alone is no change");
}

#[tokio::test]
async fn one_change_transfers_one_file() {
    for path in ["a/x", "a/y", "a.b", "z"] {
        let mut dir = Synced_::new();
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
    let mut dir = Synced_::new();
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
    let mut dir = Synced_::new();
    dir.sync(&sample(), plain()).await;
    let tree = sample().without("a").file("a", "now a file").without("z").dir("z").file("z/in", "deep").without("l").file("l", "no link");
    dir.sync(&tree, plain()).await;
    assert_eq!((dir.read("a").as_str(), dir.read("z/in").as_str(), dir.read("l").as_str()), ("now a file", "deep", "no link"));
}

#[tokio::test]
async fn hard_links_stay_together() {
    let tree = |content: &str| Tree::default().file("a", content).dir("d").link("d/b", 0o644, "a").link("d/c", 0o644, "a");
    let mut dir = Synced_::new();
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
    let mut dir = Synced_::new();
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
    let mut dir = Synced_::new();
    dir.sync(&sample(), plain()).await;
    std::fs::remove_file(dir.path().join("a/x")).unwrap();
    let (changed, mut requested) = dir.sync(&sample().file("n", "new"), plain()).await;
    requested.sort();
    assert_eq!((changed, requested), (true, vec!["a/x".to_owned(), "n".into()]));
    assert_eq!(dir.read("a/x"), "hello");
}

#[tokio::test]
async fn metadata_transfers_list_everything_and_send_little() {
    let mut dir = Synced_::new();
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
        let mut dir = Synced_::new();
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

/// The digest of a whole version: from what passed, and by reading it from the disk.
fn digests(dir: &Synced_) -> (oci::Digest, oci::Digest) {
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
    let mut dir = Synced_::new();
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
    let mut dir = Synced_::new();
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
    assert!((1..=super::pace::FILES).contains(&most), "{most}");
}

#[tokio::test]
async fn permissions_are_right_whatever_new_files_get() {
    let modes = [0o644, 0o600, 0o666, 0o777, 0o444, 0o000, go_mode::SETUID | 0o755];
    let tree = modes.iter().fold(Tree::default(), |tree, mode| tree.add(&format!("{mode:o}"), *mode, b"x"));
    let mut dir = Synced_::new();
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
    let mut dir = Synced_::new();
    dir.sync(&tree, plain()).await;
    assert!(std::fs::read(dir.path().join("large")).unwrap() == content);
    let (received, read) = digests(&dir);
    assert_eq!(received, read);
}
