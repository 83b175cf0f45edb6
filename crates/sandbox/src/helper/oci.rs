//! Containers made by an OCI runtime.
//!
//! The runtime only makes and starts them (`create`, `start`, `delete`, and `exec --detach`). Their processes are children of the monitor,
//! which for this is the first process of a pid namespace around the container: it inherits what the runtime leaves behind, and when it
//! ends, for whatever reason, the kernel ends everything else. Root, sources of mounts and configuration exist in its mount namespace only.
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use super::cgroup::{self, Cgroups};
use super::config::{self, Bound, Ids};
use super::root::{self, Staged};
use super::{Failed, Outcome, Try as _, confine, emulate, mount, user};
use crate::link::{self, Labels, Oci, Report, Spec, SpecNetwork, SpecProcess};
use crate::sys::Child;

/// A container of an OCI runtime, as its monitor knows it.
pub(crate) struct Run {
    oci: Oci,
    id: String,
    root: PathBuf,
    insecure: bool,
    labels: Labels,
    capabilities: u64,
    memory: Option<(PathBuf, &'static str)>,
    /// A user's daemon that may not make any.
    without_cgroups: bool,
    /// Holds the registration of the container's emulator.
    _emulator: Option<OwnedFd>,
}

/// Makes and starts the container in the namespaces of this process, which is the first of its pid namespace. `monitor` is the other part of
/// [`emulate`], if the container has an emulator.
pub(crate) fn start(
    spec: &Spec,
    blobs: &[u8],
    files: Option<[OwnedFd; 3]>,
    cgroups: &Cgroups,
    daemon: &OwnedFd,
    monitor: Option<OwnedFd>,
) -> Outcome<(Run, Child)> {
    let oci = spec.oci.clone().ok_or_else(|| Failed::plain("no OCI runtime is named"))?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).tried(|| "tie to the monitor")?;
    let Staged { user, stubs, sources } = root::stage(spec, blobs, &oci.bundle, cgroups)?;
    let (mut resolv, mut hosts) = (spec.resolv.clone(), spec.hosts.clone());
    if spec.labels.mount.is_some() {
        resolv = confine::copy_into(&oci.bundle, "resolv.conf", &resolv)?;
        hosts = confine::copy_into(&oci.bundle, "hosts", &hosts)?;
    }
    let mut bound = vec![of_ours(&resolv, "/etc/resolv.conf"), of_ours(&hosts, "/etc/hosts")];
    for (dest, source, readonly) in sources {
        if !spec.insecure && ["/dev", "/dev/null"].contains(&dest.as_str()) {
            // CVE-2025-31133 and its like.
            let why = "covers what is masked with what it finds there, so a step may not replace it; the built-in sandbox allows that";
            return Err(Failed::plain(format!("cannot mount over {dest}: {} {why}", oci.binary.display())));
        }
        let mut options = vec!["rbind"];
        options.extend(readonly.then_some("ro"));
        bound.retain(|earlier| earlier.dest != dest);
        bound.push(Bound { source: source.display().to_string(), dest, options });
    }
    let mut ids = Ids::of_this_process();
    let mut holder = None;
    if let (Some(emulator), Some(monitor)) = (&spec.emulator, monitor) {
        if spec.network == SpecNetwork::Given {
            bound.push(network_tree(&oci.bundle)?);
        }
        holder = Some(emulate::surround(emulator, &emulate::open(emulator)?, &monitor)?);
        ids = ids.nested();
    }
    let own = rustix::thread::capabilities(None).tried(|| "read capabilities")?.permitted.bits();
    let config = config::config(spec, &user, &bound, cgroups.is_v2(), own, root::loop_devices(), ids);
    write(&oci.bundle.join("config.json"), &config)?;
    let memory = cgroups.memory_events(&spec.cgroup);
    let run = Run {
        oci,
        id: spec.id.clone(),
        root: spec.stage_root.clone(),
        insecure: spec.insecure,
        labels: spec.labels.clone(),
        capabilities: own,
        memory,
        without_cgroups: ids.go_without_cgroups(&spec.resources),
        _emulator: holder,
    };
    let bundle = run.oci.bundle.clone();
    let started = run.detached(0, "create", files, daemon, |command| {
        command.arg("--bundle").arg(&bundle);
    })?;
    if ids == Ids::All && !spec.insecure {
        // Runtimes let in more devices than those asked for.
        cgroups.guard_devices(&spec.cgroup, &spec.devices)?;
    }
    link::send(daemon, &Report::Started { number: 0, stubs }, &[]).tried(|| "report the start")?;
    match run.command("start").arg(&run.id).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status() {
        Ok(status) if status.success() => Ok((run, started)),
        Ok(_) => Err(run.failed("start")),
        Err(error) => Err(Failed::new(format!("run {}", run.oci.binary.display()), error)),
    }
}

