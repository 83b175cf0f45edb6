//! A network of the daemon's own where it may not touch the machine's: a namespace of its user namespace, and a program beside the daemon
//! that makes what is sent there its own connections.
//!
//! Both programs give the namespace one address, a gateway and a name server. Neither lets anything in from outside, nor out to what
//! listens on the machine's loopback.
use std::ffi::OsString;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fault::Kind;
use rustix::mount::MountPropagationFlags;

use super::new_namespace;
use crate::{SandboxError, sys};

/// What the program answers names at, for the machine's own name servers.
pub(super) const NAMESERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 3));
/// How long a program may take to start.
const PATIENCE: Duration = Duration::from_secs(20);
/// One that ends sooner is not started again before a container needs it.
const STEADY: Duration = Duration::from_secs(1);
const TUNNELS: &str = "/dev/net/tun";

/// Programs that can carry a namespace's traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    Pasta,
    Slirp4netns,
}

impl Carrier {
    pub fn name(self) -> &'static str {
        match self {
            Self::Pasta => "pasta",
            Self::Slirp4netns => "slirp4netns",
        }
    }

    fn package(self) -> &'static str {
        match self {
            Self::Pasta => "passt",
            Self::Slirp4netns => "slirp4netns",
        }
    }

    /// Both write to what they have for standard input once the network is up.
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Pasta => &[
                "--foreground",
                "--stderr",
                "--quiet",
                "--config-net",
                "--ns-ifname=tap0",
                "--mtu=65520",
                "--address=10.0.2.100",
                "--netmask=255.255.255.0",
                "--gateway=10.0.2.2",
                "--dns-forward=10.0.2.3",
                "--no-map-gw",
                "--tcp-ports=none",
                "--udp-ports=none",
                "--tcp-ns=none",
                "--udp-ns=none",
                "--pid=/dev/stdin",
                "--netns",
            ],
            Self::Slirp4netns => &[
                "--configure",
                "--mtu=65520",
                "--disable-host-loopback",
                "--enable-sandbox",
                "--enable-seccomp",
                "--ready-fd=0",
                "--netns-type=path",
            ],
        }
    }
}

/// Which program, and the directories that it is looked for in, as in `PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    pub carrier: Carrier,
    pub search: OsString,
}

/// A namespace with its program.
#[derive(Debug)]
pub(crate) struct Carried {
    carrier: Carrier,
    binary: PathBuf,
    /// A file to mount the namespace on.
    place: PathBuf,
    namespace: OwnedFd,
    /// Held by who starts the program.
    starting: Mutex<()>,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    /// With a handle of its process.
    Runs(OwnedFd),
    Ended,
    Closed,
}

impl Uplink {
    /// Makes the namespace and starts the program, which lives as long as the daemon. `state` is a directory for it.
    pub(super) fn open(&self, state: &Path) -> Result<Arc<Carried>, SandboxError> {
        let carrier = self.carrier;
        let found = std::env::split_paths(&self.search).map(|dir| dir.join(carrier.name())).find(|path| path.is_file());
        let binary = found.ok_or_else(|| SandboxError::Setup {
            message: format!(
                "a network by {name} needs the program {name}, which is not installed (Debian's package {})",
                carrier.package(),
                name = carrier.name()
            ),
            kind: Kind::Precondition,
        })?;
        std::fs::create_dir_all(state).map_err(SandboxError::io(format!("create {}", state.display())))?;
        let place = state.join("uplink");
        std::fs::write(&place, "").map_err(SandboxError::io(format!("create {}", place.display())))?;
        let (namespace, _) = new_namespace().map_err(|error| SandboxError::network("create a network namespace".to_owned(), error))?;
        let carried = Arc::new(Carried { carrier, binary, place, namespace, starting: Mutex::default(), state: Mutex::new(State::Ended) });
        carried.ensure()?;
        Ok(carried)
    }
}

