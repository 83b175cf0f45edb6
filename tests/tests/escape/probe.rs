//! What a stranger might try from inside a step. Compiled by the test, statically, and run as a step's program; it is no part of the house.
//!
//! `probe kernel MAJOR MINOR PID SECRET` makes every try of `TRIES` and prints one line for each: `refused NAME`, or `ESCAPED NAME: what happened`.
//! `probe masks` is those that depend on mounts; `probe escaped` says so, for programs that no step should find.
use std::arch::asm;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

unsafe extern "C" {
    fn syscall(number: i64, ...) -> i64;
}

const EPERM: i32 = 1;
const EACCES: i32 = 13;
const ENOSYS: i32 = 38;

/// What the outside is like, where a try needs to know.
struct Outside {
    disk: (u64, u64),
    pid: i64,
    secret: PathBuf,
}

/// `Ok` is a refusal.
type Outcome = Result<(), String>;

macro_rules! call {
    ($number:expr $(, $argument:expr)*) => {{
        let result = unsafe { syscall($number $(, $argument as i64)*) };
        if result < 0 { Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)) } else { Ok(result) }
    }};
}

/// The kernel was not even asked: neither a success, nor an error that it gives after a look at the arguments.
fn blocked(result: Result<i64, i32>) -> Outcome {
    match result {
        Err(EPERM | EACCES | ENOSYS) => Ok(()),
        Err(errno) => Err(format!("the kernel looked at it (errno {errno})")),
        Ok(value) => Err(format!("it returned {value}")),
    }
}

/// It had no success, whatever the reason.
fn failed<T, E>(result: Result<T, E>) -> Outcome {
    if result.is_ok() { Err("it succeeded".to_owned()) } else { Ok(()) }
}

fn all(outcomes: impl IntoIterator<Item = (String, Outcome)>) -> Outcome {
    let bad: Vec<String> = outcomes.into_iter().filter_map(|(name, outcome)| Some(format!("{name}: {}", outcome.err()?))).collect();
    if bad.is_empty() { Ok(()) } else { Err(bad.join("; ")) }
}

/// Opened for writing only; nothing is written.
fn writable(path: &Path) -> bool {
    const O_NONBLOCK: i32 = 0o4000;
    let Ok(file) = OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(path) else { return false };
    // A masked file is the null device.
    !file.metadata().is_ok_and(|meta| meta.file_type().is_char_device() && meta.rdev() == 0x103)
}

fn make_device(path: &str, block: bool, major: u64, minor: u64) -> Result<i64, i32> {
    const MKNOD: i64 = 133;
    let _ = fs::remove_file(path);
    let path = std::ffi::CString::new(path).unwrap();
    let kind = if block { 0o060_666 } else { 0o020_666 };
    let number = (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12);
    call!(MKNOD, path.as_ptr(), kind, number)
}

/// Making a node may be allowed (layers contain them); what it stands for must stay shut.
fn device(block: bool, major: u64, minor: u64) -> Outcome {
    if make_device("/node", block, major, minor).is_err() {
        return Ok(());
    }
    const O_NONBLOCK: i32 = 0o4000;
    let mut outcome = Ok(());
    for write in [false, true] {
        if OpenOptions::new().read(!write).write(write).custom_flags(O_NONBLOCK).open("/node").is_ok() {
            outcome = Err("it opens".to_owned());
        }
    }
    let _ = fs::remove_file("/node");
    outcome
}

/// Everything below `top` that opens for writing.
fn writable_below(top: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(top) else { return };
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            writable_below(&entry.path(), found);
        } else if kind.is_file() && writable(&entry.path()) {
            found.push(entry.path());
        }
    }
}

fn none_writable(tops: &[&str]) -> Outcome {
    let mut found = Vec::new();
    for top in tops {
        writable_below(Path::new(top), &mut found);
    }
    if found.is_empty() { Ok(()) } else { Err(format!("these open for writing: {found:?}")) }
}

