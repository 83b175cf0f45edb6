//! The last steps before a program runs: identity, capabilities, limits, filter; then the program itself.
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read as _};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::path::{Want, ensure};
use super::user::User;
use super::{Failed, Outcome, Try as _, describe, unmapped};
use crate::defaults;
use crate::link::SpecProcess;
use crate::{emulation, seccomp, sys};

/// Streams of a process: one terminal, or three files.
pub(crate) enum Streams {
    Terminal(OwnedFd),
    Files([OwnedFd; 3]),
}

/// Turns this process, which stands in its container's root, into the program. Returns only on failure. `ready` is called when all that
/// is left is to execute; of all descriptors only `daemon` is open then.
pub(crate) fn become_program(
    process: &SpecProcess,
    user: &User,
    streams: Streams,
    daemon: &OwnedFd,
    ready: impl FnOnce() -> Outcome<()>,
) -> Failed {
    // They go with all other descriptors, by number.
    let streams = ManuallyDrop::new(streams);
    match prepare(process, user, &streams, daemon, ready) {
        Err(failed) => failed,
        Ok((program, args, env)) => {
            let error = sys::exec(&program, &args, &env);
            let path = Path::new(OsStr::from_bytes(program.as_bytes()));
            Failed::program(format!("exec {}: {}{}", path.display(), describe(&error), misfit(path, &error)))
        }
    }
}

/// What about the file it is that the kernel does not like, where that can be told.
fn misfit(program: &Path, error: &io::Error) -> String {
    let mut head = Vec::new();
    if File::open(program).and_then(|file| file.take(256).read_to_end(&mut head)).is_err() {
        return String::new();
    }
    let interpreter = head.strip_prefix(b"#!").map(|line| {
        let line = String::from_utf8_lossy(line).into_owned();
        line.split_whitespace().next().unwrap_or_default().to_owned()
    });
    let is_binary = head.starts_with(b"\x7fELF");
    match (error.raw_os_error(), interpreter, emulation::architecture_of(&head)) {
        (Some(libc::ENOENT), Some(interpreter), _) => format!(": its interpreter {interpreter} is not there"),
        (Some(libc::ENOENT), None, _) if is_binary => ": the loader that it asks for is not there".to_owned(),
        (Some(libc::ENOEXEC), None, Some(architecture)) => format!(
            ": it is a program for linux/{architecture}, and this step is for another platform: take a base image for the step's platform, \
             or build with --platform linux/{architecture} and an emulator"
        ),
        (Some(libc::ENOEXEC), None, None) if !is_binary => ": it is neither a program nor a script that begins with #!".to_owned(),
        _ => String::new(),
    }
}

type Program = (CString, Vec<CString>, Vec<CString>);

fn prepare(
    process: &SpecProcess,
    user: &User,
    streams: &Streams,
    daemon: &OwnedFd,
    ready: impl FnOnce() -> Outcome<()>,
) -> Outcome<Program> {
    rustix::process::setsid().tried(|| "start a session")?;
    enter_cwd(&process.cwd)?;
    connect(streams, user)?;
    for limit in &process.rlimits {
        limit_resource(limit)?;
    }
    let strings = |list: &[String], what: &str| {
        let strings = list.iter().map(|s| CString::new(s.as_str()));
        strings.collect::<Result<Vec<_>, _>>().map_err(|_| Failed::plain(format!("a null byte in {what}")))
    };
    let mut env = process.env.clone();
    if !env.iter().any(|entry| entry.strip_prefix("HOME=").is_some_and(|home| !home.is_empty())) {
        env.retain(|entry| entry != "HOME=");
        env.push(format!("HOME={}", user.home));
    }
    let (args, env) = (strings(&process.args, "an argument")?, strings(&env, "the environment")?);
    // Without no-new-privileges only a privileged process may install it, so it comes before privileges go.
    if !process.insecure && sys::filters_supported() {
        sys::install_filter(&seccomp::default_filter()).tried(|| "install the seccomp filter")?;
    }
    assume(user, process.insecure)?;
    let program = look_up(&process.args, &process.env)?;
    ready()?;
    sys::reset_signals();
    rustix::process::umask(Mode::from_raw_mode(0o022));
    sys::close_all_but(daemon.as_fd()).tried(|| "close descriptors")?;
    Ok((program, args, env))
}

/// The directory was made in the root already; what a mount hid is made again in it.
fn enter_cwd(cwd: &str) -> Outcome<()> {
    let cwd = if cwd.is_empty() { "/" } else { cwd };
    let root = super::path::open_dir(Path::new("/")).tried(|| "open the root")?;
    let dir = ensure(root.as_fd(), Path::new(cwd), Want::Directory).tried(|| format!("create working directory {cwd}"))?;
    rustix::process::fchdir(&dir.fd).tried(|| format!("enter working directory {cwd}"))
}

