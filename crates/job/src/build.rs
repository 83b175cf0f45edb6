//! One build, from its request to its response.
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::SystemTime;

use bytes::Bytes;
use engine::{Built, Job};
use fault::{Fault, Kind, Result};
use frontend::bridge::CacheImport;
use frontend::{Bridge, Outcome, Ref, SolveRequest};
use layers::Layer;
use llb::{Graph, Op};
use oci::Digest;
use progress::{Reporter, Sink, Update, Vertex};
use session::{Group, Session};
use task::{Cancel, CancelOnDrop};
use tokio::sync::{OnceCell, watch};
use worker::Worker;

use crate::api::{Request, Response, Sessions};
use crate::attest::Attests;
use crate::bridge::BuildBridge;
use crate::builds::Settings;
use crate::caches::Imports;
use crate::gateway::Gateway;
use crate::history::{Findings, Record};
use crate::progress_hub::{Hub, Spool};
use crate::provenance::{self, Machine, Producers, Scope, Traced};
use crate::reference::BuildRef;
use crate::why::{self, Circumstances, Inquiry, Likes};
use crate::{caches, entitlement, exports};

pub struct Build {
    pub(crate) request: Request,
    pub(crate) worker: Arc<Worker>,
    pub(crate) settings: Arc<Settings>,
    sessions: Arc<dyn Sessions>,
    pub(crate) group: Group,
    pub(crate) cancel: Cancel,
    hub: Hub,
    pub(crate) job: Job,
    session: OnceCell<Option<Arc<dyn Session>>>,
    /// What the client of a client-driven build returned.
    returned: Arc<watch::Sender<Option<Result<Outcome>>>>,
    granted: entitlement::Granted,
    /// What is learned about the results, for the build's record in the history.
    pub(crate) findings: Arc<Findings>,
    inquiry: Arc<Inquiry>,
    counter: std::sync::atomic::AtomicU64,
    /// Refs given out, so that one that comes back is known again.
    refs: Mutex<HashMap<String, Weak<BuildRef>>>,
    /// Who asked for what, for provenance.
    scope: Arc<Scope>,
    machine: Machine,
    unique_id: String,
    started: SystemTime,
    finished: OnceLock<SystemTime>,
    /// What failed steps left behind, by the ids that the client knows.
    kept: Mutex<HashMap<String, Layer>>,
    pub(crate) imports: Imports,
}

impl Build {
    /// `producers` knows who made what among the builds of the daemon.
    /// `spool` takes what is too much output for memory.
    pub fn new(
        request: Request,
        worker: Arc<Worker>,
        sessions: Arc<dyn Sessions>,
        settings: Arc<Settings>,
        producers: Producers,
        spool: Spool,
    ) -> Result<Arc<Self>> {
        let request = without_detour(request);
        let granted = entitlement::Granted::new(&request.entitlements, &settings.entitlements)?;
        let (hub, cancel, group) = (Hub::with(spool), Cancel::new(), Group::default());
        let asked =
            provenance::Request { frontend: request.frontend.clone(), opts: request.frontend_attrs.clone(), inputs: request.inputs() };
        let unique_id = worker.layers().new_id().to_string();
        Ok(Arc::new_cyclic(|build: &Weak<Self>| {
            let nested = Arc::new(crate::nested::Steps(build.clone()));
            let job = worker.engine().job_with(&request.id, Arc::new(hub.clone()), group.clone(), nested, cancel.clone());
            let inquiry = Arc::new(Inquiry::new(&request.id));
            if !request.internal {
                job.tell(inquiry.clone());
            }
            Self {
                request,
                worker,
                settings,
                sessions,
                group,
                cancel,
                hub,
                job,
                session: OnceCell::new(),
                returned: Arc::new(watch::channel(None).0),
                granted,
                findings: Arc::default(),
                inquiry,
                counter: Default::default(),
                refs: Mutex::default(),
                scope: Scope::root(asked, producers),
                machine: Machine::default(),
                unique_id,
                started: SystemTime::now(),
                finished: OnceLock::new(),
                kept: Mutex::default(),
                imports: Imports::default(),
            }
        }))
    }

    /// What the history says of the build while it runs.
    pub fn record(&self) -> Record {
        let Request { id, frontend, frontend_attrs, exporters, .. } = &self.request;
        Record { frontend: frontend.clone(), frontend_attrs: frontend_attrs.clone(), exporters: exporters.clone(), ..Record::begun(id) }
    }

    /// Finds out why steps ran that had run before, and puts that into the build's findings.
    pub async fn explain_misses(self: &Arc<Self>, likes: &Likes) {
        let (build, likes) = (self.clone(), likes.clone());
        let explained = task::blocking(move || {
            let circumstances = Circumstances { project: build.project(), attrs: Some(&build.request.frontend_attrs) };
            let misses = build.inquiry.conclude(&likes, &circumstances);
            if !misses.is_empty() {
                build.findings.note(why::RESPONSE_KEY, serde_json::to_string(&misses).map_err(|e| Fault::internal(e.to_string()))?);
            }
            Ok(())
        });
        if let Err(fault) = explained.await {
            tracing::warn!(%fault, build = self.request.id, "why steps missed the cache could not be told");
        }
    }

