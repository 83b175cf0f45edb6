//! The builds that run, and the service that the porch talks to.
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fault::{Fault, Kind, Result};
use frontend::attestations::Generator;
use task::Drain;
use tokio::sync::{mpsc, watch};
use worker::Worker;

use crate::api::{self, Blobs, Progress, PruneRule, Request, Response, Service, Sessions, UsageQuery, UsageRecord, Version};
use crate::blobs::{self, ContentBlobs};
use crate::board::{Board, Place};
use crate::build::Build;
use crate::contained::FrontendDoor;
use crate::figures::Tally;
use crate::gateway::Gateway;
use crate::history::{Change, Encoding, Ended, History, Listening, Parts, Query, Recording, Retention};
use crate::progress_hub::{Hub, Spool};
use crate::provenance::Producers;
use crate::trace::Spans;
use crate::usage;
use crate::why::Likes;

/// How long a client's watch may come before its build.
const WATCH_WAIT: Duration = Duration::from_secs(6);
/// How long a client's gateway call may come before its build.
const GATEWAY_WAIT: Duration = Duration::from_secs(3);
/// How long an ended build can still be watched.
const AFTERGLOW: Duration = Duration::from_secs(10);

/// What builds run with.
pub struct Settings {
    pub version: Version,
    /// Entitlements that the operator grants: `network.host`, `security.insecure`, `device`.
    pub entitlements: Vec<String>,
    /// Steps of all builds reach the network through the proxy only.
    pub proxy_network: bool,
    pub dockerfile_enabled: bool,
    pub gateway_enabled: bool,
    /// Repositories whose images may be frontends; none means all.
    pub gateway_sources: Vec<String>,
    /// How frontends in containers are served.
    pub frontend_door: Arc<dyn FrontendDoor>,
    /// What the operator wants provenance to say of the builder.
    pub provenance_env: serde_json::Map<String, serde_json::Value>,
    /// Who makes bills of materials where a client names nobody.
    pub sbom_generator: Generator,
    /// Which builds of the past are remembered.
    pub retention: Retention,
}

/// All builds of a daemon.
pub struct Builds {
    worker: Arc<Worker>,
    sessions: Arc<dyn Sessions>,
    settings: Arc<Settings>,
    running: Board<Build>,
    /// What was reported of builds that have just ended.
    ended: Board<Hub>,
    producers: Producers,
    history: History,
    spool: Spool,
    tally: Arc<Tally>,
    drain: Drain,
}

impl Builds {
    /// Must be called within a runtime. `encoding` is how the history's blobs are written.
    pub fn new(worker: Arc<Worker>, sessions: Arc<dyn Sessions>, settings: Settings, encoding: Arc<dyn Encoding>) -> Self {
        let retention = settings.retention;
        let history = History::open(Parts { db: worker.db().clone(), content: worker.content().clone(), encoding, retention });
        Self {
            spool: Spool::new(worker.content().clone()),
            worker,
            sessions,
            settings: Arc::new(settings),
            running: Board::default(),
            ended: Board::default(),
            producers: Producers::default(),
            history,
            tally: Arc::default(),
            drain: Drain::new(),
        }
    }

    /// A build that runs, has just ended, or is in the history.
    async fn known(&self, id: &str) -> Result<Option<Progress>> {
        if let Some(build) = self.running.get(id) {
            return Ok(Some(Progress::Live(build.hub().watch())));
        }
        if let Some(hub) = self.ended.get(id) {
            return Ok(Some(Progress::Live(hub.watch())));
        }
        let (history, content, id) = (self.history.clone(), self.worker.content().clone(), id.to_owned());
        task::blocking(move || {
            let logs = history.record(&id)?.and_then(|record| record.logs);
            logs.map(|logs| Ok(Progress::Stored(blobs::download(&content, &logs.digest, 0, None)?))).transpose()
        })
        .await
    }

    pub(crate) fn worker(&self) -> &Worker {
        &self.worker
    }

    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    pub(crate) fn running_builds(&self) -> Vec<Arc<Build>> {
        self.running.all()
    }

    /// How many builds run now.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// How many builds run, now and after each change.
    pub fn running_count(&self) -> watch::Receiver<usize> {
        self.running.count()
    }

    /// Cancels every build.
    pub fn cancel_all(&self, reason: &str) {
        for build in self.running.all() {
            build.cancel(reason);
        }
    }

    /// Ends the streams of those who listen to the history: they would keep the daemon from ending.
    pub fn dismiss_listeners(&self) {
        self.history.dismiss();
    }

    /// Writes what is left to write, and waits until everything acknowledged survives a kill.
    pub async fn flush(&self) {
        self.drain.wait().await;
        self.history.settle().await;
        if let Err(fault) = self.worker.layers().flush().await {
            tracing::error!(%fault, "failed to write the last records");
        }
    }

    /// Takes away what the worker keeps ready for steps. No build may come any more.
    pub async fn close(&self) {
        self.worker.close().await;
    }
}

fn linger(ended: &Board<Hub>, id: &str, hub: Hub) {
    let place = ended.replace(id, Arc::new(hub)).0;
    task::spawn("ended build", async move {
        tokio::time::sleep(AFTERGLOW).await;
        drop(place);
    });
}

/// Ends a build however its future ends.
struct Ending<'a> {
    drain: &'a Drain,
    last: Option<Last>,
}

/// What is to be done when a build has ended.
struct Last {
    place: Place<Build>,
    id: String,
    ended: Board<Hub>,
    /// `None` for internal builds.
    recording: Option<Recording>,
    likes: Likes,
    tally: Arc<Tally>,
    layers: layers::Layers,
}

