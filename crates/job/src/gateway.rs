//! A build that its own client, or a frontend in a container, drives: it asks for steps, looks at results, runs processes on them and at last returns one.
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use fault::{Fault, Result};
use frontend::{Bridge, Outcome, Ref};
use oci::Platform;
use tokio::sync::mpsc;

#[async_trait]
pub trait Gateway: Send + Sync {
    fn bridge(&self) -> Arc<dyn Bridge>;

    /// Ends the build with a result or with the driver's own failure. `AlreadyExists` with `gateway result is already set` the second time.
    async fn finish(&self, outcome: Result<Outcome>) -> Result<()>;

    /// Adds to a failure what the failed step left behind, which is kept for as long as the build lasts.
    async fn explain(&self, fault: Fault) -> Fault {
        fault
    }

    /// A result that a failed step left behind, named in the failure's [`fault::Detail::Solve`].
    fn failed_result(&self, id: &str) -> Option<Arc<dyn Ref>>;

    /// Prepares a container; nothing runs in it yet. Its id is unique within the build (the caller sees to that).
    async fn container(&self, request: ContainerRequest) -> Result<Arc<dyn Container>>;
}

#[derive(Clone, Default)]
pub struct ContainerRequest {
    pub id: String,
    /// The root is the mount at `/`.
    pub mounts: Vec<ContainerMount>,
    pub network: llb::NetMode,
    pub platform: Option<Platform>,
    pub constraints: Vec<String>,
    pub extra_hosts: Vec<llb::HostIp>,
    pub hostname: String,
}

/// A mount, and what it shows: nothing, or a result that stands in the place of the mount's input.
#[derive(Clone)]
pub struct ContainerMount {
    pub mount: llb::Mount,
    pub reference: Option<Arc<dyn Ref>>,
}

/// A place for processes. Writable mounts are thrown away with it. The first process is its init: when that ends, all end.
#[async_trait]
pub trait Container: Send + Sync {
    async fn start(&self, request: ProcessRequest) -> Result<Arc<dyn Process>>;

    /// Like [`Ref::read_file`], on the mount with this index.
    async fn read_file(&self, mount: usize, path: &str, range: Option<(u64, u64)>) -> Result<Bytes>;
    async fn read_dir(&self, mount: usize, path: &str, include: &str) -> Result<Vec<session::Stat>>;
    async fn stat_file(&self, mount: usize, path: &str) -> Result<session::Stat>;

    /// Ends all processes and gives the mounts back.
    async fn release(&self) -> Result<()>;
}

pub struct ProcessRequest {
    pub meta: llb::Meta,
    pub tty: bool,
    pub security: llb::SecurityMode,
    pub secret_env: Vec<llb::SecretEnv>,
    /// `None`: an empty input. The end of the channel is the end of the file.
    pub stdin: Option<mpsc::Receiver<Bytes>>,
    /// `None`: discarded. The senders are dropped when the process has closed that output.
    pub stdout: Option<mpsc::Sender<Bytes>>,
    pub stderr: Option<mpsc::Sender<Bytes>>,
}

/// A running process. Dropping the handle leaves it running.
#[async_trait]
pub trait Process: Send + Sync {
    /// The exit code, 128 + n after signal n. An error means that the code is unknown. May be called once.
    async fn wait(&self) -> Result<i32>;

    async fn resize(&self, rows: u32, columns: u32) -> Result<()>;

    /// `number` is the platform's signal number.
    async fn signal(&self, number: i32) -> Result<()>;
}
