//! A scripted client and a directory on disk.
mod content;
mod transfer;

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
use treehash::Records;

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
    fn serve(self) -> (Box<Wire>, task::Task<()>) {
        let (to_client, mut inbox) = mpsc::unbounded_channel();
        let (outbox, from_client) = mpsc::unbounded_channel();
        let serving = task::spawn("client", async move {
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
        (Box::new(Wire { to_client, from_client }), serving)
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
struct Versions {
    root: tempfile::TempDir,
    version: usize,
    index: Option<Arc<Index>>,
    records: Option<Records>,
}

impl Versions {
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
        let (stream, client) = Client { entries, requested: requested.clone() }.serve();
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
        // It ends with our last packet.
        client.join().await.unwrap();
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
