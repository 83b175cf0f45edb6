//! What may be asked of the daemon, in plain types. `grpc` and `dashboard` call [`Service`]; the daemon implements it, and so do fakes in tests.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use fault::Result;
use frontend::{ResolveRequest, SourceMeta};
use llb::SourceOp;
use llb::policy::Policy;
use oci::{Digest, Platform};
use serde::{Deserialize, Serialize};
use session::{Download, Session};
use tokio::sync::mpsc;

use crate::gateway::Gateway;
use crate::history::{Change, Listening, Query};
use crate::progress_hub::Watch;
use crate::trace::{Parent, Spans};

/// The daemon, as its doors see it.
#[async_trait]
pub trait Service: Send + Sync {
    /// Runs a build to its end. Dropping the future cancels the build. `AlreadyExists` with `job ID X exists` while a build of that id runs.
    ///
    /// With neither frontend nor definition the client drives the build through [`Service::gateway`], and this waits for what the client returns.
    async fn solve(&self, request: Request) -> Result<Response>;

    /// Everything that the build reports or, if it is one of the past, reported. Waits 6 s for the build to appear, as clients ask for it and start it side
    /// by side; then `NotFound` with `no such job X`.
    async fn progress(&self, build: &str) -> Result<Progress>;

    /// What a client drives a build of its own with. Waits 3 s for the build to appear; then `NotFound` with `no such job X`.
    async fn gateway(&self, build: &str) -> Result<Arc<dyn Gateway>>;

    fn version(&self) -> Version;

    /// All workers, the default one first. `rescan` looks for platforms that became executable since.
    async fn workers(&self, rescan: bool) -> Result<Vec<Worker>>;

    async fn disk_usage(&self, query: UsageQuery) -> Result<Vec<UsageRecord>>;

    /// Deletes what the rule selects and sends each deleted record. A closed receiver ends the pruning.
    async fn prune(&self, rule: PruneRule, deleted: mpsc::Sender<UsageRecord>) -> Result<()>;

    async fn listen_history(&self, query: Query) -> Result<Listening>;

    /// Durable when it returns.
    async fn update_history(&self, build: &str, change: Change) -> Result<()>;

    /// Where spans that clients send are kept for the builds they belong to.
    fn spans(&self) -> &Spans;

    /// The daemon's blobs, including those of the history.
    fn blobs(&self) -> Arc<dyn Blobs>;
}

/// What a build reports.
pub enum Progress {
    /// As it happens, from the beginning on.
    Live(Watch),
    /// The log of a build of the past ([`crate::history::LOG`]).
    Stored(Box<dyn Download>),
}

/// Where the daemon finds its clients' tunnels.
#[async_trait]
pub trait Sessions: Send + Sync {
    /// The session with this id (a `prefix:` is ignored), waiting a few seconds for it to appear: clients open their session and start their build side
    /// by side. `NotFound` with `no active session for X: …` after that.
    async fn get(&self, id: &str) -> Result<Arc<dyn Session>>;

    /// The source policy that the session with this id speaks for; found like [`Sessions::get`] finds sessions.
    async fn verifier(&self, id: &str) -> Result<Arc<dyn Verifier>>;
}

/// A client's own judgement of sources.
#[async_trait]
pub trait Verifier: Send + Sync {
    /// `meta` is what is known of the source so far; at first nothing but the op.
    async fn check(&self, platform: Option<&Platform>, meta: &SourceMeta) -> Result<Verdict>;
}

#[derive(Debug, Clone)]
pub enum Verdict {
    Allow,
    /// `action` is what the client called it.
    Deny {
        action: String,
        messages: Vec<String>,
    },
    Convert(SourceOp),
    /// More must be known of the source first.
    Resolve(Box<ResolveRequest>),
}

