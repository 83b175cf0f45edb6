use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use crate::launch::{Launcher, Settings};
use crate::{Container, Io, Process, Running, Runtime, SandboxError, link};

/// Containers made by runc, crun or any other OCI runtime with their command line.
#[derive(Debug, Clone)]
pub struct OciRuntime {
    launcher: Arc<Launcher>,
    oci: link::Oci,
}

impl OciRuntime {
    /// Uses the runtime at `binary`.
    pub fn new(binary: impl Into<PathBuf>, settings: Settings) -> Result<Self, SandboxError> {
        let (state, bundle) = (settings.state.join("runtime"), settings.state.join("bundle"));
        for dir in [&state, &bundle] {
            std::fs::create_dir_all(dir).map_err(SandboxError::io(format!("create {}", dir.display())))?;
        }
        let oci = link::Oci { binary: binary.into(), state, bundle };
        Ok(Self { launcher: Arc::new(Launcher::open(settings)?), oci })
    }
}

#[async_trait]
impl Runtime for OciRuntime {
    async fn create(&self, container: Container, process: Process, io: Io) -> Result<Box<dyn Running>, SandboxError> {
        self.launcher.launch(container, process, io, Some(self.oci.clone())).await
    }
}
