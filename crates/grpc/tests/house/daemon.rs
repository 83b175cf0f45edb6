//! A daemon that does what a test tells it to.
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use client::Client;
use fault::{Fault, Kind, Result};
use frontend::bridge::{Build, SourceMeta};
use frontend::{Bridge, Outcome, ResolveRequest, SolveRequest};
use grpc::{Server, Sessions};
use job::board::Board;
use job::history::{Change, History, Listening, Parts, Query, Retention};
use job::progress_hub::Hub;
use job::trace::Spans;
use job::*;
use oci::Digest;
use session::Download;
use tokio::sync::{mpsc, oneshot};

pub struct Daemon {
    builds: Board<Running>,
    pub requests: Mutex<Vec<Request>>,
    /// What the driven build's bridge answers.
    pub outcome: Mutex<Option<Result<Outcome>>>,
    pub history: History,
    _dir: tempfile::TempDir,
}

struct Running {
    hub: Hub,
    drive: Arc<Drive>,
}

pub struct Drive {
    build: Build,
    answer: Mutex<Option<Result<Outcome>>>,
    returned: Mutex<Option<oneshot::Sender<Result<Outcome>>>>,
}

impl Default for Daemon {
    fn default() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let db = kv::Db::open(&dir.path().join("db"), kv::Options::default()).unwrap();
        let content = content::Store::open(dir.path(), db.clone()).unwrap();
        let history = History::open(Parts { db, content, encoding: Arc::<grpc::WireEncoding>::default(), retention: Retention::default() });
        Self { builds: Board::default(), requests: Mutex::default(), outcome: Mutex::default(), history, _dir: dir }
    }
}

impl Daemon {
    pub fn running(&self) -> usize {
        self.builds.len()
    }

    pub fn hub(&self, build: &str) -> Hub {
        self.builds.get(build).unwrap().hub.clone()
    }
}

/// Every build comes at some time, but for that of `nobody`.
fn patience(build: &str) -> Duration {
    if build == "nobody" { Duration::ZERO } else { Duration::from_secs(60) }
}

/// A server with this daemon, its sessions, and a connected client.
pub async fn house() -> (Arc<Daemon>, Sessions, Client) {
    let (daemon, sessions) = (Arc::new(Daemon::default()), Sessions::new());
    let server = Server::new(daemon.clone(), sessions.clone());
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    server.connection(ours);
    (daemon, sessions, Client::new(wire::connect(theirs).await.unwrap()))
}

#[async_trait]
impl Service for Daemon {
    async fn solve(&self, request: Request) -> Result<Response> {
        self.requests.lock().unwrap().push(request.clone());
        let (sender, returned) = oneshot::channel();
        let build = Build {
            gateway_caps: frontend::GATEWAY_CAPABILITIES.iter().copied().collect(),
            llb_caps: llb::CAPABILITIES.iter().copied().collect(),
            ..Build::default()
        };
        let drive = Arc::new(Drive { build, answer: Mutex::new(self.outcome.lock().unwrap().take()), returned: Mutex::new(Some(sender)) });
        let running = Arc::new(Running { hub: Hub::new(), drive });
        let exists = || Fault::new(Kind::AlreadyExists, format!("job ID {} exists", request.id));
        let place = self.builds.add(&request.id, running.clone()).ok_or_else(exists)?;
        let outcome = returned.await.map_err(|_| Fault::internal("dropped"))?;
        running.hub.close();
        // A watcher that comes late still finds the build.
        task::spawn("linger", async move {
            std::future::pending::<()>().await;
            drop(place);
        });
        let metadata = outcome?.metadata;
        Ok(Response { exporter: metadata.into_iter().map(|(k, v)| (k, String::from_utf8(v.to_vec()).unwrap())).collect() })
    }

    async fn progress(&self, build: &str) -> Result<Progress> {
        let found = self.builds.wait(build, patience(build)).await;
        Ok(Progress::Live(found.ok_or_else(|| Fault::new(Kind::NotFound, format!("no such job {build}")))?.hub.watch()))
    }

    async fn listen_history(&self, query: Query) -> Result<Listening> {
        self.history.listen(query).await
    }

    async fn update_history(&self, build: &str, change: Change) -> Result<()> {
        self.history.update(build, change).await
    }

    fn spans(&self) -> &Spans {
        self.history.spans()
    }

    async fn gateway(&self, build: &str) -> Result<Arc<dyn Gateway>> {
        let found = self.builds.wait(build, patience(build)).await;
        Ok(found.ok_or_else(|| Fault::new(Kind::NotFound, format!("no such job {build}")))?.drive.clone())
    }

