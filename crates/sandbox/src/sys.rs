//! The only unsafe code of this room: the system calls that neither `std` nor `rustix` offers, each behind a safe signature.
//!
//! All of it but [`adopt`], [`give_back_memory`], [`limit_memory_pools`] and [`load_no_name_services`] runs in the helper, which has one thread.
#![allow(unsafe_code)]
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use rustix::io::Errno;

/// One instruction of a classic BPF program, laid out as the kernel's `sock_filter`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

/// A child made by [`clone_process`].
#[derive(Debug)]
pub(crate) struct Child {
    pub pid: i32,
    pub pidfd: OwnedFd,
}

/// Has the C library return to the system all whole pages that it keeps free. Takes some milliseconds; other threads may wait for memory meanwhile.
pub fn give_back_memory() {
    // SAFETY: it has no precondition, and locks what it walks over.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Has the C library divide memory among as many pools as there are processors, at most: it makes eight times as many, and each keeps what it once had.
pub fn limit_memory_pools() {
    #[cfg(target_env = "gnu")]
    {
        let processors = std::thread::available_parallelism().map_or(2, |count| count.get().max(2));
        // SAFETY: it sets a number.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, i32::try_from(processors).unwrap_or(i32::MAX));
        }
    }
}

/// Has the C library look names up in `/etc/hosts` and by DNS, both of which it can do by itself, whatever `/etc/nsswitch.conf` says. A static
/// program would load the plugins named there, of a system that it may not have been linked on. Before any thread is started.
pub fn load_no_name_services() {
    #[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
    {
        // SAFETY: as the C library's nss.h declares it.
        unsafe extern "C" {
            fn __nss_configure_lookup(database: *const libc::c_char, services: *const libc::c_char) -> libc::c_int;
        }
        // SAFETY: both are strings that live as long as the program.
        unsafe {
            __nss_configure_lookup(c"hosts".as_ptr(), c"files dns".as_ptr());
        }
    }
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// `libc` has it as an int, which it does not fit.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// clone3(2) as fork(2) with namespaces: `None` in the child. `cgroup` is a v2 cgroup's directory to be born in. With `sibling` the child's
/// parent is the caller's parent.
pub(crate) fn clone_process(namespaces: u64, cgroup: Option<BorrowedFd<'_>>, sibling: bool) -> io::Result<Option<Child>> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain data for which all zeroes is valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = namespaces | libc::CLONE_PIDFD as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = if sibling { 0 } else { libc::SIGCHLD as u64 };
    if sibling {
        args.flags |= libc::CLONE_PARENT as u64;
    }
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM the child gets a copy of this process, as with fork(2). The process has one thread (see `helper::main`), so
    // no lock can be held by a thread that the copy lacks. `args` outlives the call and has the size passed.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) })?;
    if pid == 0 {
        return Ok(None);
    }
    // SAFETY: CLONE_PIDFD made the kernel store a new descriptor there, which nothing else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Some(Child { pid: pid as i32, pidfd }))
}

/// Makes the cgroup that this process is in the root of those it sees.
pub(crate) fn unshare_cgroups() -> io::Result<()> {
    // SAFETY: CLONE_NEWCGROUP touches neither memory nor descriptors.
    Ok(unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWCGROUP) }?)
}

/// Moves this process into a new user namespace, and a mount namespace that belongs to it.
pub(crate) fn new_user_namespace() -> io::Result<()> {
    use rustix::thread::UnshareFlags;
    // SAFETY: neither flag touches memory or descriptors; the kernel refuses NEWUSER to a process with several threads.
    Ok(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) }?)
}

/// Moves this thread, which stops sharing its directories with others, into a new mount namespace.
pub(crate) fn new_mount_namespace() -> io::Result<()> {
    // SAFETY: CLONE_NEWNS and the CLONE_FS that it implies touch neither memory nor descriptors.
    Ok(unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }?)
}

/// Has the kernel kill the program when the thread ends that starts it.
pub(crate) fn die_with_this_thread(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt as _;
    let tie = || Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?);
    // SAFETY: between fork and exec it makes one system call, and allocates nothing.
    unsafe { command.pre_exec(tie) };
}

/// Moves this thread into a new network namespace.
pub(crate) fn new_network_namespace() -> io::Result<()> {
    // SAFETY: CLONE_NEWNET touches neither memory nor descriptors.
    Ok(unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }?)
}

/// Takes ownership of an inherited descriptor, such as standard input in the helper.
pub(crate) fn adopt(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: F_GETFD only tells whether the number is open.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return None;
    }
    // SAFETY: it is open, and callers pass numbers that this process inherited and nothing else owns.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes `from` the descriptor number `to`, without close-on-exec.