    /// What tells the project that is built from others: where its sources come from, and the file that says how.
    fn project(&self) -> String {
        let attr = |name: &str| self.request.frontend_attrs.get(name).map(String::as_str);
        let session = || self.session.get().and_then(|session| Some(session.as_ref()?.shared_key().to_owned()));
        let place = attr("vcs:source").or(attr("context")).map(str::to_owned).or_else(session).unwrap_or_default();
        format!("{place}#{}", attr("filename").unwrap_or_default())
    }

    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    pub fn cancel(&self, reason: &str) {
        self.cancel.cancel(reason);
    }

    /// How the build ends when its client leaves it.
    pub fn cancelled(&self) -> Fault {
        self.cancel("context canceled");
        self.cancel.fault()
    }

    /// Cancels what still runs and lets go of what the client returned: its refs hold the build, and with it every layer.
    pub fn end(&self) {
        self.cancel("context canceled");
        self.returned.send_replace(None);
        self.drop_imports();
    }

    /// What the client drives the build with, if it does.
    pub fn gateway(self: Arc<Self>) -> Option<Arc<dyn Gateway>> {
        self.request.client_driven().then(|| Arc::new(crate::driven::Driven::new(self)) as Arc<dyn Gateway>)
    }

    pub(crate) fn returned(&self) -> &Arc<watch::Sender<Option<Result<Outcome>>>> {
        &self.returned
    }

    pub async fn run(self: &Arc<Self>) -> Result<Response> {
        let _cancel = CancelOnDrop::new(self.cancel.clone(), "context canceled");
        tokio::select! {
            outcome = self.cancel.run(self.run_to_response()) => outcome,
            never = self.machine.watch() => match never {},
        }
    }

    async fn run_to_response(self: &Arc<Self>) -> Result<Response> {
        let exporters = exports::resolve(self)?;
        let wanted = Attests::parse(&self.request.frontend_attrs)?;
        self.session().await?;
        let caches = caches::Exports::resolve(self)?;
        let outcome = self.outcome().await?;
        exports::run(self, outcome, &wanted, exporters, caches).await
    }

    /// The client's session, joined to the build by whoever asks first: a client that drives its build may ask for steps before its session is open.
    pub(crate) async fn session(&self) -> Result<Option<Arc<dyn Session>>> {
        self.session.get_or_try_init(|| self.open_session()).await.cloned()
    }

