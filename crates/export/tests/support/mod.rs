//! Layers in a temporary directory, and a client in memory that takes what is exported. Needs root, as overlay trees do.
#![allow(dead_code, clippy::unwrap_used)]
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use export::{Context, Exported, Exporters, PlatformResult, Source};
use fault::{Fault, Kind, Result};
use layers::{Layer, Layers, Properties};
use oci::Digest;
use progress::{Reporter, Sink, Update};
use session::{
    ContentStore, Credentials, Download, Duplex, ExporterRequest, FileStream, FilesRequest, Group, Packet, PacketSink, PacketSource,
    Session, Stat, Token, TokenRequest, Upload, go_mode,
};
use task::Cancel;
use tokio::sync::mpsc;

pub struct Home {
    _dir: tempfile::TempDir,
    pub layers: Layers,
    pub store: content::Store,
    pub exporters: Exporters,
    pub client: Arc<Client>,
    rows: Arc<Rows>,
}

impl Home {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let db = kv::Db::open(&root.join("db"), kv::Options::default()).unwrap();
        let store = content::Store::open(&root.join("content"), db.clone()).unwrap();
        let trees = snapshot::Store::open(&root.join("trees"), snapshot::Options::default()).unwrap();
        let layers = Layers::open(db, store.clone(), trees).unwrap();
        let exporters = Exporters::new(store.clone(), registry::Client::new(registry::Config::default()));
        Self { _dir: dir, layers, store, exporters, client: Arc::default(), rows: Arc::default() }
    }

    /// A layer on `parent` whose own files `write` makes.
    pub fn layer(&self, parent: Option<&Layer>, description: &str, write: impl FnOnce(&Path)) -> Layer {
        let draft = self.layers.draft(parent, Properties::new(description)).unwrap();
        write(&draft.own_files());
        draft.commit().unwrap()
    }

    pub fn context(&self) -> Context {
        let client: Arc<dyn Session> = self.client.clone();
        let reporter = Reporter::new(self.rows.clone(), Digest::of("export"));
        Context { cancel: Cancel::new(), reporter, sessions: Group::new([client.clone()]), session: Some(client), index: 3 }
    }

    /// Exports, and pushes if asked to.
    pub async fn export(&self, kind: &str, attrs: &[(&str, &str)], source: &Source) -> Result<BTreeMap<String, String>> {
        let attrs = attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let exporter = self.exporters.resolve(kind, &attrs, 30)?;
        let Exported { response, finalize, .. } = exporter.export(source, &self.context()).await?;
        if let Some(finalize) = finalize {
            finalize.await?;
        }
        Ok(response)
    }

    /// Ids of rows that were opened, in order, and forgets them.
    pub fn rows(&self) -> Vec<String> {
        std::mem::take(&mut self.rows.0.lock().unwrap())
    }
}

#[derive(Default)]
struct Rows(Mutex<Vec<String>>);

impl Sink for Rows {
    fn emit(&self, update: Update) {
        let mut rows = self.0.lock().unwrap();
        if let Update::Status { id, .. } = update
            && !rows.contains(&id)
        {
            rows.push(id);
        }
    }
}

/// A result of one platform.
pub fn single(layer: Option<Layer>) -> Source {
    let platform = "linux/amd64".parse().unwrap();
    Source { results: vec![PlatformResult { id: "linux/amd64".into(), platform, layer }], ..Source::default() }
}