fn numbers_in_proc() -> Vec<String> {
    let names = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.parse::<u32>().is_ok()).collect()
}

fn effective_capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap()
}

const SYS_ADMIN: u64 = 1 << 21;

/// A system call of 32-bit x86.
fn old_call(number: u32, argument: u32) -> Result<i64, i32> {
    let result: i64;
    // rbx is the compiler's own.
    unsafe {
        asm!("xchg {argument:r}, rbx", "int 0x80", "xchg {argument:r}, rbx", argument = inout(reg) u64::from(argument) => _,
            inlateout("rax") u64::from(number) => result, in("rcx") 0u64, in("rdx") 0u64, in("rsi") 0u64, in("rdi") 0u64, out("r8") _, out("r9") _,
            out("r10") _, out("r11") _);
    }
    let result = i64::from(result as i32);
    if result < 0 { Err(-result as i32) } else { Ok(result) }
}

const BACK_DOORS: &[(&str, fn() -> Result<i64, i32>)] = &[
    ("mount", || old_call(21, 0)),
    ("unshare", || old_call(310, 0x1000_0000)),
    ("keyctl", || old_call(288, 0)),
    ("bpf", || old_call(357, 0)),
    ("x32", || call!(0x4000_0000 + 165, 0, 0, 0, 0, 0)),
];

