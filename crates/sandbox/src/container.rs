//! What to run: plain data, the same for every runtime.
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use snapshot::MountSpec;

use crate::Emulator;
use crate::network::Enclosure;

/// The hostname of a step that asks for none.
pub const DEFAULT_HOSTNAME: &str = "buildkitsandbox";

/// The surroundings of a process.
#[derive(Debug, Clone)]
pub struct Container {
    /// Unique among the containers of this daemon; also the name of its cgroup. Letters, digits, `-`, `_` and `.`.
    pub id: String,
    pub root: MountSpec,
    pub root_readonly: bool,
    /// In order; of two with one destination the later wins.
    pub mounts: Vec<Mount>,
    /// Empty means [`DEFAULT_HOSTNAME`].
    pub hostname: String,
    /// More lines for `/etc/hosts`.
    pub hosts: Vec<(String, IpAddr)>,
    pub network: Network,
    pub resources: Resources,
    /// Beside those that every container has.
    pub devices: Vec<DeviceNode>,
    /// Empty means the daemon's default.
    pub cgroup_parent: String,
    pub security: Security,
    /// Also report the parents made for mount points as stubs.
    pub recursive_stubs: bool,
    /// Runs the programs, which are another machine's and which the kernel alone cannot run.
    pub emulator: Option<Emulator>,
}

impl Container {
    /// A sandboxed container with nothing but its root.
    pub fn new(id: impl Into<String>, root: MountSpec) -> Self {
        Self {
            id: id.into(),
            root,
            root_readonly: false,
            mounts: Vec::new(),
            hostname: String::new(),
            hosts: Vec::new(),
            network: Network::Default,
            resources: Resources::default(),
            devices: Vec::new(),
            cgroup_parent: String::new(),
            security: Security::Sandbox,
            recursive_stubs: false,
            emulator: None,
        }
    }

    pub fn hostname(&self) -> &str {
        if self.hostname.is_empty() { DEFAULT_HOSTNAME } else { &self.hostname }
    }
}

#[derive(Debug, Clone)]
pub struct Mount {
    /// Where in the container; taken as absolute. Symlinks are followed inside the container's root.
    pub dest: String,
    pub source: MountSource,
    pub readonly: bool,
}

#[derive(Debug, Clone)]
pub enum MountSource {
    /// A tree or a part of it. `selector` is a path inside, resolved as if the tree were the root; empty means all.
    Spec { spec: MountSpec, selector: String },
    /// A file or directory of the host, with what is mounted below it.
    Bind { path: PathBuf },
    /// Empty memory, of at most `size` bytes.
    Tmpfs { size: Option<u64> },
    /// A file that exists only in memory.
    Secret { data: Bytes, uid: u32, gid: u32, mode: u32 },
    /// A listening unix socket of the host.
    Socket { path: PathBuf, uid: u32, gid: u32, mode: u32 },
}

#[derive(Debug, Clone, Default)]
pub enum Network {
    /// What the worker is set up for. Where that is the host's network, still with a resolv.conf that does not rely on it.
    #[default]
    Default,
    /// The host's network, asked for by name.
    Host,
    /// A loopback interface and nothing else.
    None,
    /// A way to one listener and nowhere else.
    Enclosed(Arc<Enclosure>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Security {
    #[default]
    Sandbox,
    /// All capabilities and devices, nothing masked, no system call filtered.
    Insecure,
}

/// Limits. `None` or empty means unlimited.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Resources {
    /// Bytes.
    pub memory: Option<i64>,
    /// Bytes of memory and swap together; -1 is unlimited.
    pub memory_swap: Option<i64>,
    /// Relative weight, 1024 is the middle.
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU within each period.
    pub cpu_quota: Option<i64>,
    /// Microseconds.
    pub cpu_period: Option<u64>,
    pub cpuset_cpus: String,
    pub cpuset_mems: String,
    pub pids: Option<i64>,
}

/// A device that a container may use.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DeviceNode {
    /// Where in the container.
    pub path: String,
    /// The host's node, for where no node can be made.
    pub host: PathBuf,
    /// Or else a character device.
    pub block: bool,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Of `r`, `w` and `m`: read, write, make nodes.
    pub access: String,
}

/// A process in a container.
#[derive(Debug, Clone, Default)]
pub struct Process {
    /// The program and its arguments. A program without a slash is looked up in the `PATH` of `env`.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Made if missing. Empty means `/`.
    pub cwd: String,
    /// `user`, `uid`, `user:group` or `uid:gid`, looked up in the container. Empty means root.
    pub user: String,
    /// More supplementary groups.
    pub groups: Vec<u32>,
    /// Give it a terminal; everything it prints arrives on stdout.
    pub tty: bool,
    pub rlimits: Vec<Rlimit>,
}

impl Process {
    pub fn new<S: Into<String>>(args: impl IntoIterator<Item = S>) -> Self {
        Self { args: args.into_iter().map(Into::into).collect(), ..Self::default() }
    }
}

/// A limit by its name in `ulimit` or with `RLIMIT_` in front. -1 is unlimited.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Rlimit {
    pub name: String,
    pub soft: i64,
    pub hard: i64,
}
