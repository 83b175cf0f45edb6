//! `buildkitd.toml`: its tables, and reading it.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::flags::Flags;
use super::gc::{self, Limits, PolicyTable, Space};
use super::network::NetworkTable;

/// The default file is parsed even where another is given, as buildkitd does; a missing one is fine.
pub fn read(given: Option<&Path>, default: &Path) -> Result<(File, Vec<String>), String> {
    let parsed = parse(default)?;
    match given {
        Some(path) if path != default => parse(path),
        _ => Ok(parsed),
    }
}

fn parse(path: &Path) -> Result<(File, Vec<String>), String> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Default::default()),
        Err(e) => return Err(format!("failed to load config from {}: {e}", path.display())),
    };
    parse_text(&text).map_err(|e| format!("failed to parse config {}: {e}", path.display()))
}

fn parse_text(text: &str) -> Result<(File, Vec<String>), String> {
    let mut warnings = Vec::new();
    let deserializer = toml::Deserializer::parse(text).map_err(|e| e.to_string())?;
    let file = serde_ignored::deserialize(deserializer, |path| {
        warnings.push(format!("config key {path} is unknown, or has no effect in this version of kiln"));
    })
    .map_err(|e: toml::de::Error| e.to_string())?;
    Ok((file, warnings))
}

/// The file. Keys of BuildKit that have no effect here are not listed, so that they are named in a warning.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct File {
    pub debug: bool,
    pub trace: bool,
    pub root: Option<PathBuf>,
    #[serde(rename = "provenanceEnvDir")]
    pub provenance_env_dir: Option<PathBuf>,
    /// kiln's own.
    #[serde(rename = "sbomGenerator")]
    pub sbom_generator: Option<String>,
    #[serde(rename = "insecure-entitlements")]
    pub insecure_entitlements: Vec<String>,
    pub cdi: CdiTable,
    #[serde(rename = "proxyNetwork")]
    pub proxy_network: bool,
    pub log: LogTable,
    pub grpc: GrpcTable,
    pub dns: DnsTable,
    pub system: SystemTable,
    pub frontend: BTreeMap<String, FrontendTable>,
    pub registry: BTreeMap<String, RegistryTable>,
    pub history: Option<HistoryTable>,
    pub worker: WorkerTables,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CdiTable {
    pub disabled: bool,
    pub spec_dirs: Vec<PathBuf>,
    pub auto_allowed: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct LogTable {
    pub format: Option<String>,
    pub level: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct GrpcTable {
    pub address: Vec<String>,
    #[serde(rename = "debugAddress")]
    pub debug_address: Option<String>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub tls: TlsTable,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct TlsTable {
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub ca: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct DnsTable {
    pub nameservers: Vec<String>,
    pub options: Vec<String>,
    #[serde(rename = "searchDomains")]
    pub search_domains: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SystemTable {
    pub platforms_cache_max_age: Option<Seconds>,
    pub max_registry_concurrency: Option<i64>,
}

/// Where the table is there, what it does not say is 0, as in buildkitd.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HistoryTable {
    pub max_age: Option<Seconds>,
    pub max_entries: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct FrontendTable {
    pub enabled: Option<bool>,
    #[serde(rename = "allowedRepositories")]
    pub allowed_repositories: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct RegistryTable {
    pub mirrors: Vec<String>,
    pub http: Option<bool>,
    pub insecure: Option<bool>,
    pub ca: Vec<PathBuf>,
    pub tlsconfigdir: Vec<PathBuf>,
    pub keypair: Vec<KeypairTable>,
}

#[derive(Debug, Deserialize)]
pub struct KeypairTable {
    pub key: PathBuf,
    pub cert: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct WorkerTables {
    pub oci: WorkerTable,
    pub containerd: ContainerdTable,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ContainerdTable {
    pub enabled: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct WorkerTable {
    pub enabled: Option<bool>,
    pub labels: BTreeMap<String, String>,
    pub platforms: Vec<String>,
    pub snapshotter: Option<String>,
    pub binary: Option<PathBuf>,
    #[serde(rename = "max-parallelism")]
    pub max_parallelism: Option<usize>,
    #[serde(rename = "defaultCgroupParent")]
    pub default_cgroup_parent: Option<String>,
    #[serde(rename = "networkMode")]
    pub network_mode: Option<String>,
    #[serde(rename = "cniConfigPath")]
    pub cni_config_path: Option<PathBuf>,
    #[serde(rename = "cniBinaryPath")]
    pub cni_binary_path: Option<PathBuf>,
    #[serde(rename = "cniPoolSize")]
    pub cni_pool_size: Option<usize>,
    #[serde(rename = "bridgeName")]
    pub bridge_name: Option<String>,
    #[serde(rename = "bridgeSubnet")]
    pub bridge_subnet: Option<String>,
    /// kiln's own.
    #[serde(rename = "rootlessNet")]
    pub rootless_net: Option<String>,
    #[serde(rename = "noProcessSandbox")]
    pub no_process_sandbox: bool,
    #[serde(rename = "apparmor-profile")]
    pub apparmor_profile: Option<String>,
    pub selinux: bool,
    pub gc: Option<bool>,
    pub gckeepstorage: Space,
    #[serde(rename = "reservedSpace")]
    pub reserved_space: Space,
    #[serde(rename = "maxUsedSpace")]
    pub max_used_space: Space,
    #[serde(rename = "minFreeSpace")]
    pub min_free_space: Space,
    pub gcpolicy: Vec<PolicyTable>,
    /// kiln's own.
    #[serde(rename = "spaceCeiling")]
    pub space_ceiling: Space,
}

impl WorkerTable {
    pub fn network(&self) -> NetworkTable {
        NetworkTable {
            network_mode: self.network_mode.clone(),
            cni_config_path: self.cni_config_path.clone(),
            cni_binary_path: self.cni_binary_path.clone(),
            cni_pool_size: self.cni_pool_size,
            bridge_name: self.bridge_name.clone(),
            bridge_subnet: self.bridge_subnet.clone(),
            rootless_net: self.rootless_net.clone(),
        }
    }

    pub fn gc_rules(&self, flags: &Flags, root: &Path) -> Vec<layers::Rule> {
        if !flags.oci_gc.or(self.gc).unwrap_or(true) {
            return Vec::new();
        }
        let table = Limits { reserved: self.reserved_space, free: self.min_free_space, most: self.max_used_space };
        gc::rules(&self.gcpolicy, flags.oci_gc_limits.unwrap_or(table), self.gckeepstorage, gc::disk_size(root))
    }
}

/// A duration: Go's notation, or a number of seconds, bare or quoted.
#[derive(Debug, Clone, Copy)]
pub struct Seconds(pub Duration);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(i64),
            Text(String),
        }
        let invalid = |text: String| serde::de::Error::custom(format!("invalid duration {text}"));
        match Either::deserialize(deserializer)? {
            Either::Number(n) => u64::try_from(n).map(|n| Self(Duration::from_secs(n))).map_err(|_| invalid(n.to_string())),
            Either::Text(text) => parse_duration(&text).map(Self).ok_or_else(|| invalid(text)),
        }
    }
}

/// `1h30m`, `20s`, `500ms`, or a plain number of seconds.
fn parse_duration(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let (mut rest, mut total) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| digits + at);
        total += number
            * match &rest[digits..unit_end] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = &rest[unit_end..];
    }
    (!text.is_empty()).then(|| Duration::from_secs_f64(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_named_and_wrong_values_say_their_line() {
        let (file, warnings) = parse_text(
            "root = '/r'\nnonsense = 1\n[worker.oci]\nbridgeNames = 'b'\n[registry.\"a.example\"]\nhttp = true\nmirrors = ['b']\n",
        )
        .unwrap();
        assert_eq!(file.root.as_deref(), Some(Path::new("/r")));
        assert_eq!(file.registry["a.example"].http, Some(true));
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].contains("nonsense") && warnings[1].contains("worker.oci.bridgeNames"), "{warnings:?}");
        let error = parse_text("root = '/r'\n\n[grpc]\nuid = 'many'\n").unwrap_err();
        assert!(error.contains("line 4"), "{error}");
    }

    #[test]
    fn durations_as_go_writes_them() {
        for (text, want) in [("90", 90_000), ("1h30m", 5_400_000), ("20s", 20_000), ("1.5s", 1500), ("500ms", 500)] {
            assert_eq!(parse_duration(text).unwrap().as_millis(), want, "{text}");
        }
        assert!(["", "1x", "h"].iter().all(|t| parse_duration(t).is_none()));
    }
}