impl Ending<'_> {
    async fn finish(mut self, outcome: Result<Response>) -> Result<Response> {
        let last = self.last.take().expect("taken once, here or in drop");
        last.finish(outcome).await
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if let Some(last) = self.last.take() {
            let cancelled = Err(last.place.entry().cancelled());
            last.close();
            self.drain.spawn("record of a cancelled build", last.finish(cancelled));
        }
    }
}

impl Last {
    fn close(&self) {
        let build = self.place.entry();
        build.end();
        build.hub().close();
    }

    async fn finish(self, outcome: Result<Response>) -> Result<Response> {
        self.close();
        let Self { place, id, ended, recording, likes, tally, layers } = self;
        let build = place.entry();
        if let Some(recording) = recording {
            build.explain_misses(&likes).await;
            let failure = outcome.as_ref().err().map(Fault::kind);
            let outcome = outcome.as_ref().map(|response| response.exporter.clone()).map_err(Clone::clone);
            let details = Ended { hub: build.hub().clone(), outcome, findings: build.findings.clone(), parent: build.request.parent };
            match recording.complete(details).await {
                Ok(record) => tally.add(&record, failure),
                Err(fault) => tracing::error!(%fault, build = id, "the build is missing in the history"),
            }
        }
        linger(&ended, &id, build.hub().clone());
        // What the client is told of survives a kill from here on; one commit for the build's records and for its place in the history.
        let flushed = layers.flush().await;
        drop(place);
        layers.collect_soon();
        match (outcome, flushed) {
            (Ok(_), Err(error)) => Err(error.into()),
            (outcome, _) => outcome,
        }
    }
}

#[async_trait]
impl Service for Builds {
    async fn solve(&self, request: Request) -> Result<Response> {
        let id = request.id.clone();
        let (producers, spool) = (self.producers.clone(), self.spool.clone());
        let build = Build::new(request, self.worker.clone(), self.sessions.clone(), self.settings.clone(), producers, spool)?;
        let place = self.running.add(&id, build.clone()).ok_or_else(|| Fault::new(Kind::AlreadyExists, format!("job ID {id} exists")))?;
        let recording = (!build.request.internal).then(|| self.history.begin(build.record()));
        let last = Last {
            place,
            id,
            ended: self.ended.clone(),
            recording,
            likes: self.history.likes().clone(),
            tally: self.tally.clone(),
            layers: self.worker.layers().clone(),
        };
        let ending = Ending { drain: &self.drain, last: Some(last) };
        let outcome = build.run().await;
        ending.finish(outcome).await
    }

    async fn progress(&self, id: &str) -> Result<Progress> {
        if let Some(progress) = self.known(id).await? {
            return Ok(progress);
        }
        // A short build may have ended before we are woken.
        let live = || self.running.get(id).map(|build| build.hub().watch()).or_else(|| self.ended.get(id).map(|hub| hub.watch()));
        match self.running.wait_for(WATCH_WAIT, live).await {
            Some(watch) => Ok(Progress::Live(watch)),
            None => self.known(id).await?.ok_or_else(|| no_such_job(id)),
        }
    }

    async fn listen_history(&self, query: Query) -> Result<Listening> {
        self.history.listen(query).await
    }

    async fn update_history(&self, build: &str, change: Change) -> Result<()> {
        self.history.update(build, change).await?;
        Ok(self.worker.layers().flush().await?)
    }

    fn spans(&self) -> &Spans {
        self.history.spans()
    }

    async fn gateway(&self, id: &str) -> Result<Arc<dyn Gateway>> {
        let build = self.running.wait(id, GATEWAY_WAIT).await.ok_or_else(|| no_such_job(id))?;
        build.gateway().ok_or_else(|| Fault::invalid(format!("build {id} is not driven by its client")))
    }

    fn version(&self) -> Version {
        self.settings.version.clone()
    }

    async fn workers(&self, rescan: bool) -> Result<Vec<api::Worker>> {
        let facts = self.worker.facts(rescan);
        let gc_policy = self.worker.gc_rules().iter().map(usage::policy).collect();
        let device =
            |d: worker::Device| api::Device { name: d.name, auto_allow: d.auto_allow, annotations: d.annotations, on_demand: false };
        let devices = facts.devices.into_iter().map(device).collect();
        Ok(vec![api::Worker { id: facts.id, labels: facts.labels, platforms: facts.platforms, gc_policy, devices }])
    }

    async fn disk_usage(&self, query: UsageQuery) -> Result<Vec<UsageRecord>> {
        usage::disk_usage(self.worker.layers(), query).await
    }

    async fn prune(&self, rule: PruneRule, deleted: mpsc::Sender<UsageRecord>) -> Result<()> {
        // The engine may not have come to it yet that builds which have been answered let go of their layers; its answer says that it has.
        self.worker.engine().census().await;
        let index = self.worker.index().clone();
        usage::prune(self.worker.layers(), rule, deleted, move |id| index.forget([id])).await?;
        // While a build runs, blobs without a layer may be about to get one; pruning spares the young ones then.
        if self.running.is_empty() {
            self.worker.sweep().await?;
        }
        Ok(())
    }

    fn blobs(&self) -> Arc<dyn Blobs> {
        Arc::new(ContentBlobs::new(self.worker.content().clone()))
    }
}

fn no_such_job(id: &str) -> Fault {
    Fault::new(Kind::NotFound, format!("no such job {id}"))
}
