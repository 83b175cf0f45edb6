//! Watches over one container: makes it, hears the daemon, reports ends, cleans up. It ends when all of that is done.
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Signal, WaitId, WaitIdOptions};
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType};

use super::cgroup::{Cgroups, Group, Openness};
use super::usage::Sampler;
use super::{Failed, Outcome, Try as _, emulate, init, join, oci};
use crate::link::{self, Failure, Labels, Report, Request, Spec, SpecNetwork, SpecProcess};
use crate::sys::{self, Child};

/// A process of the container that the monitor waits for. The first is number 0, and the others die with it.
struct Member {
    number: u32,
    pid: i32,
    pidfd: OwnedFd,
}

struct Monitor {
    daemon: OwnedFd,
    cgroups: Cgroups,
    group: Option<Group>,
    members: Vec<Member>,
    insecure: bool,
    labels: Labels,
    /// Those that the container does not share with us.
    namespaces: ThreadNameSpaceType,
    init: Option<u32>,
    sampler: Option<Sampler>,
    runtime: Option<oci::Run>,
    /// Tells of children's ends where there are others than members.
    orphans: Option<OwnedFd>,
}

/// Never returns.
pub(crate) fn run(daemon: OwnedFd, cgroups: Cgroups) -> ! {
    // So that `ps` tells it from the zygote.
    let _ = rustix::thread::set_name(c"kiln-monitor");
    let mut monitor = Monitor {
        daemon,
        cgroups,
        group: None,
        members: Vec::new(),
        insecure: false,
        labels: Labels::default(),
        namespaces: ThreadNameSpaceType::empty(),
        init: None,
        sampler: None,
        runtime: None,
        orphans: None,
    };
    let status = match monitor.serve() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{}: {error}", super::NAME);
            monitor.kill();
            monitor.await_all();
            1
        }
    };
    monitor.clean_up();
    std::process::exit(status)
}

impl Monitor {
    /// Until the container has ended, or has failed to start.
    fn serve(&mut self) -> io::Result<()> {
        let mut buffer = Vec::new();
        let mut connected = true;
        loop {
            let (heard, ended) = self.wait(connected)?;
            if heard {
                match link::receive::<Request>(&self.daemon, &mut buffer)? {
                    Some((request, fds)) => self.handle(request, fds)?,
                    None => {
                        connected = false;
                        self.kill();
                    }
                }
            }
            if let Some(sampler) = &mut self.sampler {
                sampler.keep_up();
            }
            for at in ended.into_iter().rev() {
                self.reap(at)?;
            }
            self.reap_orphans();
            if self.members.is_empty() && (self.init.is_some() || !connected) {
                return Ok(());
            }
        }
    }