impl Carried {
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    /// Starts the program again if it has ended. Blocks.
    pub fn ensure(self: &Arc<Self>) -> Result<(), SandboxError> {
        let _alone = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*self.state(), State::Ended) { self.start() } else { Ok(()) }
    }

    pub fn close(&self) {
        self.kill();
        *self.state() = State::Closed;
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, why: &str) -> SandboxError {
        SandboxError::Setup { message: format!("failed to set up a network by {}: {why}", self.carrier.name()), kind: Kind::Precondition }
    }

    /// In a thread that stays: the program dies with it, and so with the daemon.
    fn start(self: &Arc<Self>) -> Result<(), SandboxError> {
        if let Err(error) = std::fs::File::options().read(true).write(true).open(TUNNELS) {
            let advice = "it must be there and open to all users; containers get it with --device /dev/net/tun";
            return Err(self.failed(&format!("{TUNNELS}: {error} ({advice})")));
        }
        let (say, hear) = mpsc::channel();
        let carried = Arc::clone(self);
        let thread = std::thread::Builder::new().name(self.carrier.name().to_owned()).spawn(move || carried.attend(&say));
        thread.map_err(|error| self.failed(&error.to_string()))?;
        match hear.recv_timeout(PATIENCE) {
            Ok(outcome) => outcome.map_err(|why| self.failed(&why)),
            Err(_) => {
                self.kill();
                Err(self.failed("it takes too long"))
            }
        }
    }

    fn kill(&self) {
        if let State::Runs(process) = &*self.state() {
            let _ = rustix::process::pidfd_send_signal(process, rustix::process::Signal::KILL);
        }
    }

    /// From the program's start to its end, of which the log hears.
    fn attend(self: &Arc<Self>, say: &mpsc::Sender<Result<(), String>>) {
        let (mut child, mut ready) = match self.spawn() {
            Ok(started) => started,
            Err(error) => return drop(say.send(Err(error.to_string()))),
        };
        let begun = Instant::now();
        let ready = ready.read(&mut [0]).is_ok_and(|count| count > 0);
        if ready {
            let _ = say.send(Ok(()));
        }
        let words = child.stderr.take().map(last_words).unwrap_or_default();
        let status = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
        let closed = self.ended();
        let why = if words.is_empty() { status } else { format!("{status}: {words}") };
        if !ready {
            return drop(say.send(Err(why)));
        }
        if closed {
            return;
        }
        tracing::warn!(
            program = self.carrier.name(),
            why,
            "the program that connects steps to the network has ended: their connections are lost"
        );
        if begun.elapsed() >= STEADY {
            match self.ensure() {
                Ok(()) => tracing::warn!(program = self.carrier.name(), "it was started again"),
                Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "it cannot be started again"),
            }
        }
    }

    /// Says whether that was wanted.
    fn ended(&self) -> bool {
        let mut state = self.state();
        let closed = matches!(*state, State::Closed);
        if !closed {
            *state = State::Ended;
        }
        closed
    }

    /// The program, and what tells when it is ready.
    fn spawn(&self) -> io::Result<(Child, io::PipeReader)> {
        // Some want a path that is the namespace and no link to it. It is mounted for this thread and the program only.
        sys::new_mount_namespace()?;
        rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
        rustix::mount::mount_bind(format!("/proc/thread-self/fd/{}", self.namespace.as_raw_fd()), &self.place)?;
        let mut command = Command::new(&self.binary);
        command.args(self.carrier.arguments()).arg(&self.place).current_dir("/").env_clear();
        if self.carrier == Carrier::Slirp4netns {
            command.arg("tap0");
        }
        sys::die_with_this_thread(&mut command);
        let mut state = self.state();
        if matches!(*state, State::Closed) {
            return Err(io::Error::other("the daemon ends"));
        }
        let (ready, tell) = io::pipe()?;
        let child = command.stdin(tell).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let pid = rustix::process::Pid::from_child(&child);
        *state = State::Runs(rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?);
        Ok((child, ready))
    }
}

/// What it said last, once it has ended.
fn last_words(errors: impl io::Read) -> String {
    let lines = BufReader::new(errors).split(b'\n').map_while(Result::ok).map(|line| String::from_utf8_lossy(&line).trim().to_owned());
    // pasta tells of its own log.
    lines.filter(|line| !line.is_empty() && !line.contains("syslog")).last().unwrap_or_default()
}
