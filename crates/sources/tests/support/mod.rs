//! Sources over real stores in a temporary directory, and a client in memory.
#![allow(dead_code, clippy::unwrap_used)]
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use fault::{Fault, Kind, Result};
use layers::{Layer, Layers, PinGroup, Pins};
use llb::{Op, SourceOp, Vertex};
use oci::{Digest, Platform};
use progress::{Reporter, Sink, Update};
use session::{
    ContentStore, Credentials, Download, Duplex, ExporterRequest, FileStream, FilesRequest, Group, Packet, PacketSink, PacketSource,
    Session, Stat, Token, TokenRequest, Upload, go_mode,
};
use snapshot::{Backend, Options};
use sources::{Context, GitSettings, Sources};
use task::Cancel;
use tokio::sync::mpsc;

/// A worker's stores.
pub struct Place {
    pub root: tempfile::TempDir,
    pub layers: Layers,
    pub content: content::Store,
    pub sources: Sources,
}

impl Place {
    pub fn new() -> Self {
        Self::over(tempfile::tempdir().unwrap())
    }

    fn over(root: tempfile::TempDir) -> Self {
        let db = kv::Db::open(&root.path().join("db"), kv::Options::default()).unwrap();
        let content = content::Store::open(&root.path().join("content"), db.clone()).unwrap();
        let trees = snapshot::Store::open(&root.path().join("trees"), Options { backend: Backend::Auto, on_trash: None }).unwrap();
        let layers = Layers::open(db.clone(), content.clone(), trees).unwrap();
        let config = registry::Config {
            retry: registry::Retry { first: std::time::Duration::from_millis(1), attempts: 2 },
            ..registry::Config::default()
        };
        let git = GitSettings { path: std::env::var_os("PATH").unwrap(), proxy: Vec::new(), scratch: root.path().join("scratch") };
        let sources = Sources::new(layers.clone(), content.clone(), registry::Client::new(config), db, git);
        Self { root, layers, content, sources }
    }

    /// As after a restart of the daemon.
    pub async fn reopened(self) -> Self {
        self.layers.flush().await.unwrap();
        let Self { root, layers, content, sources } = self;
        drop((layers, content, sources));
        Self::over(root)
    }

    pub async fn fetch(&self, vertex: &Vertex, context: &Context) -> Result<Option<Layer>> {
        let Op::Source(op) = &vertex.op else { panic!("a source") };
        self.sources.fetch(vertex, op, context).await
    }

    pub async fn key(&self, vertex: &Vertex, index: usize, context: &Context) -> Result<sources::Key> {
        let Op::Source(op) = &vertex.op else { panic!("a source") };
        self.sources.cache_key(vertex, op, index, context).await
    }

    pub async fn files(&self, layer: &Layer, context: &Context) -> snapshot::View {
        layer.realize(&context.cancel, &context.reporter).await.unwrap();
        layer.view().unwrap()
    }
}

pub fn op(identifier: &str, attrs: &[(&str, &str)]) -> SourceOp {
    SourceOp { identifier: identifier.into(), attrs: attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect() }
}

pub fn vertex(identifier: &str, attrs: &[(&str, &str)]) -> Vertex {
    let op = op(identifier, attrs);
    Vertex {
        digest: Digest::of(format!("{op:?}")),
        encoded: Bytes::new(),
        op: Op::Source(op),
        inputs: Vec::new(),
        platform: Some(Platform::new("linux", "amd64", "")),
        constraints: Vec::new(),
        metadata: llb::Metadata::default(),
        name: identifier.into(),
        proxied: false,
    }
}

/// Keeps the rows that were shown.
#[derive(Default)]
pub struct Rows(pub Mutex<Vec<(String, String)>>);

impl Sink for Rows {
    fn emit(&self, update: Update) {
        if let Update::Status { id, action, .. } = update {
            self.0.lock().unwrap().push((id, action));
        }
    }
}

pub fn context(clients: &[Arc<Client>]) -> Context {
    watched(clients, Arc::new(progress::Nowhere))
}

