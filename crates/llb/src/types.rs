//! The typed ops. Field meaning follows `pb.Op` of BuildKit's LLB; `None` stands for the wire's -1 ("empty" as an input, "no output").
use std::collections::BTreeMap;

use bytes::Bytes;
use oci::{Digest, Platform};

/// One output of one vertex.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Edge {
    pub vertex: Digest,
    pub output: u32,
}

impl Edge {
    pub fn new(vertex: Digest, output: u32) -> Self {
        Self { vertex, output }
    }

    /// Another output of the same vertex.
    pub fn with_output(&self, output: u32) -> Self {
        Self { vertex: self.vertex.clone(), output }
    }
}

/// A loaded definition. `vertices` is in topological order: inputs come before their users.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Graph {
    pub vertices: Vec<Vertex>,
    /// What the definition's last entry points at; `None` for the empty definition (scratch).
    pub result: Option<Edge>,
    /// Metadata of that last entry, which only lists capabilities.
    pub result_metadata: Metadata,
    pub sources: SourceMap,
    /// For vertices that a rewrite changed: the digest that the client knows them by.
    pub originals: BTreeMap<Digest, Digest>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Vertex {
    /// sha256 of `encoded`; what clients know the vertex by.
    pub digest: Digest,
    /// The op's wire bytes exactly as they were digested.
    pub encoded: Bytes,
    pub op: Op,
    pub inputs: Vec<Edge>,
    /// As written in the op; `None` where the client left it out.
    pub platform: Option<Platform>,
    /// Worker filters, all of which must match.
    pub constraints: Vec<String>,
    pub metadata: Metadata,
    /// What progress shows.
    pub name: String,
    /// An exec that reaches the network through the daemon's proxy only; see [`Rewrite`](crate::Rewrite).
    pub proxied: bool,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata {
    pub ignore_cache: bool,
    pub description: BTreeMap<String, String>,
    pub export_cache: Option<bool>,
    pub caps: BTreeMap<String, bool>,
    pub progress_group: Option<progress_group::ProgressGroup>,
    pub linux_resources: Option<LinuxResources>,
}

pub mod progress_group {
    #[derive(Debug, Clone, Default, PartialEq, Eq)]
    pub struct ProgressGroup {
        pub id: String,
        pub name: String,
        pub weak: bool,
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinuxResources {
    pub memory: i64,
    pub memory_swap: i64,
    pub cpu_shares: u64,
    pub cpu_period: u64,
    pub cpu_quota: i64,
    pub cpuset_cpus: String,
    pub cpuset_mems: String,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    Source(SourceOp),
    Exec(Box<ExecOp>),
    File(FileOp),
    Build(BuildOp),
    /// The inputs to stack, lowest first; indices into the vertex's inputs, `None` for scratch.
    Merge(Vec<Option<u32>>),
    Diff {
        lower: Option<u32>,
        upper: Option<u32>,
    },
    /// outputs[i] = inputs[outputs[i]].
    Passthrough {
        id: String,
        outputs: Vec<u32>,
    },
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceOp {
    /// `scheme://…`
    pub identifier: String,
    pub attrs: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct ExecOp {
    pub meta: Meta,
    pub mounts: Vec<Mount>,
    pub network: NetMode,
    pub security: SecurityMode,
    pub secret_env: Vec<SecretEnv>,
    pub cdi_devices: Vec<CdiDevice>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meta {
    pub args: Vec<String>,
    /// `KEY=value`
    pub env: Vec<String>,
    pub cwd: String,
    pub user: String,
    pub proxy_env: Option<ProxyEnv>,
    pub extra_hosts: Vec<HostIp>,
    pub hostname: String,
    pub ulimits: Vec<Ulimit>,
    pub cgroup_parent: String,
    pub remove_mount_stubs_recursive: bool,
    /// Empty means only 0.
    pub valid_exit_codes: Vec<i32>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyEnv {
    pub http_proxy: String,
    pub https_proxy: String,
    pub ftp_proxy: String,
    pub no_proxy: String,
    pub all_proxy: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostIp {
    pub host: String,
    pub ip: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ulimit {
    pub name: String,
    pub soft: i64,
    pub hard: i64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecretEnv {
    pub id: String,
    pub name: String,
    pub optional: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CdiDevice {
    pub name: String,
    pub optional: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NetMode {
    #[default]
    Unset,
    Host,
    None,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SecurityMode {
    #[default]
    Sandbox,
    Insecure,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub dest: String,
    /// Index into the vertex's inputs; `None` is an empty directory (and what secret, ssh and tmpfs mounts have).
    pub input: Option<u32>,
    /// Path inside the input.
    pub selector: String,
    /// `None`: changes are discarded. Only meaningful for bind mounts.
    pub output: Option<u32>,
    pub readonly: bool,
    pub kind: MountKind,
    pub content_cache: ContentCache,
    /// Only in containers of the gateway: a reference or result id that stands in for `input`.
    pub result_id: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountKind {
    Bind,
    Cache {
        id: String,
        sharing: Sharing,
    },
    /// `size` in bytes, 0 for the kernel's default.
    Tmpfs {
        size: i64,
    },
    Secret(SecretOpt),
    Ssh(SecretOpt),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecretOpt {
    pub id: String,
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    pub optional: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Sharing {
    #[default]
    Shared,
    Private,
    Locked,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ContentCache {
    #[default]
    Default,
    On,
    Off,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct FileOp {
    pub actions: Vec<FileAction>,
}

/// One action. Inputs: `0..n` are the vertex's inputs, `n + i` is the result of action `i`, `None` is scratch.
#[derive(Debug, Clone, PartialEq)]
pub struct FileAction {
    pub input: Option<u32>,
    pub secondary_input: Option<u32>,
    pub output: Option<u32>,
    pub kind: FileActionKind,
}

#[derive(Debug, Clone, PartialEq)]
pub enum FileActionKind {
    Copy(Box<Copy>),
    Mkfile { path: String, mode: i32, data: Bytes, owner: Option<Owner>, timestamp: i64 },
    Mkdir { path: String, mode: i32, make_parents: bool, owner: Option<Owner>, timestamp: i64 },
    Symlink { oldpath: String, newpath: String, owner: Option<Owner>, timestamp: i64 },
    Rm { path: String, allow_not_found: bool, allow_wildcard: bool },
}

/// `timestamp` and `mode` are -1 where the source's are kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Copy {
    pub src: String,
    pub dest: String,
    pub owner: Option<Owner>,
    pub mode: i32,
    pub mode_str: String,
    pub follow_symlink: bool,
    pub dir_copy_contents: bool,
    pub attempt_unpack: bool,
    pub create_dest_path: bool,
    pub allow_wildcard: bool,
    pub allow_empty_wildcard: bool,
    /// Unix nanoseconds.
    pub timestamp: i64,
    pub include_patterns: Vec<String>,
    pub exclude_patterns: Vec<String>,
    pub always_replace_existing_dest_paths: bool,
    pub required_paths: Vec<String>,
}

impl Default for Copy {
    fn default() -> Self {
        Self {
            src: String::new(),
            dest: String::new(),
            owner: None,
            mode: -1,
            mode_str: String::new(),
            follow_symlink: false,
            dir_copy_contents: false,
            attempt_unpack: false,
            create_dest_path: false,
            allow_wildcard: false,
            allow_empty_wildcard: false,
            timestamp: -1,
            include_patterns: Vec::new(),
            exclude_patterns: Vec::new(),
            always_replace_existing_dest_paths: false,
            required_paths: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owner {
    pub user: Option<Who>,
    pub group: Option<Who>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    Id(u32),
    /// Looked up in `/etc/passwd` or `/etc/group` of `input` (an action-style index).
    Name {
        name: String,
        input: Option<u32>,
    },
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct BuildOp {
    /// Must be `None` (the wire's -1: the built-in LLB builder).
    pub builder: Option<u32>,
    /// Name -> index into the vertex's inputs.
    pub inputs: BTreeMap<String, Option<u32>>,
    pub attrs: BTreeMap<String, String>,
    /// A nested definition's wire bytes, where there is one.
    pub def: Option<Bytes>,
}

/// Where vertices come from in the user's own files.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SourceMap {
    pub infos: Vec<SourceInfo>,
    pub locations: BTreeMap<Digest, Vec<Location>>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct SourceInfo {
    pub filename: String,
    pub data: Bytes,
    pub language: String,
    /// A definition's wire bytes, where the file is a build result.
    pub definition: Option<Bytes>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Location {
    /// Index into [`SourceMap::infos`].
    pub source: usize,
    pub ranges: Vec<Range>,
}

/// Lines from 1, characters from 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Range {
    pub start: (i32, i32),
    pub end: (i32, i32),
}