/// Takes away what a runtime that was killed has left; called when no process of the container is left.
pub(crate) fn sweep(spec: &Spec, cgroups: &Cgroups) {
    cgroups.remove_all(&spec.cgroup);
    if let Some(oci) = &spec.oci {
        let _ = fs::remove_dir_all(oci.state.join(&spec.id));
    }
}

impl Run {
    pub fn exec(&self, number: u32, process: &SpecProcess, files: Option<[OwnedFd; 3]>, daemon: &OwnedFd) -> Outcome<Child> {
        let root = super::path::open_dir(&self.root).tried(|| "open the root")?;
        let user = user::find(root.as_fd(), &process.user)?.in_groups(&process.groups);
        let process = SpecProcess { insecure: self.insecure, ..process.clone() };
        let file = self.oci.bundle.join(format!("process-{number}.json"));
        write(&file, &config::process(&process, &user, self.capabilities, &self.labels))?;
        let child = self.detached(number, "exec", files, daemon, |command| {
            command.arg("--detach").arg("--process").arg(&file);
        })?;
        link::send(daemon, &Report::Started { number, stubs: Vec::new() }, &[]).tried(|| "report the start")?;
        Ok(child)
    }

    pub fn oom_killed(&self) -> bool {
        self.memory.as_ref().is_some_and(|(file, key)| cgroup::oom_killed(file, key))
    }