type Try = (&'static str, fn(&Outside) -> Outcome);

/// Each with the reason for which it must fail.
const TRIES: &[Try] = &[
    // The devices cgroup (rootless: the user namespace, which lets no node be made) lets only harmless devices be opened.
    ("the host's disk through a node of one's own", |o| device(true, o.disk.0, o.disk.1)),
    ("loop devices and device mapper", |_| all([(7, 0), (253, 0), (8, 0), (259, 0)].map(|(a, b)| (format!("b {a}:{b}"), device(true, a, b))))),
    ("/dev/mem, /dev/kmem, /dev/port", |_| all([1, 2, 4].map(|minor| (format!("1:{minor}"), device(false, 1, minor))))),
    ("/dev/kmsg, to write the host's log", |_| device(false, 1, 11)),
    ("the machine's console and virtual terminals", |_| {
        all([(5, 1), (4, 0), (4, 1), (7, 1), (4, 64)].map(|(a, b)| (format!("c {a}:{b}"), device(false, a, b))))
    }),
    ("fuse, kvm, tun, loop-control, vhost, uinput", |_| {
        all([229, 232, 200, 237, 238, 223].map(|minor| (format!("10:{minor}"), device(false, 10, minor))))
    }),
    // The filter refuses these to whoever lacks CAP_SYS_ADMIN, and the capability is not there.
    ("mount a file system", |_| blocked(call!(165, c"none".as_ptr(), c"/tmp".as_ptr(), c"tmpfs".as_ptr(), 0, 0))),
    ("bind and make writable again", |_| {
        const MS_BIND: i64 = 4096;
        const MS_REMOUNT: i64 = 32;
        all([
            ("bind".to_owned(), blocked(call!(165, c"/".as_ptr(), c"/tmp".as_ptr(), 0, MS_BIND, 0))),
            ("remount".to_owned(), blocked(call!(165, 0, c"/proc/sys".as_ptr(), 0, MS_BIND | MS_REMOUNT, 0))),
        ])
    }),
    ("unmount what covers", |_| {
        all(["/proc/sys", "/proc/kcore", "/sys", "/etc/hosts", "/"].map(|path| {
            let name = std::ffi::CString::new(path).unwrap();
            (path.to_owned(), blocked(call!(166, name.as_ptr(), 2)))
        }))
    }),
    ("pivot_root", |_| blocked(call!(155, c"/".as_ptr(), c"/tmp".as_ptr()))),
    ("the newer mount calls", |_| {
        all([
            ("fsopen".to_owned(), blocked(call!(430, c"tmpfs".as_ptr(), 0))),
            ("open_tree".to_owned(), blocked(call!(428, -100, c"/".as_ptr(), 1))),
            ("move_mount".to_owned(), blocked(call!(429, -100, c"/proc/sys".as_ptr(), -100, c"/tmp".as_ptr(), 0))),
            ("mount_setattr".to_owned(), blocked(call!(442, -100, c"/proc/sys".as_ptr(), 0, 0, 0))),
            ("fspick".to_owned(), blocked(call!(433, -100, c"/sys".as_ptr(), 0))),
        ])
    }),
    // Read-only mounts.
    ("/proc/sys: core_pattern, modprobe, binfmt_misc and all else", |_| none_writable(&["/proc/sys", "/proc/irq", "/proc/bus", "/proc/fs"])),
    ("sysrq", |_| failed(OpenOptions::new().write(true).open("/proc/sysrq-trigger"))),
    ("/sys: uevent_helper, power, modules and all else", |_| {
        none_writable(&["/sys/kernel", "/sys/module", "/sys/power", "/sys/firmware", "/sys/fs", "/sys/bus", "/sys/block", "/sys/class"])
    }),
    ("release_agent, cgroup.procs, devices.allow of every cgroup in sight", |_| none_writable(&["/sys/fs/cgroup"])),
    ("a cgroup of one's own", |_| {
        // Where the hierarchies are mounted may be a directory that is none of them.
        all(["/sys/fs/cgroup/x", "/sys/fs/cgroup/memory/x", "/sys/fs/cgroup/unified/x"].map(|path| {
            let made = fs::create_dir(path).is_ok() && Path::new(path).join("cgroup.procs").exists();
            (path.to_owned(), if made { Err("it is made".to_owned()) } else { Ok(()) })
        }))
    }),
    // Masked, or kept by the kernel for capabilities that are not there.
    ("/proc/kcore, /proc/keys, timers", |_| masks()),
    ("the kernel's log", |_| all([("kmsg".to_owned(), failed(File::open("/proc/kmsg"))), ("syslog".to_owned(), blocked(call!(103, 3, 0, 0)))])),
    ("kernel addresses", |_| {
        let symbols = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
        let shown = symbols.lines().take(1000).any(|line| !line.starts_with("0000000000000000"));
        if shown { Err("they are shown".to_owned()) } else { Ok(()) }
    }),
    // A pid namespace: what is outside has no number.
    ("outside processes", |o| {
        let own: Vec<String> = numbers_in_proc();
        let outsiders = own.iter().filter(|pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe != Path::new("/probe")));
        all([
            ("seen".to_owned(), if outsiders.count() == 0 { Ok(()) } else { Err("others are in /proc".to_owned()) }),
            ("signal".to_owned(), failed(call!(62, o.pid, 0))),
            ("ptrace".to_owned(), failed(call!(101, 16, o.pid, 0, 0))),
            ("pidfd".to_owned(), failed(call!(434, o.pid, 0))),
            ("memory".to_owned(), failed(File::open(format!("/proc/{}/mem", o.pid)))),
            ("priority".to_owned(), failed(call!(141, 0, o.pid, 10))),
        ])
    }),
    ("the root of a process that is not inside", |o| {
        all(numbers_in_proc().into_iter().map(|pid| {
            let there = PathBuf::from(format!("/proc/{pid}/root/../../..{}", o.secret.display()));
            (pid, failed(File::open(there)))
        }))
    }),
    // chroot(2) is allowed; out of a mount namespace's root it does not lead.
    ("chroot and climb", |o| {
        let _ = fs::create_dir("/jail");
        let above = File::open("/").unwrap();
        let jailed = std::process::Command::new("/probe").arg("climb").arg(&o.secret).arg(above.as_raw_fd().to_string()).status();
        if jailed.is_ok_and(|status| status.success()) { Ok(()) } else { Err("it climbed out".to_owned()) }
    }),
    // CAP_DAC_READ_SEARCH is not there.
    ("open_by_handle_at (shocker)", |_| {
        // A handle of ext4 and most others: inode 2, the root of a file system.
        #[repr(C)]
        struct Handle(u32, i32, [u32; 2]);
        let top = File::open("/etc/hosts").or_else(|_| File::open("/")).unwrap();
        blocked(call!(304, top.as_raw_fd(), &raw const *Box::leak(Box::new(Handle(8, 1, [2, 0]))), 0))
    }),
    // The filter.
    ("keys: add_key, request_key, keyctl", |_| {
        all([
            ("add_key".to_owned(), blocked(call!(248, c"user".as_ptr(), c"x".as_ptr(), c"y".as_ptr(), 1, -3))),
            ("request_key".to_owned(), blocked(call!(249, c"user".as_ptr(), c"x".as_ptr(), 0, 0))),
            ("keyctl".to_owned(), blocked(call!(250, 0, -3, 0))),
        ])
    }),
    ("namespaces: unshare, setns, clone, clone3", |_| {
        const NEWUSER: i64 = 0x1000_0000;
        let namespace = File::open("/proc/self/ns/mnt").unwrap();
        all([
            ("user".to_owned(), blocked(call!(272, NEWUSER))),
            ("mount".to_owned(), blocked(call!(272, 0x2_0000))),
            ("setns".to_owned(), blocked(call!(308, namespace.as_raw_fd(), 0))),
            // With a stack of 0 a child would go on here, and find itself on top.
            ("clone".to_owned(), blocked(call!(56, NEWUSER, 0, 0, 0, 0))),
            ("clone3".to_owned(), blocked(call!(435, 0, 0))),
        ])
    }),
    ("bpf and perf_event_open", |_| all([("bpf".to_owned(), blocked(call!(321, 0, 0, 0))), ("perf".to_owned(), blocked(call!(298, 0, 0, -1, -1, 0)))])),
    ("kexec", |_| all([("load".to_owned(), blocked(call!(246, 0, 0, 0, 0))), ("file".to_owned(), blocked(call!(320, -1, -1, 0, 0, 0)))])),
    ("kernel modules", |_| {
        all([
            ("init".to_owned(), blocked(call!(175, 0, 0, 0))),
            ("finit".to_owned(), blocked(call!(313, -1, 0, 0))),
            ("delete".to_owned(), blocked(call!(176, c"none".as_ptr(), 0))),
        ])
    }),
    ("the clock", |_| {
        let now = [0i64; 2];
        // Of clock_adjtime's argument the first word says what to set.
        let mut change = [0u64; 32];
        change[0] = 1;
        all([
            ("settimeofday".to_owned(), blocked(call!(164, now.as_ptr(), 0))),
            ("clock_settime".to_owned(), blocked(call!(227, 0, now.as_ptr()))),
            ("adjtimex".to_owned(), blocked(call!(159, change.as_mut_ptr()))),
        ])
    }),
    ("reboot", |_| blocked(call!(169, 0, 0, 0, 0))),
    ("swap, accounting and quotas", |_| {
        all([
            ("swapon".to_owned(), blocked(call!(167, c"/none".as_ptr(), 0))),
            ("swapoff".to_owned(), blocked(call!(168, c"/none".as_ptr()))),
            ("acct".to_owned(), blocked(call!(163, c"/none".as_ptr()))),
            ("quotactl".to_owned(), blocked(call!(179, 0, 0, 0, 0))),
        ])
    }),
    ("userfaultfd", |_| blocked(call!(323, 0))),
    ("io_uring", |_| {
        let parameters = [0u64; 32];
        blocked(call!(425, 1, parameters.as_ptr()))
    }),
    ("ports of the machine", |_| all([("iopl".to_owned(), blocked(call!(172, 3))), ("ioperm".to_owned(), blocked(call!(173, 0x70, 2, 1)))])),
    ("sockets of the hypervisor and of the kernel's ciphers", |_| {
        all([("vsock".to_owned(), blocked(call!(41, 40, 1, 0))), ("alg".to_owned(), blocked(call!(41, 38, 5, 0)))])
    }),
    ("the filter's back doors: calls of 32-bit x86 and of x32", |_| {
        // Each in a process of its own, since some filters kill whoever calls like that.
        all(BACK_DOORS.iter().enumerate().map(|(number, (name, _))| {
            const SIGSYS: i32 = 31;
            let status = Command::new("/proc/self/exe").args(["back-door", &number.to_string()]).status();
            let is_shut = status.is_ok_and(|status| status.success() || status.signal() == Some(SIGSYS));
            ((*name).to_owned(), if is_shut { Ok(()) } else { Err("the kernel looked at it".to_owned()) })
        }))
    }),
    // The bounding set.
    ("capabilities that are not there", |_| {
        #[repr(C)]
        struct Header(u32, i32);
        let (header, data) = (Header(0x2008_0522, 0), [u32::MAX; 6]);
        let raised = call!(126, &raw const header, data.as_ptr());
        all([
            ("capset".to_owned(), blocked(raised)),
            ("effective".to_owned(), if effective_capabilities() & SYS_ADMIN == 0 { Ok(()) } else { Err("CAP_SYS_ADMIN".to_owned()) }),
        ])
    }),
    ("a setuid program, and one with file capabilities", |_| {
        // Version 2, effective, all permitted.
        let value: Vec<u8> = [0x0200_0001u32, u32::MAX, 0, u32::MAX, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
        let tool = "/tool";
        fs::copy("/probe", tool).unwrap();
        let _ = call!(188, c"/tool".as_ptr(), c"security.capability".as_ptr(), value.as_ptr(), value.len(), 0);
        let with_files = std::process::Command::new(tool).arg("capabilities").status();
        let _ = fs::remove_file(tool);
        fs::copy("/probe", tool).unwrap();
        fs::set_permissions(tool, fs::Permissions::from_mode(0o4755)).unwrap();
        let setuid = std::os::unix::process::CommandExt::uid(&mut std::process::Command::new(tool), 1000).arg("capabilities").status();
        let powerless = |status: io::Result<std::process::ExitStatus>| match status {
            Ok(status) if !status.success() => Err("it has CAP_SYS_ADMIN".to_owned()),
            _ => Ok(()),
        };
        all([("file capabilities".to_owned(), powerless(with_files)), ("setuid".to_owned(), powerless(setuid))])
    }),
    ("attributes that overlays and security modules trust", |_| {
        fs::write("/marked", "").unwrap();
        all([c"trusted.overlay.redirect", c"trusted.x"].map(|name| {
            (name.to_string_lossy().into_owned(), failed(call!(188, c"/marked".as_ptr(), name.as_ptr(), c"/etc".as_ptr(), 4, 0)))
        }))
    }),
    // CVE-2024-21626: nothing of the helper's is left open.
    ("descriptors that came along", |_| {
        let mut bad = Vec::new();
        for entry in fs::read_dir("/proc/1/fd").unwrap().flatten() {
            let number: i32 = entry.file_name().to_string_lossy().parse().unwrap();
            let target = fs::read_link(entry.path()).unwrap_or_default();
            let text = target.to_string_lossy().into_owned();
            let own = text.starts_with("pipe:") || text == "/dev/null";
            // The directory that is being read.
            if !own && !text.starts_with("/proc/1/fd") && !text.starts_with("/proc/") || number > 3 {
                bad.push(format!("{number} -> {text}"));
            }
        }
        if bad.is_empty() { Ok(()) } else { Err(bad.join(", ")) }
    }),
    ("a terminal to push input into", |_| failed(File::open("/dev/tty"))),
    ("the host's name", |_| blocked(call!(170, c"x".as_ptr(), 1))),
    ("the network's set-up", |_| {
        // A NETLINK_ROUTE request to make an interface: header, then nothing that the kernel would accept; who may not is told so first.
        let socket = call!(41, 16, 3, 0).map_err(|errno| errno.to_string())?;
        let mut message = Vec::new();
        for half in [32u32.to_le_bytes().to_vec(), 16u16.to_le_bytes().to_vec(), 0x605u16.to_le_bytes().to_vec(), vec![0; 24]] {
            message.extend(half);
        }
        let _ = call!(44, socket, message.as_ptr(), message.len(), 0, 0, 0);
        let mut answer = [0u8; 256];
        let length = call!(45, socket, answer.as_mut_ptr(), answer.len(), 0, 0, 0).map_err(|errno| errno.to_string())?;
        let error = i32::from_le_bytes(answer[16..20].try_into().unwrap());
        if length >= 20 && error == -EPERM { Ok(()) } else { Err(format!("answered {error}")) }
    }),
    ("more than one's share of priority", |_| all([("nice".to_owned(), failed(call!(141, 0, 0, -20))), ("realtime".to_owned(), failed(call!(144, 0, 1, [1u32; 4].as_ptr())))])),
];

/// What is masked is empty, whatever is mounted around it (CVE-2025-31133).
fn masks() -> Outcome {
    const MASKED: [&str; 8] =
        ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/latency_stats", "/proc/acpi", "/proc/scsi"];
    all(MASKED.into_iter().map(|path| {
        let check = || -> Outcome {
            let Ok(meta) = fs::metadata(path) else { return Ok(()) };
            if meta.is_dir() {
                let count = fs::read_dir(path).map_or(0, Iterator::count);
                return if count == 0 { Ok(()) } else { Err(format!("{count} entries")) };
            }
            let mut byte = [0];
            match File::open(path).and_then(|mut file| file.read(&mut byte)) {
                Ok(1) => Err("it has something to say".to_owned()),
                _ if writable(Path::new(path)) => Err("it can be written".to_owned()),
                _ => Ok(()),
            }
        };
        (path.to_owned(), check())
    }))
}

/// In a root of its own, with a descriptor from outside of that.
fn climb(secret: &Path, above: i64) -> bool {
    const CHROOT: i64 = 161;
    if call!(CHROOT, c"/jail".as_ptr()).is_err() {
        return true;
    }
    // The descriptor was closed by the exec; a second root below the first makes a way up all the same.
    let _ = above;
    let _ = fs::create_dir("/inner");
    let _ = call!(CHROOT, c"/inner".as_ptr());
    for _ in 0..64 {
        let _ = std::env::set_current_dir("..");
    }
    let _ = call!(CHROOT, c".".as_ptr());
    File::open(secret).is_err()
}

fn report(name: &str, outcome: Outcome) -> bool {
    match outcome {
        Ok(()) => println!("refused {name}"),
        Err(what) => {
            println!("ESCAPED {name}: {what}");
            return false;
        }
    }
    true
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let fine = match args.get(1).map(String::as_str) {
        Some("kernel") => {
            let number = |i: usize| args[i].parse::<u64>().unwrap();
            let outside = Outside { disk: (number(2), number(3)), pid: number(4) as i64, secret: args[5].clone().into() };
            TRIES.iter().fold(true, |fine, (name, attempt)| report(name, attempt(&outside)) && fine)
        }
        Some("masks") => report("masks", masks()) & report("core_pattern", none_writable(&["/proc/sys/kernel"])),
        Some("back-door") => blocked(BACK_DOORS[args[2].parse::<usize>().unwrap()].1()).is_ok(),
        Some("capabilities") => effective_capabilities() & SYS_ADMIN == 0,
        Some("climb") => climb(Path::new(&args[2]), args[3].parse().unwrap()),
        // As a program, or as the interpreter of a script.
        _ => {
            println!("ESCAPED: a program of the host runs");
            false
        }
    };
    std::process::exit(i32::from(!fine));
}
