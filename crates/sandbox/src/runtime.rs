use std::path::PathBuf;

use async_trait::async_trait;
use task::Cancel;

use crate::{Container, Io, Process, Sample, SandboxError};

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// What the process returned, or 128 and the signal that killed it.
    pub code: i32,
    /// The kernel killed a process of the container for want of memory.
    pub oom_killed: bool,
    /// Mount points that had to be made in the container's root, as paths in it; children before parents. Whoever commits the root removes
    /// those that are still empty, and keeps their parents' times.
    pub stubs: Vec<PathBuf>,
    /// What the container used of the machine, oldest first, the last one when its first process had ended. Only known with the end of that.
    pub usage: Vec<Sample>,
}

/// Something that can run containers.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// Makes a container and starts its first process. Dropping what is returned kills everything in it.
    async fn create(&self, container: Container, process: Process, io: Io) -> Result<Box<dyn Running>, SandboxError>;

    /// Makes a container, runs one process in it and takes it away. Whatever the process left running is killed; all output has been
    /// passed on when this returns. Cancelling kills at once, and returns when the container is gone.
    async fn run(&self, container: Container, process: Process, io: Io, cancel: &Cancel) -> Result<Exit, SandboxError> {
        if cancel.is_cancelled() {
            return Err(SandboxError::Cancelled(cancel.reason().to_owned()));
        }
        let running = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(SandboxError::Cancelled(cancel.reason().to_owned())),
            running = self.create(container, process, io) => running?,
        };
        tokio::select! {
            biased;
            exit = running.wait() => exit,
            () = cancel.cancelled() => {
                running.kill();
                let _ = running.wait().await;
                Err(SandboxError::Cancelled(cancel.reason().to_owned()))
            }
        }
    }
}

/// A container with its first process. When that ends, so do the others.
#[async_trait]
pub trait Running: Started {
    /// Starts another process in the same container, with an environment and a user of its own; resolves when its program is about to run.
    async fn exec(&self, process: Process, io: Io) -> Result<Box<dyn Started>, SandboxError>;

    /// Kills everything in the container; [`wait`](Started::wait) then says when that is done.
    fn kill(&self);
}

/// A process in a container. Dropping it leaves it running.
#[async_trait]
pub trait Started: Send + Sync {
    /// Resolves when the program is about to run, or cannot.
    async fn started(&self);

    /// Its end, once; a second call fails. May be dropped and called again before that.
    async fn wait(&self) -> Result<Exit, SandboxError>;

    /// Sends a signal by number. To the first process of a container the kernel passes only what it handles, and KILL and STOP.
    fn signal(&self, signal: i32) -> Result<(), SandboxError>;

    /// Sets the size of its terminal, if it has one.
    fn resize(&self, rows: u16, columns: u16) -> Result<(), SandboxError>;
}
