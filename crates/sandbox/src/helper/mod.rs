//! The helper: this binary again, freshly executed with one thread, so that it may fork, enter namespaces and drop privileges.
//!
//! One *zygote* lives as long as the daemon. For each container it forks a *monitor*, which makes the cgroup, clones the container's
//! first process, reports its end and cleans up; see [`monitor`]. What happens between clone and exec is in [`init`].
//!
//! If the daemon goes away, so does the zygote; each monitor kills its container, cleans up and follows. If a monitor goes away, the kernel
//! kills its container.
mod access;
mod cgroup;
mod config;
mod confine;
mod devices;
mod emulate;
mod init;
mod join;
mod monitor;
mod mount;
mod oci;
mod path;
mod root;
mod usage;
mod user;

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

use crate::link::{self, Failure, Request};
use crate::sys;

pub use usage::{NET, Sample};

/// The name under which the helper is executed, as `argv[0]`.
pub const NAME: &str = "kiln-sandbox";

/// Serves the daemon on standard input and does not return. Call it first thing in `main`, before any thread, if `argv[0]` is [`NAME`].
pub fn main() -> ! {
    let status = match sys::adopt(0).map(serve) {
        Some(Ok(())) => 0,
        Some(Err(error)) => {
            eprintln!("{NAME}: {error}");
            1
        }
        None => {
            eprintln!("{NAME} is started by the daemon only");
            2
        }
    };
    std::process::exit(status)
}

fn serve(daemon: OwnedFd) -> io::Result<()> {
    // The socket must not be number 0 any more: containers' streams go there.
    let daemon = rustix::io::fcntl_dupfd_cloexec(&daemon, 3)?;
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty())?;
    sys::install_fd(std::os::fd::AsFd::as_fd(&null), 0)?;
    drop(null);
    // Nothing in a container may attach to us, or reach our descriptors through /proc.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    rustix::process::umask(rustix::fs::Mode::empty());
    spare_from_oom_protection();
    limit_open_files();
    let cgroups = cgroup::Cgroups::find();
    sys::ignore_children();
    let mut buffer = Vec::new();
    while let Some((request, fds)) = link::receive::<Request>(&daemon, &mut buffer)? {
        if let Request::Sweep { cgroup } = &request {
            // It may take a moment, which nobody here is to wait for.
            if let Ok(None) = sys::clone_process(0, None, false) {
                drop(daemon);
                cgroups.remove_all(cgroup);
                std::process::exit(0);
            }
        }
        let (Request::Monitor, Ok([socket])) = (request, <[OwnedFd; 1]>::try_from(fds)) else { continue };
        match sys::clone_process(0, None, false) {
            Ok(None) => {
                drop(daemon);
                sys::mind_children();
                monitor::run(socket, cgroups);
            }
            Ok(Some(_)) => {}
            Err(error) => {
                let failure = Failed::new("fork a monitor", error).into_failure();
                let _ = link::send(&socket, &link::Report::Failed { number: 0, failure }, &[]);
            }
        }
    }
    Ok(())
}

/// A daemon that is protected from the OOM killer does not pass that on to steps.
fn spare_from_oom_protection() {
    const FILE: &str = "/proc/self/oom_score_adj";
    let protected = std::fs::read_to_string(FILE).ok().and_then(|text| text.trim().parse::<i32>().ok()).is_some_and(|score| score < 0);
    if protected {
        let _ = std::fs::write(FILE, "0");
    }
}

/// Sets the soft limit that the daemon names as our only argument.
fn limit_open_files() {
    let Some(soft) = std::env::args().nth(1).and_then(|soft| soft.parse().ok()) else { return };
    let hard = getrlimit(Resource::Nofile).maximum;
    // It was ours before the daemon raised its own.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(soft), maximum: hard });
}

/// A failed step of setting a container up.
#[derive(Debug)]
pub(crate) struct Failed {
    message: String,
    errno: Option<i32>,
    program: bool,
}

pub(crate) type Outcome<T> = Result<T, Failed>;

impl Failed {
    pub fn new(action: impl std::fmt::Display, error: impl Into<io::Error>) -> Self {
        let error = error.into();
        Self { message: format!("failed to {action}: {}", describe(&error)), errno: error.raw_os_error(), program: false }
    }

    pub fn plain(message: impl Into<String>) -> Self {
        Self { message: message.into(), errno: None, program: false }
    }

    /// The program cannot be executed.
    pub fn program(message: impl Into<String>) -> Self {
        Self { message: message.into(), errno: None, program: true }
    }

    pub fn into_failure(self) -> Failure {
        Failure { message: self.message, errno: self.errno, program: self.program }
    }
}

/// The kernel's words alone, as every other tool prints them: lower case, without the number.
pub(crate) fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = text.chars();
    match (letters.next(), error.raw_os_error()) {
        (Some(first), Some(_)) => first.to_lowercase().chain(letters).collect(),
        _ => text.to_owned(),
    }
}

/// What to do about an id that the user namespace does not have, where that is what an error says.
pub(crate) fn unmapped(errno: rustix::io::Errno) -> &'static str {
    match errno {
        rustix::io::Errno::INVAL => {
            ", which the daemon's user namespace does not have (give its user more ids in /etc/subuid and /etc/subgid)"
        }
        _ => "",
    }
}

/// Names what was tried when a system call fails.
pub(crate) trait Try<T> {
    fn tried<D: std::fmt::Display>(self, action: impl FnOnce() -> D) -> Outcome<T>;
}

impl<T, E: Into<io::Error>> Try<T> for Result<T, E> {
    fn tried<D: std::fmt::Display>(self, action: impl FnOnce() -> D) -> Outcome<T> {
        self.map_err(|error| Failed::new(action(), error))
    }
}