pub(crate) fn install_fd(from: BorrowedFd<'_>, to: RawFd) -> io::Result<()> {
    // SAFETY: both are plain numbers; dup2 replaces whatever `to` was, which is a standard stream that no Rust object owns.
    check(unsafe { libc::dup2(from.as_raw_fd(), to) }.into())?;
    if from.as_raw_fd() == to {
        // SAFETY: clears close-on-exec of an open descriptor.
        check(unsafe { libc::fcntl(to, libc::F_SETFD, 0) }.into())?;
    }
    Ok(())
}

/// Registers a descriptor with the async runtime, after making it non-blocking.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    // SAFETY: an OwnedFd names the same open descriptor all its life, which is what registration asks for.
    Ok(unsafe { tokio::io::unix::AsyncFd::register(fd) }?)
}

/// Closes every descriptor but the standard streams and `kept`, whoever owns it. For a process that is about to execute a program, or else
/// to exit: the kernel resolves paths in `/proc/self/fd` before it closes what an exec closes.
pub(crate) fn close_all_but(kept: BorrowedFd<'_>) -> io::Result<()> {
    let kept = kept.as_raw_fd().max(2) as u32;
    for (first, last) in [(3, kept - 1), (kept + 1, u32::MAX)] {
        if first <= last {
            // SAFETY: no memory depends on a descriptor here, and this process uses none but `kept` any more.
            check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
        }
    }
    Ok(())
}

/// All signals back to their default action and none blocked: an exec keeps what is ignored or blocked.
pub(crate) fn reset_signals() {
    // Handler (0 is the default action), flags, restorer and a mask of 64 signals, as the kernel has them everywhere. Not through the C
    // library: two signals are its own, and it leaves them ignored if whoever started the daemon ignored them.
    let default = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: installs no handler; the structure outlives the call and the mask has the size passed. Fails harmlessly for KILL and STOP.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null_mut::<libc::c_void>(), 8usize) };
    }
    // SAFETY: the set is initialised by sigemptyset before use.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Readable whenever a child has ended.
pub(crate) fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised before use; blocking a signal affects no memory.
    let fd = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC)
    };
    let fd = check(fd.into())?;
    // SAFETY: the kernel returned a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Children are reaped by the kernel.
pub(crate) fn ignore_children() {
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Children are waited for again.
pub(crate) fn mind_children() {
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Replaces the process. Returns only on failure.
pub(crate) fn exec(path: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| list.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>();
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both arrays end with a null pointer and their strings outlive the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// A session keyring of its own, so that the container does not see the daemon's keys.
pub(crate) fn new_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) }).map(drop)
}

/// Changes the attributes (`MOUNT_ATTR_*`) of the mount that `mount` is the root of, with what is mounted below if `recursive`.
pub(crate) fn set_mount_attributes(mount: BorrowedFd<'_>, set: u64, recursive: bool) -> Result<(), Errno> {
    let args = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, `args` outlives the call and has the size passed.
    check(unsafe {
        libc::syscall(libc::SYS_mount_setattr, mount.as_raw_fd(), c"".as_ptr(), flags, &raw const args, size_of::<libc::mount_attr>())
    })
    .map(drop)
    .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL))
}

/// Puts a seccomp filter on this process. Without no-new-privileges this takes CAP_SYS_ADMIN.
pub(crate) fn install_filter(program: &[Instruction]) -> io::Result<()> {
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: `Instruction` has sock_filter's layout; the kernel only reads `len` of them during the call.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter) }).map(drop)
}

/// Whether the kernel knows seccomp filters.
pub(crate) fn filters_supported() -> bool {
    let action: u32 = libc::SECCOMP_RET_ERRNO;
    // SAFETY: reads one u32.
    unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) == 0 }
}

#[repr(C)]
#[derive(Default)]
struct BpfLoad {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct BpfAttach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
    replace: u32,
    pad: u32,
}

/// Loads an extended BPF program that decides over a cgroup's device access.
pub(crate) fn load_device_program(program: &[u64]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    let load = BpfLoad {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..BpfLoad::default()
    };
    // SAFETY: `load` starts as bpf_attr does for this command; program and licence outlive the call.
    let fd = check(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<BpfLoad>()) })?;
    // SAFETY: the kernel returned a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Puts a program of [`load_device_program`] on a v2 cgroup, beside those that are there.
pub(crate) fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    const BPF_PROG_ATTACH: libc::c_int = 8;
    const BPF_CGROUP_DEVICE: u32 = 6;
    const BPF_F_ALLOW_MULTI: u32 = 2;
    let attach = BpfAttach {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
        ..BpfAttach::default()
    };
    // SAFETY: `attach` starts as bpf_attr does for this command and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of::<BpfAttach>()) }).map(drop)
}