pub fn watched(clients: &[Arc<Client>], sink: Arc<dyn Sink>) -> Context {
    let sessions = Group::new(clients.iter().map(|c| c.clone() as Arc<dyn Session>));
    Context {
        cancel: Cancel::new(),
        reporter: Reporter::new(sink, Digest::of(b"vertex")),
        sessions,
        pins: PinGroup::new([Pins::default()]),
    }
}

pub fn read(view: &snapshot::View, path: &str) -> String {
    let mut text = String::new();
    std::io::Read::read_to_string(&mut view.open(Path::new(path)).unwrap(), &mut text).unwrap();
    text
}

/// A client that serves directories, secrets and blobs from memory.
#[derive(Default)]
pub struct Client {
    pub id: String,
    pub dirs: Mutex<HashMap<String, Vec<(Stat, Bytes)>>>,
    pub secrets: HashMap<String, Bytes>,
    pub blobs: Mutex<HashMap<String, Bytes>>,
    pub uploads: HashMap<String, Bytes>,
    /// Paths of the files that were asked for.
    pub asked: Arc<Mutex<Vec<String>>>,
    pub requests: Mutex<Vec<FilesRequest>>,
}

impl Client {
    pub fn new(id: &str) -> Self {
        Self { id: id.into(), ..Self::default() }
    }

    /// Serves `files` under `name`; a path that ends in `/` is a directory.
    pub fn serve(&self, name: &str, files: &[(&str, &str)]) {
        let entry = |(path, content): &(&str, &str)| {
            let dir = path.ends_with('/');
            let mode = if dir { go_mode::DIR | 0o755 } else { 0o644 };
            let size = if dir { 0 } else { content.len() as i64 };
            // The content decides about the time, so that what changes is seen to change.
            let mod_time = 1_600_000_000_000_000_000 + content.bytes().map(i64::from).sum::<i64>() * 1_000_000_000;
            let path = path.trim_end_matches('/').to_owned();
            (Stat { path, mode, size, mod_time, ..Stat::default() }, Bytes::from((*content).to_owned()))
        };
        self.dirs.lock().unwrap().insert(name.into(), files.iter().map(entry).collect());
    }

    pub fn take_asked(&self) -> Vec<String> {
        let mut asked = std::mem::take(&mut *self.asked.lock().unwrap());
        asked.sort();
        asked
    }
}

fn unimplemented<T>() -> Result<T> {
    Err(Fault::new(Kind::Unimplemented, "not in this test"))
}

#[async_trait]
impl Session for Client {
    fn id(&self) -> &str {
        &self.id
    }
    fn shared_key(&self) -> &str {
        "shared"
    }
    fn supports(&self, _: &str) -> bool {
        true
    }
    async fn closed(&self) {
        std::future::pending().await
    }
    async fn files(&self, request: FilesRequest) -> Result<Box<dyn FileStream>> {
        self.requests.lock().unwrap().push(request.clone());
        let found = self.dirs.lock().unwrap().get(&request.name).cloned();
        let entries = found.ok_or_else(|| Fault::new(Kind::NotFound, format!("no access allowed to dir {:?}", request.name)))?;
        Ok(Box::new(send(entries, self.asked.clone())))
    }
    async fn upload(&self, _: usize, _: &BTreeMap<String, String>) -> Result<Box<dyn Upload>> {
        unimplemented()
    }
    async fn upload_tree(&self, _: usize, _: &BTreeMap<String, String>, _: bool) -> Result<Box<dyn FileStream>> {
        unimplemented()
    }
    async fn secret(&self, id: &str) -> Result<Option<Bytes>> {
        Ok(self.secrets.get(id).cloned())
    }
    async fn ssh_available(&self, _: &str) -> Result<bool> {
        unimplemented()
    }
    async fn ssh(&self, _: &str) -> Result<Box<dyn Duplex>> {
        unimplemented()
    }
    async fn credentials(&self, _: &str) -> Result<Credentials> {
        Ok(Credentials::default())
    }
    async fn fetch_token(&self, _: TokenRequest) -> Result<Token> {
        unimplemented()
    }
    async fn token_authority(&self, _: &str, _: &[u8]) -> Result<Option<Bytes>> {
        Ok(None)
    }
    async fn verify_token_authority(&self, _: &str, _: &[u8], _: &[u8]) -> Result<Bytes> {
        unimplemented()
    }
    fn content(&self, store_id: &str) -> Arc<dyn ContentStore> {
        let prefix = format!("{store_id}/");
        let blobs = self.blobs.lock().unwrap();
        let own = blobs.iter().filter_map(|(key, data)| Some((key.strip_prefix(&prefix)?.to_owned(), data.clone())));
        Arc::new(Blobs(own.collect()))
    }
    async fn pull_upload(&self, id: &str) -> Result<Box<dyn Download>> {
        let found = self.uploads.get(id.trim_start_matches('/')).cloned();
        Ok(Box::new(Whole(Some(found.ok_or_else(|| Fault::new(Kind::NotFound, "no such upload"))?))))
    }
    async fn find_exporters(&self, _: &BTreeMap<String, Bytes>, _: &[String]) -> Result<Vec<ExporterRequest>> {
        unimplemented()
    }
    async fn finalize_export(&self, _: &BTreeMap<String, String>) -> Result<()> {
        unimplemented()
    }
}

