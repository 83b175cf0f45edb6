//! A container of the gateway: a place for processes on results of a build.
//!
//! It is made when its first process starts. Whatever goes wrong with a process is told by the process's end, so that a client learns of it where it
//! waits; only a missing secret fails the start itself.
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use fault::{Fault, Kind, Result};
use layers::Layer;
use ops::exec::{self, Exec, Prepared, Wanted};
use progress::Reporter;
use sandbox::{Input, Io, Output, Running, SandboxError, Started};
use session::Stat;
use task::{Cancel, Drain};
use tokio::sync::watch;

use crate::build::Build;
use crate::files::Tree;
use crate::gateway::{Container, ContainerRequest, Process, ProcessRequest};

const KILL: i32 = 9;

pub struct BuildContainer {
    build: Arc<Build>,
    network: llb::NetMode,
    path: (&'static str, &'static str),
    /// What the first process's container is made from.
    template: sandbox::Container,
    mount_count: usize,
    /// `None` once released.
    mounts: Mutex<Option<Arc<Prepared>>>,
    first: tokio::sync::Mutex<Option<Arc<dyn Running>>>,
    /// Ends all processes.
    cancel: Cancel,
    attending: Drain,
    running: Arc<AtomicUsize>,
}

impl BuildContainer {
    pub async fn open(build: Arc<Build>, request: ContainerRequest) -> Result<Arc<Self>> {
        build.session().await?;
        let mut inputs: Vec<Option<Layer>> = Vec::new();
        let mut mounts = Vec::with_capacity(request.mounts.len());
        for asked in request.mounts {
            let layer = match &asked.reference {
                Some(reference) => build.layer_of(reference).await?,
                None => None,
            };
            let input = layer.is_some().then_some(inputs.len() as u32);
            inputs.extend(layer.map(Some));
            mounts.push(llb::Mount { input, output: None, ..asked.mount });
        }
        // For what is unpacked now, and for what new cache mounts begin with.
        let room = build.worker.layers().room(&build.cancel).await?;
        for layer in inputs.iter().flatten() {
            layer.realize(&build.cancel, &Reporter::silent()).await?;
        }
        let cancel = build.cancel.child();
        let owner = format!("container {}", request.id);
        let wanted = Wanted {
            mounts: &mounts,
            inputs: &inputs,
            cwd: "/",
            owner: &owner,
            fresh_caches: false,
            sessions: &build.group,
            cancel: &cancel,
        };
        let mut prepared = Prepared::new(build.worker.exec(), &wanted).await?;
        drop(room);
        let template = sandbox::Container {
            root_readonly: prepared.root_readonly(),
            mounts: prepared.take_mounts(),
            hostname: request.hostname,
            hosts: exec::hosts(&request.extra_hosts)?,
            network: exec::network(request.network),
            ..sandbox::Container::new(exec::container_id("gateway"), prepared.root())
        };
        // Which architecture is seldom said; then it is the worker's.
        let foreign = request.platform.as_ref().filter(|platform| platform.os == "linux" && !platform.architecture.is_empty());
        let emulator = foreign.map(|platform| build.worker.emulator(platform));
        let template = sandbox::Container { emulator: emulator.transpose()?.flatten(), ..template };
        let windows = request.platform.is_some_and(|platform| platform.os == "windows");
        Ok(Arc::new(Self {
            build,
            network: request.network,
            path: if windows { exec::WINDOWS_PATH } else { exec::UNIX_PATH },
            template,
            mount_count: mounts.len(),
            mounts: Mutex::new(Some(Arc::new(prepared))),
            first: tokio::sync::Mutex::default(),
            cancel,
            attending: Drain::new(),
            running: Arc::default(),
        }))
    }

    fn exec(&self) -> &Exec {
        self.build.worker.exec()
    }

    /// The first process makes the container, the others join it.
    async fn begin(&self, security: llb::SecurityMode, recursive_stubs: bool, process: sandbox::Process, io: Io) -> Result<Handle> {
        self.build.granted().check_modes(self.network, security)?;
        self.cancel.check()?;
        let mut first = self.first.lock().await;
        if let Some(running) = &*first {
            return match running.exec(process, io).await {
                Ok(started) => Ok(Handle::Other(started.into())),
                Err(SandboxError::Gone) => Err(Fault::new(Kind::Precondition, "the container's first process has ended")),
                Err(error) => Err(error.into()),
            };
        }
        let container = sandbox::Container { security: exec::security(security), recursive_stubs, ..self.template.clone() };
        let running: Arc<dyn Running> = self.exec().runtime.create(container, process, io).await?.into();
        *first = Some(running.clone());
        running.started().await;
        Ok(Handle::First(running))
    }

