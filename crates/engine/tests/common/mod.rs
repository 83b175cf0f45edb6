//! A place where steps run that only pretends to, over real layers; needs root, as overlay trees do.
#![allow(dead_code)]
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use engine::{CacheMap, Context, Engine, Execute, InputMap, Options};
use fault::{Fault, Kind, Result};
use layers::{Layer, LayerId, Layers, Properties};
use llb::{Builder, Edge, Graph, Metadata, Op, SourceOp, Vertex};
use oci::Digest;
use progress::{Sink, Update};
use session::*;
use tokio::sync::{Notify, Semaphore};

/// Directories that outlive an engine.
pub struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// Everything below the engine, opened as by a new process.
    pub fn open(&self, options: Options) -> House {
        let root = self.dir.path();
        let db = kv::Db::open(&root.join("db"), kv::Options::default()).unwrap();
        let content = content::Store::open_as_of_boot(&root.join("content"), db.clone(), "this boot").unwrap();
        let trees = snapshot::Store::open(&root.join("trees"), snapshot::Options::default()).unwrap();
        let layers = Layers::open_as_of_boot(db.clone(), content, trees, "this boot").unwrap();
        let fake = Arc::new(Fake::new(layers));
        let engine = Engine::new(fake.clone(), cache::Index::new(db), options);
        House { fake, engine }
    }
}

pub struct House {
    pub fake: Arc<Fake>,
    pub engine: Engine,
}

/// What a step's name makes it do, by prefix: `fail`, `panic`, `scratch`; a name in `gates` waits to be let through.
pub struct Fake {
    pub layers: Layers,
    pub runs: Mutex<Vec<String>>,
    pub stopped: Mutex<Vec<String>>,
    pub gates: Mutex<HashMap<String, Arc<Semaphore>>>,
    pub lost: Mutex<HashSet<LayerId>>,
    pub sessions: Mutex<Vec<Group>>,
    pub changed: Notify,
}

impl Fake {
    fn new(layers: Layers) -> Self {
        Self {
            layers,
            runs: Mutex::default(),
            stopped: Mutex::default(),
            gates: Mutex::default(),
            lost: Mutex::default(),
            sessions: Mutex::default(),
            changed: Notify::new(),
        }
    }

    pub fn gate(&self, name: &str) -> Arc<Semaphore> {
        self.gates.lock().unwrap().entry(name.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(0))).clone()
    }

    pub fn ran(&self) -> Vec<String> {
        self.runs.lock().unwrap().clone()
    }

    /// Waits until `holds`; the steps say when something changed.
    pub async fn until(&self, holds: impl Fn(&Self) -> bool) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if holds(self) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(120), wait).await.expect("the awaited state within two minutes");
    }

    pub async fn until_runs(&self, name: &str) {
        self.until(|f| f.ran().iter().any(|n| n == name)).await;
    }
}

#[async_trait]
impl Execute for Fake {
    async fn cache_map(&self, vertex: &Arc<Vertex>, _: usize, _: &Context) -> Result<CacheMap> {
        if vertex.name.starts_with("unresolvable") {
            return Err(Fault::new(Kind::NotFound, "no such image"));
        }
        let content = vertex.name.contains("by content");
        let selector = content.then(|| Digest::of("/"));
        let inputs = vertex.inputs.iter().map(|_| InputMap { selector: selector.clone(), content }).collect();
        // What follows a `#` tells vertices apart but not their keys.
        let key = Digest::of(vertex.name.split('#').next().unwrap());
        let digest = if vertex.name.starts_with("local") { Digest::of(&vertex.name).into_random() } else { key };
        Ok(CacheMap { digest, inputs, more: false })
    }

    async fn content_digest(&self, vertex: &Arc<Vertex>, _: usize, layer: Option<&Layer>, _: &Context) -> Result<Digest> {
        if vertex.name.contains("missing") {
            return Err(Fault::new(Kind::NotFound, "\"/x\": not found"));
        }
        Ok(Digest::of(layer.map_or_else(String::new, Layer::description)))
    }

    async fn run(&self, vertex: &Arc<Vertex>, inputs: Vec<Option<Layer>>, context: &Context) -> Result<Vec<Option<Layer>>> {
        self.runs.lock().unwrap().push(vertex.name.clone());
        self.sessions.lock().unwrap().push(context.sessions.clone());
        self.changed.notify_waiters();
        context.reporter.log(1, format!("{} speaks\n", vertex.name));
        let gate = self.gates.lock().unwrap().get(&vertex.name).cloned();
        if let Some(gate) = gate {
            tokio::select! {
                permit = gate.acquire() => permit.unwrap().forget(),
                () = context.cancel.cancelled() => {
                    self.stopped.lock().unwrap().push(vertex.name.clone());
                    self.changed.notify_waiters();
                    return Err(context.cancel.fault());
                }
            }
        }
        match vertex.name.split(' ').next().unwrap() {
            "fail" => return Err(Fault::new(Kind::Unknown, "process \"x\" did not complete successfully: exit code: 1")),
            "panic" => panic!("as the test wants it"),
            "scratch" => return Ok(vec![None]),
            _ => {}
        }
        let parent = inputs.into_iter().next().flatten();
        let content = vertex.name.split('@').next().unwrap();
        let layer = self.layers.draft(parent.as_ref(), Properties::new(content))?.commit()?;
        Ok(vec![Some(layer)])
    }

