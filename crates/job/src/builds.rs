//! The builds that run, and the service that the porch talks to.
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fault::{Fault, Kind, Result};
use tokio::sync::mpsc;
use worker::Worker;

use crate::api::{self, Blobs, PruneRule, Request, Response, Service, Sessions, UsageQuery, UsageRecord, Version};
use crate::blobs::ContentBlobs;
use crate::board::{Board, Place};
use crate::build::Build;
use crate::contained::FrontendDoor;
use crate::gateway::Gateway;
use crate::progress_hub::{Hub, Watch};
use crate::provenance::Producers;
use crate::usage;

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
    pub dockerfile_enabled: bool,
    pub gateway_enabled: bool,
    /// Repositories whose images may be frontends; none means all.
    pub gateway_sources: Vec<String>,
    /// How frontends in containers are served.
    pub frontend_door: Arc<dyn FrontendDoor>,
    /// What the operator wants provenance to say of the builder.
    pub provenance_env: serde_json::Map<String, serde_json::Value>,
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
}

impl Builds {
    pub fn new(worker: Arc<Worker>, sessions: Arc<dyn Sessions>, settings: Settings) -> Self {
        Self {
            worker,
            sessions,
            settings: Arc::new(settings),
            running: Board::default(),
            ended: Board::default(),
            producers: Producers::default(),
        }
    }

    /// How many builds run now.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Cancels every build.
    pub fn cancel_all(&self, reason: &str) {
        for build in self.running.all() {
            build.cancel(reason);
        }
    }

    /// Waits until everything acknowledged survives a kill.
    pub async fn flush(&self) {
        if let Err(fault) = self.worker.layers().flush().await {
            tracing::error!(%fault, "failed to write the last records");
        }
    }

    fn linger(&self, id: &str, hub: Hub) {
        let place = self.ended.replace(id, Arc::new(hub)).0;
        task::spawn("ended build", async move {
            tokio::time::sleep(AFTERGLOW).await;
            drop(place);
        });
    }
}

/// Ends a build however its future ends.
struct Ending<'a> {
    builds: &'a Builds,
    place: Place<Build>,
    id: String,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let build = self.place.entry();
        build.end();
        build.hub().close();
        self.builds.worker.layers().collect_soon();
        self.builds.linger(&self.id, build.hub().clone());
    }
}

#[async_trait]
impl Service for Builds {
    async fn solve(&self, request: Request) -> Result<Response> {
        let id = request.id.clone();
        let build = Build::new(request, self.worker.clone(), self.sessions.clone(), self.settings.clone(), self.producers.clone())?;
        let place = self.running.add(&id, build.clone()).ok_or_else(|| Fault::new(Kind::AlreadyExists, format!("job ID {id} exists")))?;
        let _ending = Ending { builds: self, place, id };
        build.run().await
    }

    async fn progress(&self, id: &str) -> Result<Watch> {
        if let Some(hub) = self.ended.get(id) {
            return Ok(hub.watch());
        }
        match self.running.wait(id, WATCH_WAIT).await {
            Some(build) => Ok(build.hub().watch()),
            // It may have come and gone while we waited.
            None => self.ended.get(id).map(|hub| hub.watch()).ok_or_else(|| no_such_job(id)),
        }
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
        Ok(vec![api::Worker { id: facts.id, labels: facts.labels, platforms: facts.platforms, gc_policy, devices: Vec::new() }])
    }

    async fn disk_usage(&self, query: UsageQuery) -> Result<Vec<UsageRecord>> {
        usage::disk_usage(self.worker.layers(), query).await
    }

    async fn prune(&self, rule: PruneRule, deleted: mpsc::Sender<UsageRecord>) -> Result<()> {
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
