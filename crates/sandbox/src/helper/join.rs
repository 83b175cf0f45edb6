//! Further processes in a container that runs.
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::process::Signal;
use rustix::thread::ThreadNameSpaceType;

use super::access::become_program;
use super::cgroup::Group;
use super::{Failed, Outcome, Try as _, confine, init, user};
use crate::link::{self, Labels, Report, SpecProcess};
use crate::sys;

/// A container to enter, by its first process.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub init: BorrowedFd<'a>,
    /// What to enter. Who does not own a namespace may not enter it, not even the one that it is in.
    pub namespaces: ThreadNameSpaceType,
    pub labels: &'a Labels,
}

/// The namespaces that every container has for itself.
pub(crate) const ALWAYS_OWN: ThreadNameSpaceType = ThreadNameSpaceType::MOUNT
    .union(ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME)
    .union(ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION)
    .union(ThreadNameSpaceType::PROCESS_ID);

/// Makes a process in the container of `init`, a child of this one; its id.
///
/// A process does not enter a pid namespace, only its children do. So one in between enters, and has a child in our name.
pub(crate) fn start(
    process: &SpecProcess,
    number: u32,
    files: Option<[OwnedFd; 3]>,
    target: Target<'_>,
    group: &Group,
    daemon: &OwnedFd,
) -> Outcome<i32> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).tried(|| "create a pipe")?;
    let Some(between) = sys::clone_process(0, None, false).tried(|| "fork")? else {
        drop(read);
        let failed = match enter(target, group) {
            Err(failed) => failed,
            Ok(()) => match sys::clone_process(0, group.born_in(), true) {
                Ok(Some(child)) => {
                    let _ = rustix::io::write(&write, &child.pid.to_ne_bytes());
                    std::process::exit(0)
                }
                Ok(None) => {
                    drop(write);
                    run(process, number, files, daemon)
                }
                Err(error) => Failed::new("fork in the container", error),
            },
        };
        let _ = link::send(daemon, &Report::Failed { number, failure: failed.into_failure() }, &[]);
        std::process::exit(1)
    };
    drop(write);
    let mut pid = [0; 4];
    let read = rustix::io::retry_on_intr(|| rustix::io::read(&read, &mut pid)).tried(|| "learn of the process")?;
    let _ = rustix::process::waitid(rustix::process::WaitId::PidFd(between.pidfd.as_fd()), rustix::process::WaitIdOptions::EXITED);
    // Its own report says why.
    if read == pid.len() { Ok(i32::from_ne_bytes(pid)) } else { Err(Failed::plain("failed to enter the container")) }
}

fn enter(target: Target<'_>, group: &Group) -> Outcome<()> {
    confine::at_exec(target.labels)?;
    group.join()?;
    rustix::thread::move_into_thread_name_spaces(target.init, target.namespaces).tried(|| "enter the container")
}

fn run(process: &SpecProcess, number: u32, files: Option<[OwnedFd; 3]>, daemon: &OwnedFd) -> ! {
    let prepare = || -> Outcome<_> {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).tried(|| "tie to the monitor")?;
        let _ = sys::new_session_keyring();
        let root = super::path::open_dir(Path::new("/")).tried(|| "open the root")?;
        let user = user::find(root.as_fd(), &process.user)?.in_groups(&process.groups);
        Ok((user, init::streams(files, daemon, number)?))
    };
    let failed = match prepare() {
        Err(failed) => failed,
        Ok((user, streams)) => become_program(process, &user, streams, daemon, || {
            link::send(daemon, &Report::Started { number, stubs: Vec::new() }, &[]).tried(|| "report the start")
        }),
    };
    let _ = link::send(daemon, &Report::Failed { number, failure: failed.into_failure() }, &[]);
    std::process::exit(1)
}