fn connect(streams: &Streams, user: &User) -> Outcome<()> {
    let action = || "connect standard streams";
    let fds = match streams {
        Streams::Terminal(terminal) => {
            rustix::process::ioctl_tiocsctty(terminal).tried(|| "take the terminal")?;
            [terminal, terminal, terminal]
        }
        Streams::Files([stdin, stdout, stderr]) => [stdin, stdout, stderr],
    };
    for (fd, number) in fds.into_iter().zip(0..) {
        sys::install_fd(fd.as_fd(), number).tried(action)?;
        // So that the user can open /dev/stdout and its like again. Devices are shared, and not ours to give away.
        let stat = rustix::fs::fstat(fd).tried(action)?;
        let shared = FileType::from_raw_mode(stat.st_mode).is_char_device() && matches!(streams, Streams::Files(_));
        if stat.st_uid != user.uid && !shared {
            let _ = rustix::fs::fchown(fd, Some(Uid::from_raw(user.uid)), None);
        }
    }
    Ok(())
}

fn limit_resource(limit: &crate::container::Rlimit) -> Outcome<()> {
    let name = limit.name.to_ascii_uppercase();
    let name = name.strip_prefix("RLIMIT_").unwrap_or(&name);
    let resource = match name {
        "AS" => Resource::As,
        "CORE" => Resource::Core,
        "CPU" => Resource::Cpu,
        "DATA" => Resource::Data,
        "FSIZE" => Resource::Fsize,
        "LOCKS" => Resource::Locks,
        "MEMLOCK" => Resource::Memlock,
        "MSGQUEUE" => Resource::Msgqueue,
        "NICE" => Resource::Nice,
        "NOFILE" => Resource::Nofile,
        "NPROC" => Resource::Nproc,
        "RSS" => Resource::Rss,
        "RTPRIO" => Resource::Rtprio,
        "RTTIME" => Resource::Rttime,
        "SIGPENDING" => Resource::Sigpending,
        "STACK" => Resource::Stack,
        other => return Err(Failed::plain(format!("invalid rlimit type: RLIMIT_{other}"))),
    };
    // All ones is the kernel's infinity, and what -1 becomes.
    let value = |limit: i64| Some(limit as u64).filter(|limit| *limit != u64::MAX);
    rustix::process::setrlimit(resource, Rlimit { current: value(limit.soft), maximum: value(limit.hard) })
        .tried(|| format!("set RLIMIT_{name} to {}:{}", limit.soft, limit.hard))
}

/// Becomes the user, with the capabilities that it may have.
fn assume(user: &User, insecure: bool) -> Outcome<()> {
    let allowed = CapabilitySet::from_bits_retain(if insecure { u64::MAX } else { defaults::capability_bits() });
    let own = rustix::thread::capabilities(None).tried(|| "read capabilities")?;
    let kept = own.permitted & allowed;
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Past the last one that this kernel knows.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(Failed::new("drop a capability", errno)),
        }
    }
    rustix::thread::set_keep_capabilities(true).tried(|| "keep capabilities over a change of user")?;
    let groups: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    match rustix::thread::set_thread_groups(&groups) {
        // A user namespace of one id has none to give.
        Err(Errno::PERM | Errno::INVAL) if crate::rootless::has_one_id() => {}
        outcome => outcome.tried(|| "set supplementary groups")?,
    }
    rustix::thread::set_thread_res_gid(gid, gid, gid)
        .map_err(|errno| Failed::new(format!("become group {}{}", user.gid, unmapped(errno)), errno))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
        .map_err(|errno| Failed::new(format!("become user {}{}", user.uid, unmapped(errno)), errno))?;
    rustix::thread::set_keep_capabilities(false).tried(|| "let go of capabilities")?;
    let inheritable = if insecure { kept } else { CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable })
        .tried(|| "set capabilities")?;
    if insecure {
        for capability in kept.iter() {
            let _ = rustix::thread::configure_capability_in_ambient_set(capability, true);
        }
    }
    // A change of identity clears it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).tried(|| "tie to the monitor")
}

/// Finds the program as a shell would, in the `PATH` of its own environment.
fn look_up(args: &[String], env: &[String]) -> Outcome<CString> {
    let Some(name) = args.first() else { return Err(Failed::plain("no program to run")) };
    let found = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(|_| Failed::plain("a null byte in the program's name"));
    if name.contains('/') {
        return match executable(Path::new(name)) {
            Ok(()) => found(Path::new(name)),
            Err(Errno::NOENT) => Err(Failed::program(format!("exec: {name:?}: stat {name}: no such file or directory"))),
            Err(errno) => Err(Failed::program(format!("exec: {name:?}: {}", describe(&errno.into())))),
        };
    }
    let path = env.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
    let mut denied = false;
    for dir in path.split(':') {
        let candidate = if dir.is_empty() { PathBuf::from(".").join(name) } else { Path::new(dir).join(name) };
        match executable(&candidate) {
            Ok(()) => return found(&candidate),
            Err(Errno::ACCESS) => denied = true,
            Err(_) => {}
        }
    }
    let why = if denied { "permission denied" } else { "executable file not found in $PATH" };
    Err(Failed::program(format!("exec: {name:?}: {why}")))
}

fn executable(path: &Path) -> Result<(), Errno> {
    if OsStr::is_empty(path.as_os_str()) {
        return Err(Errno::NOENT);
    }
    let file = rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode).is_dir() {
        return Err(Errno::ISDIR);
    }
    rustix::fs::accessat(CWD, path, rustix::fs::Access::EXEC_OK, rustix::fs::AtFlags::EACCESS)
}