    /// A build without a session runs, but can ask its client nothing.
    async fn open_session(&self) -> Result<Option<Arc<dyn Session>>> {
        if self.request.session.is_empty() {
            return Ok(None);
        }
        match self.sessions.get(&self.request.session).await {
            Ok(session) => {
                self.group.add(session.clone());
                Ok(Some(session))
            }
            // Some clients name a session and never open it: only what needs it fails.
            Err(fault) if fault.kind() == Kind::NotFound || fault.kind() == Kind::Deadline => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    async fn outcome(self: &Arc<Self>) -> Result<Outcome> {
        let request = &self.request;
        if request.client_driven() {
            let mut returned = self.returned.subscribe();
            let outcome = returned.wait_for(Option::is_some).await.map_err(|_| self.cancel.fault())?.clone();
            return outcome.expect("waited for it");
        }
        let solve = SolveRequest {
            graph: request.definition.clone().map(Arc::new),
            frontend: request.frontend.clone(),
            frontend_opts: request.frontend_attrs.clone(),
            frontend_inputs: request.inputs(),
            // A frontend is told of them by its attributes.
            cache_imports: request.cache_imports.iter().map(|t| CacheImport { kind: t.kind.clone(), attrs: t.attrs.clone() }).collect(),
            ..SolveRequest::default()
        };
        let bridge: Arc<dyn Bridge> =
            Arc::new(BuildBridge::new(self.clone(), request.frontend_attrs.clone(), solve.frontend_inputs.clone(), self.scope.clone()));
        bridge.solve(solve).await
    }

    /// Checks what a graph may do and shows its vertices.
    pub(crate) fn admit(&self, graph: &Graph) -> Result<()> {
        graph.check_capabilities().map_err(|e| Fault::of(Kind::Unimplemented, e))?;
        for vertex in &graph.vertices {
            if let Op::Exec(op) = &vertex.op {
                self.granted.check(op, self.worker.devices())?;
            }
        }
        Ok(())
    }

    pub(crate) fn scope(&self) -> &Arc<Scope> {
        &self.scope
    }

    pub(crate) fn machine(&self) -> &Machine {
        &self.machine
    }

    /// 25 characters that no other build ever has.
    pub(crate) fn unique_id(&self) -> &str {
        &self.unique_id
    }

    pub(crate) fn started(&self) -> SystemTime {
        self.started
    }

    /// When the result was there; for all who ask the same time.
    pub(crate) fn finished(&self) -> SystemTime {
        *self.finished.get_or_init(SystemTime::now)
    }

    /// How a ref of this build came about.
    pub(crate) fn traced(&self, reference: &Arc<dyn Ref>) -> Option<Arc<Traced>> {
        let refs = self.refs.lock().expect("no holder of this lock panics");
        refs.get(reference.id()).and_then(Weak::upgrade).map(|known| known.traced().clone())
    }

    pub(crate) fn sessions(&self) -> &Arc<dyn Sessions> {
        &self.sessions
    }

    pub(crate) fn granted(&self) -> &entitlement::Granted {
        &self.granted
    }

    /// Keeps a layer until the build ends, and names it.
    pub(crate) fn keep(&self, layer: &Layer) -> String {
        let id = layer.id().to_string();
        self.kept.lock().expect("no holder of this lock panics").insert(id.clone(), layer.clone());
        id
    }

    pub(crate) fn kept(&self, id: &str) -> Option<Layer> {
        self.kept.lock().expect("no holder of this lock panics").get(id).cloned()
    }

    pub(crate) fn remember(&self, reference: &Arc<BuildRef>) {
        let mut refs = self.refs.lock().expect("no holder of this lock panics");
        // A client may drive a build for days; looked at each time that their number has doubled.
        if refs.len().is_power_of_two() {
            refs.retain(|_, known| known.strong_count() > 0);
        }
        refs.insert(reference.id().to_owned(), Arc::downgrade(reference));
    }

    /// The layer behind a ref of this build, solved if it was not yet.
    pub(crate) async fn layer_of(&self, reference: &Arc<dyn Ref>) -> Result<Option<Layer>> {
        Ok(self.result_of(reference).await?.layer)
    }

    /// [`Build::layer_of`], with what the result is known by.
    pub(crate) async fn result_of(&self, reference: &Arc<dyn Ref>) -> Result<Built> {
        if let Some(layer) = self.kept(reference.id()) {
            return Ok(Built { layer: Some(layer), keys: Vec::new() });
        }
        let known = self.refs.lock().expect("no holder of this lock panics").get(reference.id()).and_then(Weak::upgrade);
        match known {
            Some(reference) => reference.result().await,
            None => Err(Fault::new(Kind::NotFound, format!("no such ref: {}", reference.id()))),
        }
    }

    /// A number that is unique within the build.
    pub(crate) fn next_number(&self) -> u64 {
        self.counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }

    /// Runs `work` as a vertex of its own in the build's progress.
    pub(crate) async fn in_vertex<T>(&self, digest: Digest, name: &str, work: impl AsyncFnOnce(Reporter) -> Result<T>) -> Result<T> {
        self.hub.emit(Update::Announced(Vertex { digest: digest.clone(), inputs: Vec::new(), name: name.to_owned(), group: None }));
        self.hub.emit(Update::Started { vertex: digest.clone() });
        let outcome = work(Reporter::new(Arc::new(self.hub.clone()), digest.clone())).await;
        let error = outcome.as_ref().err().map(ToString::to_string);
        self.hub.emit(Update::Completed { vertex: digest, cached: false, error });
        outcome
    }

    /// A digest for a vertex that is no op.
    pub(crate) fn vertex_digest(&self, what: &str) -> Digest {
        Digest::of(format!("{}-{what}-{}", self.request.id, self.next_number()))
    }

    pub(crate) fn attrs(&self) -> &BTreeMap<String, String> {
        &self.request.frontend_attrs
    }
}

/// The built-in Dockerfile frontend may also be asked for as a gateway's source; it is no image then, unless a named context says so.
fn without_detour(mut request: Request) -> Request {
    let attrs = &mut request.frontend_attrs;
    let is_named = |key: &String| key == "context:dockerfile.v0" || key.starts_with("context:dockerfile.v0::");
    let detour = request.frontend == "gateway.v0" && attrs.get("source").is_some_and(|source| source == "dockerfile.v0");
    if detour && !attrs.keys().any(is_named) {
        attrs.remove("source");
        request.frontend = "dockerfile.v0".into();
    }
    request
}

/// Metadata keys that the client sees in the response.
pub(crate) fn response_metadata(metadata: &BTreeMap<String, Bytes>) -> BTreeMap<String, String> {
    let shown = metadata.iter().filter(|(key, _)| key.starts_with("frontend."));
    shown.map(|(key, value)| (key.clone(), String::from_utf8_lossy(value).into_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_frontend_is_no_image() {
        let request = |attrs: &[(&str, &str)]| {
            let attrs = attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            without_detour(Request { frontend: "gateway.v0".into(), frontend_attrs: attrs, ..Request::default() })
        };
        let direct = request(&[("source", "dockerfile.v0"), ("target", "x")]);
        assert_eq!((direct.frontend.as_str(), direct.frontend_attrs.len()), ("dockerfile.v0", 1));
        assert_eq!(request(&[("source", "dockerfile.v0"), ("context:dockerfile.v0::linux/amd64", "y")]).frontend, "gateway.v0");
        assert_eq!(request(&[("source", "docker/dockerfile:1")]).frontend, "gateway.v0");
    }
}