pub fn map(layers: impl IntoIterator<Item = (&'static str, Option<Layer>)>) -> Source {
    let result = |(id, layer): (&str, Option<Layer>)| PlatformResult { id: id.into(), platform: id.parse().unwrap(), layer };
    Source { results: layers.into_iter().map(result).collect(), is_map: true, ..Source::default() }
}

/// What a client got.
#[derive(Default)]
pub struct Client {
    pub files: Mutex<Vec<File>>,
    pub trees: Mutex<Vec<Tree>>,
    pub blobs: Arc<Mutex<HashMap<Digest, Vec<u8>>>>,
    /// The order in which blobs came.
    pub order: Arc<Mutex<Vec<Digest>>>,
    /// What every upload fails with.
    pub refuse: Mutex<Option<Kind>>,
}

#[derive(Clone, Default)]
pub struct File {
    pub exporter: usize,
    pub metadata: BTreeMap<String, String>,
    pub data: Arc<Mutex<Vec<u8>>>,
    pub finished: Arc<Mutex<bool>>,
}

type Received = Vec<(Stat, Vec<u8>)>;

/// A directory as it was sent, every file asked for.
#[derive(Clone, Default)]
pub struct Tree {
    pub exporter: usize,
    pub multi_platform: bool,
    pub received: Arc<Mutex<Received>>,
}

impl Tree {
    pub fn paths(&self) -> Vec<String> {
        self.received.lock().unwrap().iter().map(|(stat, _)| stat.path.clone()).collect()
    }

    pub fn get(&self, path: &str) -> (Stat, Vec<u8>) {
        let received = self.received.lock().unwrap();
        received.iter().find(|(stat, _)| stat.path == path).cloned().unwrap_or_else(|| panic!("{path} was not sent"))
    }
}

impl Client {
    pub fn file(&self) -> Vec<u8> {
        let file = self.files.lock().unwrap().pop().expect("a file was sent");
        assert!(*file.finished.lock().unwrap(), "the file is whole");
        file.data.lock().unwrap().clone()
    }

    pub fn tree(&self) -> Tree {
        self.trees.lock().unwrap().pop().expect("a directory was sent")
    }
}

fn unsupported<T>() -> Result<T> {
    Err(Fault::new(Kind::Unimplemented, "not in this test"))
}

#[async_trait]
impl Session for Client {
    fn id(&self) -> &str {
        "client"
    }
    fn shared_key(&self) -> &str {
        ""
    }
    fn supports(&self, method: &str) -> bool {
        method.eq_ignore_ascii_case("/moby.filesync.v1.FileSend/DiffCopy")
    }
    async fn closed(&self) {
        std::future::pending().await
    }
    async fn files(&self, _: FilesRequest) -> Result<Box<dyn FileStream>> {
        unsupported()
    }
    async fn upload(&self, exporter: usize, metadata: &BTreeMap<String, String>) -> Result<Box<dyn Upload>> {
        let file = File { exporter, metadata: metadata.clone(), ..File::default() };
        self.files.lock().unwrap().push(file.clone());
        Ok(Box::new(Receiving { file, refuse: *self.refuse.lock().unwrap() }))
    }
    async fn upload_tree(&self, exporter: usize, _: &BTreeMap<String, String>, multi_platform: bool) -> Result<Box<dyn FileStream>> {
        let tree = Tree { exporter, multi_platform, ..Tree::default() };
        self.trees.lock().unwrap().push(tree.clone());
        let (to, packets) = mpsc::channel(4);
        let (answers, from) = mpsc::channel(4);
        task::spawn("receive", receive(tree, packets, answers));
        Ok(Box::new(Wire(Out(to), Back(from))))
    }
    async fn secret(&self, _: &str) -> Result<Option<Bytes>> {
        unsupported()
    }
    async fn ssh_available(&self, _: &str) -> Result<bool> {
        unsupported()
    }
    async fn ssh(&self, _: &str) -> Result<Box<dyn Duplex>> {
        unsupported()
    }
    async fn credentials(&self, _: &str) -> Result<Credentials> {
        Ok(Credentials::default())
    }
    async fn fetch_token(&self, _: TokenRequest) -> Result<Token> {
        unsupported()
    }
    async fn token_authority(&self, _: &str, _: &[u8]) -> Result<Option<Bytes>> {
        Ok(None)
    }
    async fn verify_token_authority(&self, _: &str, _: &[u8], _: &[u8]) -> Result<Bytes> {
        unsupported()
    }
    fn content(&self, store_id: &str) -> Arc<dyn ContentStore> {
        assert_eq!(store_id, "export");
        Arc::new(Blobs { blobs: self.blobs.clone(), order: self.order.clone() })
    }
    async fn pull_upload(&self, _: &str) -> Result<Box<dyn Download>> {
        unsupported()
    }
    async fn find_exporters(&self, _: &BTreeMap<String, Bytes>, _: &[String]) -> Result<Vec<ExporterRequest>> {
        unsupported()
    }
    async fn finalize_export(&self, _: &BTreeMap<String, String>) -> Result<()> {
        unsupported()
    }
}

struct Receiving {
    file: File,
    refuse: Option<Kind>,
}

#[async_trait]
impl Upload for Receiving {
    async fn write(&mut self, data: Bytes) -> Result<()> {
        if let Some(kind) = self.refuse {
            return Err(Fault::new(kind, "refused"));
        }
        self.file.data.lock().unwrap().extend_from_slice(&data);
        Ok(())
    }
    async fn finish(self: Box<Self>) -> Result<()> {
        *self.file.finished.lock().unwrap() = true;
        Ok(())
    }
}

struct Blobs {
    blobs: Arc<Mutex<HashMap<Digest, Vec<u8>>>>,
    order: Arc<Mutex<Vec<Digest>>>,
}

#[async_trait]
impl ContentStore for Blobs {
    async fn size(&self, digest: &Digest) -> Result<Option<u64>> {
        Ok(self.blobs.lock().unwrap().get(digest).map(|b| b.len() as u64))
    }
    async fn read(&self, _: &Digest, _: u64) -> Result<Box<dyn Download>> {
        unsupported()
    }
    async fn write(&self, digest: &Digest, _: u64) -> Result<Option<Box<dyn Upload>>> {
        if self.blobs.lock().unwrap().contains_key(digest) {
            return Ok(None);
        }
        let own = Blobs { blobs: self.blobs.clone(), order: self.order.clone() };
        Ok(Some(Box::new(Writing { blobs: own, digest: digest.clone(), data: Vec::new() })))
    }
}

struct Writing {
    blobs: Blobs,
    digest: Digest,
    data: Vec<u8>,
}

#[async_trait]
impl Upload for Writing {
    async fn write(&mut self, data: Bytes) -> Result<()> {
        self.data.extend_from_slice(&data);
        Ok(())
    }
    async fn finish(self: Box<Self>) -> Result<()> {
        assert_eq!(Digest::of(&self.data), self.digest);
        self.blobs.order.lock().unwrap().push(self.digest.clone());
        self.blobs.blobs.lock().unwrap().insert(self.digest, self.data);
        Ok(())
    }
}

/// Files that have no content to ask for.
const SPECIAL: u32 = go_mode::DIR | go_mode::SYMLINK | go_mode::DEVICE | go_mode::CHAR_DEVICE | go_mode::NAMED_PIPE | go_mode::SOCKET;

/// The client's end of the protocol, as stock clients behave: asks for each file as soon as it is announced.
async fn receive(tree: Tree, mut packets: mpsc::Receiver<Packet>, answers: mpsc::Sender<Packet>) {
    let mut waiting = 0;
    let mut listed = false;
    while let Some(packet) = packets.recv().await {
        match packet {
            Packet::Stat(stat) => {
                let id = tree.received.lock().unwrap().len() as u32;
                let wanted = stat.mode & SPECIAL == 0 && stat.linkname.is_empty();
                tree.received.lock().unwrap().push((stat, Vec::new()));
                if wanted {
                    waiting += 1;
                    answers.send(Packet::Request { id }).await.unwrap();
                }
            }
            Packet::StatEnd => listed = true,
            Packet::Data { data, .. } if data.is_empty() => waiting -= 1,
            Packet::Data { id, data } => tree.received.lock().unwrap()[id as usize].1.extend_from_slice(&data),
            Packet::Fin => return,
            other => panic!("unexpected {other:?}"),
        }
        if listed && waiting == 0 {
            listed = false;
            answers.send(Packet::Fin).await.unwrap();
        }
    }
}

struct Wire(Out, Back);
struct Out(mpsc::Sender<Packet>);
struct Back(mpsc::Receiver<Packet>);

#[async_trait]
impl PacketSink for Out {
    async fn send(&mut self, packet: Packet) -> Result<()> {
        self.0.send(packet).await.map_err(|_| Fault::new(Kind::Unavailable, "closed"))
    }
}

#[async_trait]
impl PacketSource for Back {
    async fn receive(&mut self) -> Result<Option<Packet>> {
        Ok(self.0.recv().await)
    }
}

#[async_trait]
impl FileStream for Wire {
    async fn send(&mut self, packet: Packet) -> Result<()> {
        self.0.send(packet).await
    }
    async fn receive(&mut self) -> Result<Option<Packet>> {
        self.1.receive().await
    }
    fn split(self: Box<Self>) -> (Box<dyn PacketSink>, Box<dyn PacketSource>) {
        (Box::new(self.0), Box::new(self.1))
    }
}
