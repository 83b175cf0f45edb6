use std::sync::Arc;

use async_trait::async_trait;

use crate::launch::{Launcher, Settings};
use crate::{Container, Io, Process, Running, Runtime, SandboxError};

/// The runtime that needs nothing but the kernel.
#[derive(Debug, Clone)]
pub struct Builtin {
    launcher: Arc<Launcher>,
}

impl Builtin {
    /// Starts the helper.
    pub fn new(settings: Settings) -> Result<Self, SandboxError> {
        Ok(Self { launcher: Arc::new(Launcher::open(settings)?) })
    }
}

#[async_trait]
impl Runtime for Builtin {
    async fn create(&self, container: Container, process: Process, io: Io) -> Result<Box<dyn Running>, SandboxError> {
        self.launcher.launch(container, process, io, None).await
    }
}
