//! The first process of a container, between clone and exec.
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::OFlags;
use rustix::process::Signal;
use rustix::pty::OpenptFlags;

use super::access::{Streams, become_program};
use super::cgroup::{Cgroups, Group};
use super::mount::{clone_fd, put};
use super::path::{Want, ensure, open_in};
use super::user::User;
use super::{Outcome, Try as _, confine, emulate, root};
use crate::link::{self, Report, Spec};
use crate::sys;

/// Never returns: the process becomes the program, or says why not and exits.
pub(crate) fn run(
    spec: &Spec,
    blobs: &[u8],
    files: Option<[OwnedFd; 3]>,
    cgroups: &Cgroups,
    group: &Group,
    daemon: &OwnedFd,
    monitor: Option<OwnedFd>,
) -> ! {
    let failed = match set_up(spec, blobs, cgroups, group, monitor) {
        Err(failed) => failed,
        Ok((user, stubs)) => match streams(files, daemon, 0) {
            Err(failed) => failed,
            Ok(streams) => become_program(&spec.process, &user, streams, daemon, || {
                link::send(daemon, &Report::Started { number: 0, stubs }, &[]).tried(|| "report the start")
            }),
        },
    };
    let _ = link::send(daemon, &Report::Failed { number: 0, failure: failed.into_failure() }, &[]);
    std::process::exit(1)
}

fn set_up(
    spec: &Spec,
    blobs: &[u8],
    cgroups: &Cgroups,
    group: &Group,
    monitor: Option<OwnedFd>,
) -> Outcome<(User, Vec<std::path::PathBuf>)> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).tried(|| "tie to the monitor")?;
    confine::at_exec(&spec.labels)?;
    group.join()?;
    if has_own_cgroups(cgroups, group) {
        // From inside, so that the container's own cgroup is the root that it sees.
        sys::unshare_cgroups().tried(|| "create a cgroup namespace")?;
    }
    // Not where keys are compiled out or filtered away.
    let _ = sys::new_session_keyring();
    let root = root::build(spec, blobs, cgroups, group)?;
    rustix::system::sethostname(spec.hostname.as_bytes()).tried(|| "set the hostname")?;
    let emulator = match &spec.emulator {
        Some(emulator) => Some((emulator, emulate::open(emulator)?)),
        None => None,
    };
    root::enter(root.fd.as_fd())?;
    if let (Some((emulator, program)), Some(monitor)) = (emulator, monitor) {
        emulate::install(emulator, &program, &monitor)?;
    }
    Ok((root.user, root.stubs))
}

/// Whether the container's cgroup is the root of those that it sees.
pub(super) fn has_own_cgroups(cgroups: &Cgroups, group: &Group) -> bool {
    cgroups.is_v2() && group.born_in().is_some()
}

/// The streams given, or a new terminal of the container that this process stands in, whose other end the daemon gets.
pub(super) fn streams(files: Option<[OwnedFd; 3]>, daemon: &OwnedFd, number: u32) -> Outcome<Streams> {
    if let Some(files) = files {
        return Ok(Streams::Files(files));
    }
    let action = || "open a terminal";
    let root = super::path::open_dir(std::path::Path::new("/")).tried(action)?;
    let controller = open_in(root.as_fd(), "/dev/pts/ptmx", OFlags::RDWR | OFlags::NOCTTY).tried(action)?;
    rustix::pty::unlockpt(&controller).tried(action)?;
    let terminal =
        rustix::pty::ioctl_tiocgptpeer(&controller, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).tried(action)?;
    if number == 0 {
        console(&terminal)?;
    }
    link::send(daemon, &Report::Terminal { number }, &[controller.as_fd()]).tried(action)?;
    Ok(Streams::Terminal(terminal))
}

/// The container's terminal is its console. It is mounted from the descriptor itself: under its name there may be anything.
fn console(terminal: &OwnedFd) -> Outcome<()> {
    let action = || "make the terminal the console";
    let root = super::path::open_dir(std::path::Path::new("/")).tried(action)?;
    let place = ensure(root.as_fd(), std::path::Path::new("/dev/console"), Want::File).tried(action)?;
    clone_fd(terminal.as_fd()).and_then(|mount| put(&mount, &place.fd)).tried(action)
}
