//! The daemon's side of the helper: starts the zygote, describes containers to it, and follows them.
mod process;
mod spec;

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError, Weak};

pub(crate) use process::{Connection, Kept};

use crate::confinement::{Confinement, Confiner};
use crate::link::{self, Request, SpecNetwork};
use crate::names::{Dns, Names};
use crate::network::{Networks, Place};
use crate::{Container, Io, Process, Running, SandboxError, Security, helper};

/// What a runtime needs to know of the daemon.
#[derive(Debug, Clone)]
pub struct Settings {
    /// A directory of the runtime's own, made if missing. It holds no state that must survive.
    pub state: PathBuf,
    /// The program that calls [`helper::main`] when named [`helper::NAME`].
    pub helper: PathBuf,
    /// For containers that name no parent. Empty means `/buildkit`.
    pub cgroup_parent: String,
    pub dns: Dns,
    pub networks: Networks,
    /// Containers see the daemon's own `/proc`, for where no new one may be mounted. Processes still die with their container, but can see
    /// the daemon and each other there.
    pub host_proc: bool,
    pub confinement: Confinement,
    /// The soft limit of open files that programs get, where the daemon has another.
    pub open_files: Option<u64>,
}

impl Settings {
    pub fn new(state: impl Into<PathBuf>) -> Self {
        Self {
            state: state.into(),
            helper: "/proc/self/exe".into(),
            cgroup_parent: String::new(),
            dns: Dns::default(),
            networks: Networks::default(),
            host_proc: false,
            confinement: Confinement::default(),
            open_files: None,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Launcher {
    pub settings: Settings,
    pub names: Names,
    confiner: Confiner,
    zygote: Mutex<Zygote>,
    /// Whether the log has heard that something is not as it should be.
    warned: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Zygote {
    child: Child,
    /// Closed to let it go.
    socket: Option<Arc<OwnedFd>>,
}

impl Launcher {
    pub fn open(settings: Settings) -> Result<Self, SandboxError> {
        let confiner = Confiner::open(settings.confinement.clone())?;
        for dir in ["root", "tree"] {
            let dir = settings.state.join(dir);
            std::fs::create_dir_all(&dir).map_err(SandboxError::io(format!("create {}", dir.display())))?;
        }
        let names = Names::open(&settings.state, settings.dns.clone(), settings.networks.nameserver())?;
        let zygote = Mutex::new(Zygote::start(&settings)?);
        Ok(Self { settings, names, confiner, zygote, warned: Arc::default() })
    }

    /// Has the zygote fork a monitor; our end of the socket to it.
    fn monitor(&self) -> Result<(OwnedFd, Weak<OwnedFd>), SandboxError> {
        let (ours, theirs) = link::pair().map_err(SandboxError::io("create a socket"))?;
        let mut zygote = self.zygote.lock().unwrap_or_else(PoisonError::into_inner);
        let ask = |zygote: &Zygote| match &zygote.socket {
            Some(socket) => link::send(&**socket, &Request::Monitor, &[theirs.as_fd()]),
            None => Err(std::io::ErrorKind::BrokenPipe.into()),
        };
        if ask(&zygote).is_err() {
            tracing::warn!("the sandbox helper is gone; starting another");
            *zygote = Zygote::start(&self.settings)?;
            ask(&zygote).map_err(SandboxError::io("reach the sandbox helper"))?;
        }
        // Not to keep it: its end is what the zygote goes by.
        Ok((ours, zygote.socket.as_ref().map(Arc::downgrade).unwrap_or_default()))
    }

    pub async fn launch(
        &self,
        container: Container,
        process: Process,
        io: Io,
        oci: Option<link::Oci>,
    ) -> Result<Box<dyn Running>, SandboxError> {
        spec::check(&container, &process)?;
        let (labels, level) = self.confiner.labels(container.security)?;
        let own_name = Some(container.hostname.as_str()).filter(|name| !name.is_empty());
        let place = self.settings.networks.place(&container.network, own_name).await?;
        let (network, held) = match place {
            Place::Host => (SpecNetwork::Host, None),
            Place::Given(held) => (SpecNetwork::Given, Some(held)),
        };
        if let (Some(held), Security::Insecure) = (&held, container.security) {
            held.spoil();
        }
        let hosts = self.names.hosts(&container)?;
        let resolv = self.names.resolv(&container.network)?;
        let prepared = spec::Prepared { hosts: hosts.path().to_owned(), resolv, network, labels, oci };
        let (spec, secrets) = spec::describe(&self.settings, container, &process, prepared);
        let memory = link::write_memory(&spec, secrets.iter().map(|data| &data[..])).map_err(SandboxError::io("describe the container"))?;
        let cgroup = spec.cgroup.clone();
        let (socket, zygote) = self.monitor()?;
        let connection = Connection::open(socket, Sweeper { zygote, cgroup }, Arc::clone(&self.warned))?;
        connection.start(memory, process.tty, io, Kept::new(hosts, held, level))
    }
}

/// Cleans up after a monitor that could not do it itself.
#[derive(Debug)]
pub(crate) struct Sweeper {
    zygote: Weak<OwnedFd>,
    cgroup: String,
}

impl Sweeper {
    fn sweep(&self) {
        let request = Request::Sweep { cgroup: self.cgroup.clone() };
        if self.zygote.upgrade().is_none_or(|zygote| link::send(&*zygote, &request, &[]).is_err()) {
            tracing::warn!(cgroup = self.cgroup, "a cgroup is left behind");
        }
    }
}

impl Zygote {
    fn start(settings: &Settings) -> Result<Self, SandboxError> {
        let helper = settings.helper.as_path();
        let (ours, theirs) = link::pair().map_err(SandboxError::io("create a socket"))?;
        let sealed = read_only(helper);
        let program = sealed.as_ref().map_or_else(|| helper.to_owned(), |fd| format!("/proc/self/fd/{}", fd.as_raw_fd()).into());
        let mut command = Command::new(program);
        command.arg0(helper::NAME).env_clear().current_dir("/").stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::inherit());
        command.args(settings.open_files.map(|soft| soft.to_string()));
        let child = command.spawn().map_err(SandboxError::io(format!("start {}", helper.display())))?;
        Ok(Self { child, socket: Some(Arc::new(ours)) })
    }
}

/// The program through a read-only mount of its own: a process that finds a way to `/proc/<helper>/exe` must not be able to write there,
/// since that is the daemon's own file.
fn read_only(program: &Path) -> Option<OwnedFd> {
    use rustix::mount::{OpenTreeFlags, open_tree};
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(rustix::fs::CWD, program, flags).ok()?;
    let readonly = rustix::mount::MountAttrFlags::MOUNT_ATTR_RDONLY;
    crate::sys::set_mount_attributes(tree.as_fd(), readonly.bits().into(), false).ok()?;
    Some(tree)
}

impl Drop for Zygote {
    fn drop(&mut self) {
        drop(self.socket.take());
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_helper_cannot_be_written_through_its_own_mount() {
        assert!(read_only(Path::new("/proc/self/exe")).is_some(), "this test needs root");
        let program = tempfile::NamedTempFile::new().unwrap();
        let tree = read_only(program.path()).unwrap();
        let error = std::fs::OpenOptions::new().append(true).open(format!("/proc/self/fd/{}", tree.as_raw_fd())).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    }
}