    /// Waits for the process's end, or ends it with the container.
    fn attend(&self, handle: Handle) -> Arc<ContainerProcess> {
        let handle = Arc::new(handle);
        let (end, ended) = watch::channel(None);
        let (process, cancel, running) = (handle.clone(), self.cancel.clone(), self.running.clone());
        running.fetch_add(1, Ordering::AcqRel);
        self.attending.spawn("gateway process", async move {
            let outcome = tokio::select! {
                biased;
                () = cancel.cancelled() => {
                    process.kill();
                    let _ = process.started().wait().await;
                    Err(cancel.fault())
                }
                exit = process.started().wait() => match exit {
                    // It may have ended because the container is being released.
                    _ if cancel.is_cancelled() => Err(cancel.fault()),
                    Ok(exit) => Ok(exit.code),
                    Err(error) => Err(error.into()),
                },
            };
            running.fetch_sub(1, Ordering::AcqRel);
            end.send_replace(Some(outcome));
        });
        Arc::new(ContainerProcess { handle: Some(handle), ended })
    }

    fn tree(&self, mount: usize) -> Result<(Tree, Arc<Prepared>)> {
        let mounts = self.mounts.lock().expect("no holder of this lock panics").clone();
        let mounts = mounts.ok_or_else(|| Fault::new(Kind::Precondition, "the container is released"))?;
        if mount >= self.mount_count {
            return Err(Fault::new(Kind::Unknown, format!("mount index {mount} is out of bounds ({} available)", self.mount_count)));
        }
        let view =
            mounts.view(mount)?.ok_or_else(|| Fault::new(Kind::Unknown, format!("mount {mount} holds no files that can be read")))?;
        Ok((Tree::of(view), mounts))
    }
}

#[async_trait]
impl Container for BuildContainer {
    async fn start(&self, request: ProcessRequest) -> Result<Arc<dyn Process>> {
        let ProcessRequest { mut meta, tty, security, secret_env, stdin, stdout, stderr } = request;
        if meta.cwd.is_empty() {
            meta.cwd = "/".to_owned();
        }
        let defaults = [self.path, ("TERM", "xterm")];
        let defaults = if tty { &defaults[..] } else { &defaults[..1] };
        let env = exec::variables(&meta, &secret_env, defaults, &self.build.group).await?;
        let output = |channel: Option<_>| channel.map_or(Output::Discard, Output::Channel);
        let io = Io { stdin: stdin.map_or(Input::Empty, Input::Stream), stdout: output(stdout), stderr: output(stderr) };
        let process = exec::process(&meta, env, tty);
        Ok(match self.begin(security, meta.remove_mount_stubs_recursive, process, io).await {
            Ok(handle) => self.attend(handle),
            Err(fault) => Arc::new(ContainerProcess { handle: None, ended: watch::channel(Some(Err(fault))).1 }),
        })
    }

    async fn read_file(&self, mount: usize, path: &str, range: Option<(u64, u64)>) -> Result<Bytes> {
        let (tree, _keep) = self.tree(mount)?;
        tree.read_file(path, range).await
    }

    async fn read_dir(&self, mount: usize, path: &str, include: &str) -> Result<Vec<Stat>> {
        let (tree, _keep) = self.tree(mount)?;
        tree.read_dir(path, include).await
    }

    async fn stat_file(&self, mount: usize, path: &str) -> Result<Stat> {
        let (tree, _keep) = self.tree(mount)?;
        tree.stat(path).await
    }

    /// Fails with what its processes end with, if there are any by now.
    async fn release(&self) -> Result<()> {
        let interrupted = self.running.load(Ordering::Acquire) > 0;
        self.cancel.cancel("context canceled");
        // Who is about to start one finds the container cancelled after this.
        let first = self.first.lock().await.take();
        if let Some(first) = &first {
            first.kill();
        }
        self.attending.wait().await;
        drop(first);
        let mounts = self.mounts.lock().expect("no holder of this lock panics").take();
        drop(mounts);
        if interrupted { Err(self.cancel.fault()) } else { Ok(()) }
    }
}

enum Handle {
    First(Arc<dyn Running>),
    Other(Arc<dyn Started>),
}

impl Handle {
    fn started(&self) -> &dyn Started {
        match self {
            Self::First(running) => &**running,
            Self::Other(started) => &**started,
        }
    }

    fn kill(&self) {
        match self {
            Self::First(running) => running.kill(),
            Self::Other(started) => {
                // Fails once it has ended.
                let _ = started.signal(KILL);
            }
        }
    }
}

struct ContainerProcess {
    /// `None`: it could not be started.
    handle: Option<Arc<Handle>>,
    ended: watch::Receiver<Option<Result<i32>>>,
}

#[async_trait]
impl Process for ContainerProcess {
    async fn wait(&self) -> Result<i32> {
        let mut ended = self.ended.clone();
        let outcome = ended.wait_for(Option::is_some).await.map_err(|_| Fault::internal("a process is no longer attended"))?.clone();
        outcome.expect("waited for it")
    }

    async fn resize(&self, rows: u32, columns: u32) -> Result<()> {
        let size = |cells: u32| u16::try_from(cells).unwrap_or(u16::MAX);
        match &self.handle {
            Some(handle) => Ok(handle.started().resize(size(rows), size(columns))?),
            None => Ok(()),
        }
    }

    async fn signal(&self, number: i32) -> Result<()> {
        match &self.handle {
            Some(handle) => Ok(handle.started().signal(number)?),
            None => Ok(()),
        }
    }
}