    /// Whether the daemon said something, and which members have ended.
    fn wait(&self, connected: bool) -> io::Result<(bool, Vec<usize>)> {
        let mut watched: Vec<PollFd<'_>> = self.members.iter().map(|m| PollFd::new(&m.pidfd, PollFlags::IN)).collect();
        if let Some(orphans) = &self.orphans {
            watched.push(PollFd::new(orphans, PollFlags::IN));
        }
        if connected {
            watched.push(PollFd::new(&self.daemon, PollFlags::IN));
        }
        let patience = self.sampler.as_ref().map(Sampler::patience);
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut watched, patience.as_ref()))?;
        let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let heard = connected && watched.last().is_some_and(ready);
        let ended = (0..self.members.len()).filter(|at| ready(&watched[*at])).collect();
        Ok((heard, ended))
    }

    fn handle(&mut self, request: Request, fds: Vec<OwnedFd>) -> io::Result<()> {
        match request {
            Request::Start => {
                if let Err(failed) = self.start(fds) {
                    self.init.get_or_insert(0);
                    self.fail(0, failed.into_failure())?;
                }
            }
            Request::Exec { number } => {
                if let Err(failed) = self.exec(number, fds) {
                    self.fail(number, failed.into_failure())?;
                }
            }
            Request::Signal { number, signal } => {
                if let (Some(member), Some(signal)) = (self.members.iter().find(|m| m.number == number), Signal::from_named_raw(signal)) {
                    let _ = rustix::process::pidfd_send_signal(&member.pidfd, signal);
                }
            }
            Request::Kill => self.kill(),
            Request::Monitor | Request::Sweep { .. } => {}
        }
        Ok(())
    }

    fn start(&mut self, fds: Vec<OwnedFd>) -> Outcome<()> {
        let (memory, mut rest) = first(fds)?;
        let (spec, blobs): (Spec, Vec<u8>) = link::read_memory(memory).tried(|| "read the container's description")?;
        if spec.network == SpecNetwork::Given {
            // Whatever is made from here on is made in there, by a runtime too.
            let (network, others) = first(rest)?;
            rest = others;
            rustix::thread::move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).tried(|| "enter the network")?;
        }
        let files = streams(rest)?;
        self.insecure = spec.insecure;
        self.labels = spec.labels.clone();
        self.sampler = Some(Sampler::new(self.cgroups.accounts(&spec.cgroup), spec.network == SpecNetwork::Given));
        if spec.oci.is_some() {
            return self.start_oci(&spec, &blobs, files);
        }
        let daemon = &self.daemon;
        let mut warn = |message| drop(link::send(daemon, &Report::Warning { message }, &[]));
        let group = self.group.insert(self.cgroups.create(&spec.cgroup, &spec.resources, Openness::of(&spec), &mut warn)?);
        self.namespaces = join::ALWAYS_OWN;
        self.namespaces.set(ThreadNameSpaceType::CONTROL_GROUP, init::has_own_cgroups(&self.cgroups, group));
        self.namespaces.set(ThreadNameSpaceType::USER, spec.emulator.is_some());
        let namespaces = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        let (ours, theirs) = emulate::pair(&spec)?;
        match sys::clone_process(namespaces as u64, group.born_in(), false).tried(|| "create namespaces")? {
            None => {
                drop(ours);
                init::run(&spec, &blobs, files, &self.cgroups, group, &self.daemon, theirs)
            }
            Some(child) => {
                drop((files, theirs));
                let pid = child.pid;
                self.present(&child);
                self.adopt(0, child);
                if let Some(ours) = ours {
                    emulate::map_ids(&ours, pid)?;
                }
            }
        }
        Ok(())
    }

    /// From here on the monitor is another process, the first of a pid namespace; this one waits for it and sweeps up after it.
    fn start_oci(&mut self, spec: &Spec, blobs: &[u8], files: Option<[OwnedFd; 3]>) -> Outcome<()> {
        let namespaces = libc::CLONE_NEWPID | libc::CLONE_NEWNS;
        let (ours, theirs) = emulate::pair(spec)?;
        if let Some(keeper) = sys::clone_process(namespaces as u64, None, false).tried(|| "create namespaces")? {
            drop((files, theirs));
            self.present(&keeper);
            if let Some(ours) = ours {
                emulate::map_ids(&ours, keeper.pid)?;
            }
            // The daemon is to hear of the keeper's end.
            self.daemon = rustix::fs::memfd_create("none", rustix::fs::MemfdFlags::CLOEXEC).tried(|| "create a file")?;
            oci::outlive(&keeper);
            oci::sweep(spec, &self.cgroups);
            std::process::exit(0);
        }
        self.orphans = Some(sys::child_signals().tried(|| "watch children")?);
        drop(ours);
        let (run, child) = oci::start(spec, blobs, files, &self.cgroups, &self.daemon, theirs)?;
        self.runtime = Some(run);
        self.adopt(0, child);
        Ok(())
    }

    fn exec(&mut self, number: u32, fds: Vec<OwnedFd>) -> Outcome<()> {
        let (memory, rest) = first(fds)?;
        let files = streams(rest)?;
        let (mut process, _): (SpecProcess, _) = link::read_memory(memory).tried(|| "read the process's description")?;
        process.insecure = self.insecure;
        if let Some(runtime) = &self.runtime {
            let child = runtime.exec(number, &process, files, &self.daemon)?;
            self.adopt(number, child);
            return Ok(());
        }
        let (Some(init), Some(group)) = (self.members.iter().find(|m| m.number == 0), &self.group) else {
            return Err(Failed::plain("the container has ended"));
        };
        let pid = join::start(
            &process,
            number,
            files,
            join::Target { init: init.pidfd.as_fd(), namespaces: self.namespaces, labels: &self.labels },
            group,
            &self.daemon,
        )?;
        let pid_handle = rustix::process::Pid::from_raw(pid).ok_or_else(|| Failed::plain("no process"))?;
        let pidfd = rustix::process::pidfd_open(pid_handle, rustix::process::PidfdFlags::empty()).tried(|| "watch the process")?;
        self.adopt(number, Child { pid, pidfd });
        Ok(())
    }

    /// If the daemon cannot hear it, it is about to be gone.
    fn present(&self, leader: &Child) {
        let _ = link::send(&self.daemon, &Report::Leader, &[leader.pidfd.as_fd()]);
    }

    fn adopt(&mut self, number: u32, child: Child) {
        if number == 0 {
            self.init = Some(child.pid as u32);
        }
        self.members.push(Member { number, pid: child.pid, pidfd: child.pidfd });
    }

    fn kill(&mut self) {
        // The kernel kills the rest with the first.
        if let Some(init) = self.members.iter().find(|m| m.number == 0) {
            let _ = rustix::process::pidfd_send_signal(&init.pidfd, Signal::KILL);
        }
    }

    fn reap(&mut self, at: usize) -> io::Result<()> {
        let member = self.members.remove(at);
        let status = rustix::io::retry_on_intr(|| rustix::process::waitid(WaitId::PidFd(member.pidfd.as_fd()), WaitIdOptions::EXITED))?;
        let code = status.map_or(255, |status| match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => code,
            (None, Some(signal)) => 128 + signal,
            (None, None) => 255,
        });
        let oom_killed = match &self.runtime {
            Some(runtime) => runtime.oom_killed(),
            None => self.group.as_ref().is_some_and(Group::oom_killed),
        };
        let sampler = if member.number == 0 { self.sampler.take() } else { None };
        let usage = sampler.map(Sampler::finish).unwrap_or_default();
        self.tell(&Report::Exited { number: member.number, code, oom_killed, usage })
    }

    /// A runtime leaves more than the processes asked for, and while one of them is unreaped its pid namespace cannot end. Members are
    /// left to [`Monitor::reap`].
    fn reap_orphans(&self) {
        let Some(orphans) = &self.orphans else { return };
        let mut signals = [0u8; 1024];
        while rustix::io::read(orphans, &mut signals).is_ok() {}
        let children = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        let pids = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        for pid in pids.filter(|pid| self.members.iter().all(|member| member.pid != *pid)).filter_map(rustix::process::Pid::from_raw) {
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::NOHANG);
        }
    }

    fn fail(&self, number: u32, failure: Failure) -> io::Result<()> {
        self.tell(&Report::Failed { number, failure })
    }

    /// A daemon that has gone needs no report.
    fn tell(&self, report: &Report) -> io::Result<()> {
        match link::send(&self.daemon, report, &[]) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe || error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
            outcome => outcome,
        }
    }

    fn await_all(&mut self) {
        while !self.members.is_empty() {
            let _ = self.reap(self.members.len() - 1);
        }
    }

    fn clean_up(self) {
        if let Some(runtime) = self.runtime {
            runtime.clean_up();
        }
        if let Some(group) = self.group {
            group.remove();
        }
    }
}

/// What a message carries first, and the rest.
fn first(fds: Vec<OwnedFd>) -> Outcome<(OwnedFd, Vec<OwnedFd>)> {
    let mut fds = fds.into_iter();
    let first = fds.next().ok_or_else(|| Failed::plain("a message without its description"))?;
    Ok((first, fds.collect()))
}

fn streams(fds: Vec<OwnedFd>) -> Outcome<Option<[OwnedFd; 3]>> {
    match <[OwnedFd; 3]>::try_from(fds) {
        Ok(files) => Ok(Some(files)),
        Err(rest) if rest.is_empty() => Ok(None),
        Err(_) => Err(Failed::plain("a message with some of its streams")),
    }
}