struct Blobs(HashMap<String, Bytes>);

#[async_trait]
impl ContentStore for Blobs {
    async fn size(&self, digest: &Digest) -> Result<Option<u64>> {
        Ok(self.0.get(digest.as_str()).map(|b| b.len() as u64))
    }
    async fn read(&self, digest: &Digest, offset: u64) -> Result<Box<dyn Download>> {
        let data = self.0.get(digest.as_str()).ok_or_else(|| Fault::new(Kind::NotFound, format!("content {digest}: not found")))?;
        Ok(Box::new(Whole(Some(data.slice(offset as usize..)))))
    }
    async fn write(&self, _: &Digest, _: u64) -> Result<Option<Box<dyn Upload>>> {
        unimplemented()
    }
}

struct Whole(Option<Bytes>);

#[async_trait]
impl Download for Whole {
    async fn read(&mut self) -> Result<Option<Bytes>> {
        Ok(self.0.take())
    }
}

struct Wire(mpsc::UnboundedSender<Packet>, mpsc::UnboundedReceiver<Packet>);
struct Out(mpsc::UnboundedSender<Packet>);
struct In(mpsc::UnboundedReceiver<Packet>);

/// The sender's half of the protocol.
fn send(entries: Vec<(Stat, Bytes)>, asked: Arc<Mutex<Vec<String>>>) -> Wire {
    let (to_client, mut inbox) = mpsc::unbounded_channel();
    let (outbox, from_client) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        for (stat, _) in &entries {
            let _ = outbox.send(Packet::Stat(stat.clone()));
        }
        let _ = outbox.send(Packet::StatEnd);
        while let Some(packet) = inbox.recv().await {
            match packet {
                Packet::Request { id } => {
                    let (stat, data) = &entries[id as usize];
                    asked.lock().unwrap().push(stat.path.clone());
                    for chunk in data.chunks(32 << 10) {
                        let _ = outbox.send(Packet::Data { id, data: data.slice_ref(chunk) });
                    }
                    let _ = outbox.send(Packet::Data { id, data: Bytes::new() });
                }
                Packet::Fin => {
                    let _ = outbox.send(Packet::Fin);
                    return;
                }
                _ => return,
            }
        }
    });
    Wire(to_client, from_client)
}

#[async_trait]
impl FileStream for Wire {
    async fn send(&mut self, packet: Packet) -> Result<()> {
        let _ = self.0.send(packet);
        Ok(())
    }
    async fn receive(&mut self) -> Result<Option<Packet>> {
        Ok(self.1.recv().await)
    }
    fn split(self: Box<Self>) -> (Box<dyn PacketSink>, Box<dyn PacketSource>) {
        (Box::new(Out(self.0)), Box::new(In(self.1)))
    }
}

#[async_trait]
impl PacketSink for Out {
    async fn send(&mut self, packet: Packet) -> Result<()> {
        let _ = self.0.send(packet);
        Ok(())
    }
}

#[async_trait]
impl PacketSource for In {
    async fn receive(&mut self) -> Result<Option<Packet>> {
        Ok(self.0.recv().await)
    }
}
