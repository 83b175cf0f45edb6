//! Runs one process in a container: the built-in runtime or any OCI runtime.
//!
//! Owns processes, namespaces, cgroups and everything mounted for a container. Does not know steps, layers or builds: what a container
//! consists of it is told in plain data ([`Container`]), and mounts are described by `snapshot`.
//!
//! Start at [`Runtime`], then `launch` (the daemon's side) and [`helper`] (the other process, where all of it happens).
//!
//! - The daemon never forks: it executes the helper, which has one thread.
//! - Whatever happens to daemon or helper, a container does not outlive them.
//! - A network namespace has no name: it goes with the daemon, whatever ends it.
//! - No mount is made in the host's mount namespace, so none can be left there.
//! - A process in a container cannot write the binary that the helper runs.
mod builtin;
mod cgroup_root;
mod confinement;
mod container;
mod defaults;
pub mod emulation;
mod error;
pub mod helper;
mod io;
mod launch;
mod link;
mod names;
pub mod network;
mod oci;
pub mod rootless;
mod runtime;
mod seccomp;
mod sys;

pub use builtin::Builtin;
pub use cgroup_root::prepare_cgroup_root;
pub use confinement::Confinement;
pub use container::{Container, DEFAULT_HOSTNAME, DeviceNode, Mount, MountSource, Network, Process, Resources, Rlimit, Security};
pub use emulation::Emulator;
pub use error::SandboxError;
pub use helper::{NET, Sample};
pub use io::{Input, Io, Output};
pub use launch::Settings;
pub use names::Dns;
pub use oci::OciRuntime;
pub use runtime::{Exit, Running, Runtime, Started};
pub use sys::{give_back_memory, limit_memory_pools, load_no_name_services};
