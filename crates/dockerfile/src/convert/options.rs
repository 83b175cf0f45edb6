use std::collections::{BTreeMap, BTreeSet};

use llb::{LinuxResources, NetMode, SourceInfo, Ulimit};
use oci::Platform;

use crate::lint;
use crate::source::ResolveMode;

/// What a build asks for beside its Dockerfile.
#[derive(Debug, Clone, Default)]
pub struct Options {
    pub build_args: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    /// Empty: the last stage.
    pub target: String,
    /// `None`: whatever the build platform is.
    pub target_platform: Option<Platform>,
    /// The daemon's own platforms, first the native one. Empty: this machine's.
    pub build_platforms: Vec<Platform>,
    /// Step names tell the platform.
    pub multi_platform: bool,
    pub resolve_mode: ResolveMode,
    pub no_cache: NoCache,
    pub cache_namespace: String,
    pub cgroup_parent: String,
    /// Host and IP address.
    pub extra_hosts: Vec<(String, String)>,
    pub hostname: String,
    pub network: NetMode,
    /// Bytes of `/dev/shm`; 0 leaves it alone.
    pub shm_size: i64,
    pub ulimits: Vec<Ulimit>,
    pub linux_resources: Option<LinuxResources>,
    /// Instead of the file's own `check` directive.
    pub lint: Option<lint::Config>,
    /// LLB capabilities of the daemon.
    pub caps: BTreeSet<String>,
    /// The file, as errors and vertices point into it.
    pub source: SourceInfo,
    /// Convert stages that the target does not need too.
    pub all_stages: bool,
}

/// Stages that must run again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NoCache {
    #[default]
    None,
    All,
    Stages(Vec<String>),
}

impl NoCache {
    pub(super) fn holds(&self, stage: &str) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Stages(names) => names.iter().any(|name| name.to_lowercase() == stage.to_lowercase()),
        }
    }
}

impl Options {
    pub(super) fn has_cap(&self, id: &str) -> bool {
        self.caps.contains(id)
    }

    /// The native build platform.
    pub(super) fn build_platform(&self) -> Platform {
        self.build_platforms.first().or(self.target_platform.as_ref()).cloned().unwrap_or_else(Platform::host)
    }

    pub(super) fn target_or_build_platform(&self) -> Platform {
        self.target_platform.clone().unwrap_or_else(|| self.build_platform())
    }
}