    fn version(&self) -> Version {
        Version { package: "p".into(), version: "v0.32.0+kiln.0".into(), revision: "r".into(), dockerfile: "1.2".into() }
    }

    async fn workers(&self, _: bool) -> Result<Vec<Worker>> {
        let platforms = vec![oci::Platform::new("linux", "amd64", "")];
        let labels = BTreeMap::from([("a.b".to_owned(), "c".to_owned())]);
        let gc = PruneRule { keep_duration: Duration::from_secs(1), ..PruneRule::default() };
        Ok(vec![Worker { id: "w".into(), labels, platforms, gc_policy: vec![gc], devices: vec![] }])
    }

    async fn disk_usage(&self, _: UsageQuery) -> Result<Vec<UsageRecord>> {
        Ok(vec![record("a"), record("b")])
    }

    async fn prune(&self, _: PruneRule, deleted: mpsc::Sender<UsageRecord>) -> Result<()> {
        deleted.send(record("a")).await.unwrap();
        Err(Fault::new(Kind::Unknown, "no more"))
    }

    fn blobs(&self) -> Arc<dyn Blobs> {
        Arc::new(OneBlob)
    }
}

fn record(id: &str) -> UsageRecord {
    UsageRecord {
        deduplicated: 0,
        id: id.into(),
        parents: vec![],
        mutable: false,
        in_use: false,
        size: 7,
        created_at: SystemTime::UNIX_EPOCH,
        last_used_at: None,
        usage_count: 1,
        description: "d".into(),
        record_type: "regular".into(),
        shared: false,
    }
}

#[async_trait]
impl Gateway for Drive {
    fn bridge(&self) -> Arc<dyn Bridge> {
        let answer = self.answer.lock().unwrap().take();
        Arc::new(OneAnswer { build: self.build.clone(), answer: Mutex::new(answer) })
    }

    async fn finish(&self, outcome: Result<Outcome>) -> Result<()> {
        let returned = self.returned.lock().unwrap().take();
        let returned = returned.ok_or_else(|| Fault::new(Kind::AlreadyExists, "gateway result is already set"))?;
        let _ = returned.send(outcome);
        Ok(())
    }

    fn failed_result(&self, _: &str) -> Option<Arc<dyn frontend::Ref>> {
        None
    }

    async fn container(&self, _: ContainerRequest) -> Result<Arc<dyn Container>> {
        Ok(Arc::new(crate::processes::Cat))
    }
}

struct OneAnswer {
    build: Build,
    answer: Mutex<Option<Result<Outcome>>>,
}

#[async_trait]
impl Bridge for OneAnswer {
    fn build(&self) -> &Build {
        &self.build
    }

    async fn resolve_source(&self, request: ResolveRequest) -> Result<SourceMeta> {
        Ok(SourceMeta { op: request.op, ..SourceMeta::default() })
    }

    async fn solve(&self, _: SolveRequest) -> Result<Outcome> {
        self.answer.lock().unwrap().take().unwrap_or_else(|| Ok(Outcome::default()))
    }

    async fn inputs(&self) -> Result<BTreeMap<String, Arc<llb::Graph>>> {
        Ok(BTreeMap::new())
    }

    async fn warn(&self, _: progress::Warning) -> Result<()> {
        Ok(())
    }
}

/// Holds the blob `hello`.
struct OneBlob;

#[async_trait]
impl Blobs for OneBlob {
    async fn find(&self, digest: &Digest) -> Result<Option<Blob>> {
        let blob = Blob { digest: Digest::of("hello"), size: 5, created_at: SystemTime::UNIX_EPOCH, labels: BTreeMap::new() };
        Ok((*digest == blob.digest).then_some(blob))
    }

    async fn list(&self) -> Result<Vec<Blob>> {
        Ok(self.find(&Digest::of("hello")).await?.into_iter().collect())
    }

    async fn read(&self, digest: &Digest, offset: u64, _: Option<u64>) -> Result<Box<dyn Download>> {
        self.find(digest).await?.ok_or_else(|| Fault::new(Kind::NotFound, format!("content {digest}: not found")))?;
        Ok(Box::new(Rest(Some(bytes::Bytes::from_static(b"hello").slice(offset as usize..)))))
    }
}

struct Rest(Option<bytes::Bytes>);

#[async_trait]
impl Download for Rest {
    async fn read(&mut self) -> Result<Option<bytes::Bytes>> {
        Ok(self.0.take())
    }
}
