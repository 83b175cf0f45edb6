//! What every container gets, whichever runtime makes it.

/// Capabilities of a sandboxed process, by number.
pub(crate) const CAPABILITIES: [(&str, u32); 14] = [
    ("CAP_CHOWN", 0),
    ("CAP_DAC_OVERRIDE", 1),
    ("CAP_FSETID", 4),
    ("CAP_FOWNER", 3),
    ("CAP_MKNOD", 27),
    ("CAP_NET_RAW", 13),
    ("CAP_SETGID", 6),
    ("CAP_SETUID", 7),
    ("CAP_SETFCAP", 31),
    ("CAP_SETPCAP", 8),
    ("CAP_NET_BIND_SERVICE", 10),
    ("CAP_SYS_CHROOT", 18),
    ("CAP_KILL", 5),
    ("CAP_AUDIT_WRITE", 29),
];

pub(crate) fn capability_bits() -> u64 {
    CAPABILITIES.iter().fold(0, |bits, (_, number)| bits | 1 << number)
}

/// Hidden behind an empty directory or file.
pub(crate) const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

pub(crate) const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Character devices that always exist: name below /dev, major, minor.
pub(crate) const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("tty", 5, 0), ("random", 1, 8), ("urandom", 1, 9)];

/// Devices that only an insecure container gets: name, block or character, major, minor.
pub(crate) const INSECURE_DEVICES: [(&str, u32, u32); 6] =
    [("kmsg", 1, 11), ("cuse", 10, 203), ("fuse", 10, 229), ("kvm", 10, 232), ("net/tun", 10, 200), ("loop-control", 10, 237)];

/// Loop devices that an insecure container gets beyond those in use.
pub(crate) const SPARE_LOOPS: u32 = 7;

pub(crate) const DEV_LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// What a sandboxed process may open of the devices it makes: (major, minor), `None` for any minor. Making nodes is always allowed. Not 5:1:
/// that is the machine's console, whoever made the node.
pub(crate) const OPEN_DEVICES: [(u32, Option<u32>); 8] =
    [(1, Some(3)), (1, Some(5)), (1, Some(7)), (1, Some(8)), (1, Some(9)), (5, Some(0)), (5, Some(2)), (136, None)];

/// The size of /dev and /dev/shm.
pub(crate) const DEV_SIZE: &str = "65536k";
