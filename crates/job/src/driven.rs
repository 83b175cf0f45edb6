//! A build that its client drives.
use std::sync::Arc;

use async_trait::async_trait;
use fault::{Fault, Kind, Result};
use frontend::{Bridge, Outcome, Ref};

use crate::bridge::BuildBridge;
use crate::build::Build;
use crate::container::BuildContainer;
use crate::gateway::{Container, ContainerRequest, Gateway};

pub struct Driven {
    build: Arc<Build>,
    bridge: Arc<dyn Bridge>,
}

impl Driven {
    pub fn new(build: Arc<Build>) -> Self {
        let bridge = Arc::new(BuildBridge::new(build.clone(), build.request.frontend_attrs.clone(), Default::default()));
        Self { build, bridge }
    }
}

#[async_trait]
impl Gateway for Driven {
    fn bridge(&self) -> Arc<dyn Bridge> {
        self.bridge.clone()
    }

    async fn finish(&self, outcome: Result<Outcome>) -> Result<()> {
        let first = self.build.returned().send_if_modified(|slot| {
            let empty = slot.is_none();
            if empty {
                *slot = Some(outcome);
            }
            empty
        });
        if first { Ok(()) } else { Err(Fault::new(Kind::AlreadyExists, "gateway result is already set")) }
    }

    fn failed_result(&self, _: &str) -> Option<Arc<dyn Ref>> {
        None
    }

    async fn container(&self, request: ContainerRequest) -> Result<Arc<dyn Container>> {
        Ok(BuildContainer::open(self.build.clone(), request).await?)
    }
}