    fn load(&self, id: &LayerId) -> Option<Layer> {
        if self.lost.lock().unwrap().contains(id) { None } else { self.layers.get(id).unwrap() }
    }

    fn is_limited(&self, _: &Vertex) -> bool {
        true
    }
}

/// A chain of steps with these names, the first on nothing.
pub fn chain(names: &[&str]) -> Arc<Graph> {
    let mut builder = Builder::new();
    let top = names.iter().fold(None, |below, name| Some(step(&mut builder, name, below.into_iter().collect())));
    Arc::new(builder.finish(top))
}

pub fn step(builder: &mut Builder, name: &str, inputs: Vec<Edge>) -> Edge {
    step_with(builder, name, inputs, Metadata::default())
}

pub fn step_with(builder: &mut Builder, name: &str, inputs: Vec<Edge>, metadata: Metadata) -> Edge {
    let op = SourceOp { identifier: name.into(), attrs: BTreeMap::new() };
    builder.add(Op::Source(op), inputs, None, vec![], metadata)
}

/// Keeps what it is told.
#[derive(Default)]
pub struct Notes(pub Mutex<Vec<Update>>);

impl Sink for Notes {
    fn emit(&self, update: Update) {
        self.0.lock().unwrap().push(update);
    }

    fn pass_on(&self, asked: &Digest, to: &dyn Sink, name: &Digest) -> bool {
        let told = self.0.lock().unwrap().clone();
        for update in told {
            if let Update::Log { vertex, stream, data } = update
                && vertex == *asked
            {
                to.emit(Update::Log { vertex: name.clone(), stream, data });
            }
        }
        true
    }
}

impl Notes {
    /// In short, with names for the vertices of `graph`.
    pub fn lines(&self, graph: &Graph) -> Vec<String> {
        let name = |digest: &Digest| graph.vertex(digest).map_or_else(|| digest.to_string(), |v| v.name.clone());
        let line = |update: &Update| match update {
            Update::Announced(v) => format!("{} announced", v.name),
            Update::Started { vertex } => format!("{} started", name(vertex)),
            Update::Completed { vertex, cached: true, .. } => format!("{} cached", name(vertex)),
            Update::Completed { vertex, error: Some(error), .. } => format!("{} failed: {error}", name(vertex)),
            Update::Completed { vertex, .. } => format!("{} completed", name(vertex)),
            Update::Status { vertex, id, .. } => format!("{} row {id}", name(vertex)),
            Update::Log { vertex, data, .. } => format!("{} log {}", name(vertex), String::from_utf8_lossy(data).trim()),
            Update::Warning(w) => format!("{} warning", name(&w.vertex)),
        };
        self.0.lock().unwrap().iter().map(line).collect()
    }
}

/// A session that is there and can do nothing.
pub struct Tunnel(pub String);

fn unimplemented<T>() -> Result<T> {
    Err(Fault::new(Kind::Unimplemented, "a test's session"))
}

#[async_trait]
impl Session for Tunnel {
    fn id(&self) -> &str {
        &self.0
    }
    fn shared_key(&self) -> &str {
        ""
    }
    fn supports(&self, _: &str) -> bool {
        false
    }
    async fn closed(&self) {
        std::future::pending().await
    }
    async fn files(&self, _: FilesRequest) -> Result<Box<dyn FileStream>> {
        unimplemented()
    }
    async fn upload(&self, _: usize, _: &BTreeMap<String, String>) -> Result<Box<dyn Upload>> {
        unimplemented()
    }
    async fn upload_tree(&self, _: usize, _: &BTreeMap<String, String>, _: bool) -> Result<Box<dyn FileStream>> {
        unimplemented()
    }
    async fn secret(&self, _: &str) -> Result<Option<Bytes>> {
        unimplemented()
    }
    async fn ssh_available(&self, _: &str) -> Result<bool> {
        unimplemented()
    }
    async fn ssh(&self, _: &str) -> Result<Box<dyn Duplex>> {
        unimplemented()
    }
    async fn credentials(&self, _: &str) -> Result<Credentials> {
        unimplemented()
    }
    async fn fetch_token(&self, _: TokenRequest) -> Result<Token> {
        unimplemented()
    }
    async fn token_authority(&self, _: &str, _: &[u8]) -> Result<Option<Bytes>> {
        unimplemented()
    }
    async fn verify_token_authority(&self, _: &str, _: &[u8], _: &[u8]) -> Result<Bytes> {
        unimplemented()
    }
    fn content(&self, _: &str) -> Arc<dyn ContentStore> {
        panic!("a test's session has no content")
    }
    async fn pull_upload(&self, _: &str) -> Result<Box<dyn Download>> {
        unimplemented()
    }
    async fn find_exporters(&self, _: &BTreeMap<String, Bytes>, _: &[String]) -> Result<Vec<ExporterRequest>> {
        unimplemented()
    }
    async fn finalize_export(&self, _: &BTreeMap<String, String>) -> Result<()> {
        unimplemented()
    }
}

pub fn sessions(ids: &[&str]) -> Group {
    Group::new(ids.iter().map(|id| Arc::new(Tunnel(id.to_string())) as Arc<dyn Session>))
}