/// One build, as its client wants it. Legacy fields of the wire are already folded into the current ones.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Request {
    /// Chosen by the client; unique among running builds.
    pub id: String,
    /// May be empty.
    pub session: String,
    /// What to build, where the client made the graph itself.
    pub definition: Option<llb::Graph>,
    /// The frontend that makes the graph; empty for none.
    pub frontend: String,
    pub frontend_attrs: BTreeMap<String, String>,
    pub frontend_inputs: BTreeMap<String, llb::Graph>,
    pub exporters: Vec<Typed>,
    /// The client may add exporters through its session.
    pub session_exporters: bool,
    pub cache_exports: Vec<Typed>,
    pub cache_imports: Vec<Typed>,
    /// What the client grants, still in text form.
    pub entitlements: Vec<String>,
    /// Leaves no trace in history and metrics.
    pub internal: bool,
    pub source_policy: Option<Policy>,
    /// The session that verifies sources; empty for none.
    pub policy_session: String,
    /// One of 10, 20, 30; 30 is current.
    pub compatibility: u32,
    pub proxy_network: bool,
    /// The client's span that asks for the build.
    pub parent: Option<Parent>,
}

impl Request {
    /// Whether the client drives the build through the gateway.
    pub fn client_driven(&self) -> bool {
        self.definition.is_none() && self.frontend.is_empty()
    }

    /// What the frontend, be it here or in the client, is given to build with.
    pub fn inputs(&self) -> BTreeMap<String, Arc<llb::Graph>> {
        self.frontend_inputs.iter().map(|(name, graph)| (name.clone(), Arc::new(graph.clone()))).collect()
    }
}

/// An exporter or a cache location: its type and its attributes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Typed {
    pub kind: String,
    pub attrs: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Response {
    /// What all exporters answered (later ones win), `frontend.` and `cache.` entries included.
    pub exporter: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Version {
    pub package: String,
    pub version: String,
    /// Never empty: drivers split `--version` at blanks.
    pub revision: String,
    pub dockerfile: String,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Worker {
    pub id: String,
    pub labels: BTreeMap<String, String>,
    /// The native platform first.
    pub platforms: Vec<Platform>,
    pub gc_policy: Vec<PruneRule>,
    pub devices: Vec<Device>,
}

/// A CDI device that steps may ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    pub name: String,
    pub auto_allow: bool,
    pub annotations: BTreeMap<String, String>,
    pub on_demand: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsageQuery {
    /// Filter texts; a record passes if any of them matches, or if there are none.
    pub filters: Vec<String>,
    /// Only records not used for this long.
    pub age_limit: Option<Duration>,
}

/// One record of the build cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageRecord {
    pub id: String,
    pub parents: Vec<String>,
    pub mutable: bool,
    pub in_use: bool,
    /// Bytes.
    pub size: i64,
    pub created_at: SystemTime,
    pub last_used_at: Option<SystemTime>,
    pub usage_count: u64,
    pub description: String,
    /// `regular`, `source.local`, `exec.cachemount`, …
    pub record_type: String,
    pub shared: bool,
    /// Bytes in common with other records that are counted there.
    pub deduplicated: i64,
}

/// What to delete, and how much to keep. Sizes in bytes, 0 for no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PruneRule {
    pub filters: Vec<String>,
    pub all: bool,
    pub keep_duration: Duration,
    pub reserved_space: i64,
    pub max_used_space: i64,
    pub min_free_space: i64,
}

/// Read access to blobs by digest.
#[async_trait]
pub trait Blobs: Send + Sync {
    async fn find(&self, digest: &Digest) -> Result<Option<Blob>>;
    async fn list(&self) -> Result<Vec<Blob>>;
    /// Streams `length` bytes from `offset`, or to the end. `NotFound`, `OutOfRange`.
    async fn read(&self, digest: &Digest, offset: u64, length: Option<u64>) -> Result<Box<dyn Download>>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    pub created_at: SystemTime,
    pub labels: BTreeMap<String, String>,
}