    pub fn clean_up(self) {
        let mut command = self.command("delete");
        command.arg("--force").arg(&self.id).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if !command.status().is_ok_and(|status| status.success()) {
            eprintln!("{}: {}", super::NAME, self.failed("delete").into_failure().message);
        }
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.oci.binary);
        command.arg("--root").arg(&self.oci.state).arg("--log").arg(self.log()).args(["--log-format", "json"]);
        if self.without_cgroups && self.name().contains("crun") {
            command.arg("--cgroup-manager=disabled");
        }
        command.arg(verb);
        // Runtimes look for their own tools.
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    fn name(&self) -> String {
        self.oci.binary.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn log(&self) -> PathBuf {
        self.oci.bundle.join("log.json")
    }

    /// Has the runtime make a process and leave it to us.
    fn detached(
        &self,
        number: u32,
        verb: &'static str,
        files: Option<[OwnedFd; 3]>,
        daemon: &OwnedFd,
        more: impl FnOnce(&mut Command),
    ) -> Outcome<Child> {
        let pid_file = self.oci.bundle.join(format!("pid-{number}"));
        let mut command = self.command(verb);
        command.arg("--pid-file").arg(&pid_file);
        more(&mut command);
        let console = match files {
            Some([stdin, stdout, stderr]) => {
                command.stdin(stdin).stdout(stdout).stderr(stderr);
                None
            }
            None => {
                let path = self.oci.bundle.join(format!("console-{number}"));
                command.arg("--console-socket").arg(&path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                if verb == "exec" {
                    command.arg("--tty");
                }
                Some(listen(&path).tried(|| "open a console socket")?)
            }
        };
        command.arg(&self.id);
        let mut child = command.spawn().tried(|| format!("run {}", self.oci.binary.display()))?;
        // It holds our copies of the process's streams.
        drop(command);
        let terminal = console.map(|console| terminal(&console, &child));
        let status = child.wait().tried(|| format!("wait for {}", self.oci.binary.display()))?;
        if !status.success() {
            return Err(self.failed(verb));
        }
        if let Some(terminal) = terminal {
            let terminal = terminal.tried(|| "receive a terminal")?;
            link::send(daemon, &Report::Terminal { number }, &[terminal.as_fd()]).tried(|| "pass a terminal on")?;
        }
        let pid = fs::read_to_string(&pid_file).ok().and_then(|text| text.trim().parse().ok());
        let pid = pid.ok_or_else(|| Failed::plain(format!("{} left no process id", self.oci.binary.display())))?;
        let handle = Pid::from_raw(pid).ok_or_else(|| Failed::plain("no process"))?;
        let pidfd = rustix::process::pidfd_open(handle, PidfdFlags::empty()).tried(|| "watch the process")?;
        Ok(Child { pid, pidfd })
    }

    /// What the runtime says of its failure. A program that cannot be executed is no failure of the container.
    fn failed(&self, verb: &'static str) -> Failed {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let last = log.lines().rev().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let message = last.filter_map(|entry| entry["msg"].as_str().map(str::to_owned)).find(|message| !message.is_empty());
        let message = message.unwrap_or_else(|| "without a word in its log".to_owned());
        let name = self.name();
        if ["exec: ", "exec `", "executable file", "exec format"].iter().any(|sign| message.contains(sign)) {
            // runc has said it on the process's own stderr.
            return Failed::program(if name.contains("runc") { String::new() } else { message });
        }
        Failed::plain(format!("{name} failed to {verb} the container: {message}"))
    }
}

/// What `/sys` shows of a network belongs to whoever made that, and can be mounted by nobody in a user namespace below.
fn network_tree(bundle: &Path) -> Outcome<Bound> {
    let place = bundle.join("sys");
    let action = || format!("mount {}", place.display());
    let tree = mount::new("sysfs", &[], mount::NOSUID | mount::NODEV | mount::NOEXEC).tried(action)?;
    fs::create_dir(&place).tried(action)?;
    super::path::open_dir(&place).and_then(|place| mount::put(&tree, &place)).tried(action)?;
    Ok(Bound { source: place.display().to_string(), dest: "/sys".into(), options: vec!["rbind", "nosuid", "noexec", "nodev", "ro"] })
}

fn of_ours(path: &Path, dest: &str) -> Bound {
    let options = vec!["rbind", "ro", "nosuid", "noexec", "nodev"];
    Bound { source: path.display().to_string(), dest: dest.to_owned(), options }
}

fn write(path: &Path, value: &serde_json::Value) -> Outcome<()> {
    let file = File::create(path).tried(|| format!("create {}", path.display()))?;
    serde_json::to_writer(file, value).map_err(io::Error::from).tried(|| format!("write {}", path.display()))
}

fn listen(path: &Path) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, 1)?;
    Ok(socket)
}

/// The terminal that the runtime sends, unless it ends before.
fn terminal(console: &OwnedFd, runtime: &std::process::Child) -> io::Result<OwnedFd> {
    use rustix::event::{PollFd, PollFlags};
    let pid = Pid::from_raw(runtime.id() as i32).ok_or(io::ErrorKind::NotFound)?;
    let runtime = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let mut watched = [PollFd::new(console, PollFlags::IN), PollFd::new(&runtime, PollFlags::IN)];
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut watched, None))?;
    if watched[0].revents().is_empty() {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    let connection = rustix::net::accept_with(console, SocketFlags::CLOEXEC)?;
    link::receive_fd(&connection)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Waits for a process by its descriptor.
pub(crate) fn outlive(keeper: &Child) {
    let _ = rustix::io::retry_on_intr(|| rustix::process::waitid(WaitId::PidFd(keeper.pidfd.as_fd()), WaitIdOptions::EXITED));
}
