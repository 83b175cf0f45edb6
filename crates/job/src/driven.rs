//! A build that its client drives.
use std::sync::Arc;

use async_trait::async_trait;
use fault::{Detail, Fault, Kind, Result};
use frontend::{Bridge, Outcome, Ref};
use layers::Layer;
use tokio::sync::watch;
use worker::Remains;

use crate::bridge::BuildBridge;
use crate::build::Build;
use crate::container::BuildContainer;
use crate::gateway::{Container, ContainerRequest, Gateway};
use crate::reference::BuildRef;

pub struct Driven {
    build: Arc<Build>,
    bridge: Arc<dyn Bridge>,
    returned: Arc<watch::Sender<Option<Result<Outcome>>>>,
}

impl Driven {
    pub fn new(build: Arc<Build>) -> Self {
        let request = &build.request;
        let bridge = BuildBridge::new(build.clone(), request.frontend_attrs.clone(), request.inputs(), build.scope().clone());
        let returned = build.returned().clone();
        Self { build, bridge: Arc::new(bridge), returned }
    }

    /// For a frontend in a container: what it returns is no end of the build yet.
    pub fn of_frontend(build: Arc<Build>, bridge: Arc<dyn Bridge>) -> Self {
        Self { build, bridge, returned: Arc::new(watch::channel(None).0) }
    }

    pub fn returned(&self) -> Option<Result<Outcome>> {
        self.returned.borrow().clone()
    }
}

#[async_trait]
impl Gateway for Driven {
    fn bridge(&self) -> Arc<dyn Bridge> {
        self.bridge.clone()
    }

    async fn finish(&self, outcome: Result<Outcome>) -> Result<()> {
        let first = self.returned.send_if_modified(|slot| {
            let empty = slot.is_none();
            if empty {
                *slot = Some(outcome);
            }
            empty
        });
        if first { Ok(()) } else { Err(Fault::new(Kind::AlreadyExists, "gateway result is already set")) }
    }

    async fn explain(&self, fault: Fault) -> Fault {
        let Some(remains) = fault.find::<Remains>() else { return fault };
        let mounts = remains.mounts().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "what a failed step wrote is lost");
            Vec::new()
        });
        let keep =
            |layers: &[Option<Layer>]| layers.iter().map(|layer| layer.as_ref().map_or_else(String::new, |l| self.build.keep(l))).collect();
        let vertex = remains.vertex();
        let detail = Detail::Solve {
            input_ids: keep(remains.inputs()),
            mount_ids: keep(&mounts),
            op: vertex.encoded.to_vec(),
            description: vertex.metadata.description.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
            subject: remains.subject(),
        };
        fault.clone().with_detail(detail)
    }

    fn failed_result(&self, id: &str) -> Option<Arc<dyn Ref>> {
        let layer = self.build.kept(id)?;
        Some(BuildRef::kept(self.build.clone(), id, layer))
    }

    async fn container(&self, request: ContainerRequest) -> Result<Arc<dyn Container>> {
        Ok(BuildContainer::open(self.build.clone(), request).await?)
    }
}
