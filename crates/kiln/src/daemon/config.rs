//! The [file](super::file), merged with flags and the environment into what the daemon runs with.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use job::history::Retention;
use registry::{Host, Keypair, Proxy};

use super::file::{self, RegistryTable};
use super::flags::Flags;
use super::gc;
use super::logging::Log;
use super::network::Environment;
use super::provenance_env;
use super::tls::Tls;

/// What the daemon runs with.
#[derive(Debug)]
pub struct Config {
    pub log: Log,
    pub root: PathBuf,
    pub addresses: Vec<String>,
    /// Of the debug and metrics endpoint.
    pub debug_address: Option<String>,
    pub socket_owner: (Option<u32>, Option<u32>),
    pub tls: Tls,
    pub entitlements: Vec<String>,
    pub devices: worker::Devices,
    pub proxy_network: bool,
    pub dockerfile_enabled: bool,
    pub gateway_enabled: bool,
    pub gateway_sources: Vec<String>,
    pub provenance_env: serde_json::Map<String, serde_json::Value>,
    pub sbom_generator: job::Generator,
    pub grace_period: Duration,
    pub idle_exit: Option<Duration>,
    pub dns: sandbox::Dns,
    pub network: sandbox::network::Setup,
    pub registry: registry::Config,
    pub platforms_max_age: Duration,
    pub snapshotter: snapshot::Backend,
    pub binary: Option<PathBuf>,
    pub labels: BTreeMap<String, String>,
    pub platforms: Vec<oci::Platform>,
    pub parallelism: Option<usize>,
    pub cgroup_parent: String,
    /// Steps see the daemon's own `/proc`.
    pub host_proc: bool,
    pub confinement: sandbox::Confinement,
    pub log_limits: ops::exec::LogLimits,
    /// Where programs such as git are looked for.
    pub program_path: std::ffi::OsString,
    /// The proxies, as such programs know them.
    pub program_proxy: Vec<(String, String)>,
    pub gc_rules: Vec<layers::Rule>,
    /// In bytes; 0 is none.
    pub ceiling: u64,
    pub history: Retention,
    /// To be logged once the log runs.
    pub warnings: Vec<String>,
}

pub fn load(flags: Flags) -> Result<Config, String> {
    let paths = Paths::of_environment();
    let (file, mut warnings) = file::read(flags.config.as_deref(), &paths.config)?;
    for flag in &flags.ignored {
        warnings.push(format!("flag --{flag} has no effect in this version of kiln"));
    }
    let oci = file.worker.oci;
    let configs = paths.configs();
    let root = absolute(flags.root.clone().or(file.root).unwrap_or(paths.root))?;
    let gc_rules = oci.gc_rules(&flags, &root);
    let ceiling = flags.oci_gc_ceiling.unwrap_or(oci.space_ceiling).bytes(gc::disk_size(&root));
    if flags.oci_worker.as_deref() == Some("false") || oci.enabled == Some(false) {
        return Err("no worker found, rebuild the buildkit daemon?".into());
    }
    if file.worker.containerd.enabled == Some(true) {
        warnings.push("the containerd worker is not supported by this version of kiln; builds run on the OCI worker".into());
    }
    let host_proc = flags.oci_no_process_sandbox || oci.no_process_sandbox;
    if host_proc && !sandbox::rootless::in_user_namespace() {
        return Err("can't enable NoProcessSandbox without Rootless".into());
    }
    if host_proc && flags.oci_binary.as_ref().or(oci.binary.as_ref()).is_some() {
        return Err("--oci-worker-no-process-sandbox works with the built-in sandbox only: leave --oci-worker-binary out".into());
    }
    let network = flags.network.clone().or(oci.network()).setup(&configs, is_rootless(), &Environment::read())?;
    if network == Default::default() {
        warnings.push("using host network as the default".into());
    }
    let concurrency = match file.system.max_registry_concurrency {
        Some(n) if n <= 0 => return Err(format!("maxRegistryConcurrency must be greater than zero; set to {n} in the configuration file")),
        Some(n) => n as usize,
        None => 4,
    };
    let platforms = if flags.oci_platforms.is_empty() { oci.platforms } else { flags.oci_platforms };
    let mut labels = oci.labels;
    for label in flags.oci_labels {
        let (key, value) = label.split_once('=').ok_or_else(|| format!("invalid label {label:?}: KEY=VALUE is wanted"))?;
        labels.insert(key.to_owned(), value.to_owned());
    }
    let mut entitlements =
        if flags.allow_insecure_entitlement.is_empty() { file.insecure_entitlements } else { flags.allow_insecure_entitlement };
    for entitlement in &entitlements {
        if !["network.host", "security.insecure", "device"].contains(&entitlement.as_str()) {
            return Err(format!("invalid entitlement : {entitlement}"));
        }
    }
    let devices = match flags.cdi_disabled.unwrap_or(file.cdi.disabled) {
        true => worker::Devices::default(),
        false => {
            // Each device is granted by name, or allows itself.
            entitlements.push("device".to_owned());
            let given = [flags.cdi_dirs, file.cdi.spec_dirs].into_iter().find(|dirs| !dirs.is_empty());
            let dirs = given.unwrap_or_else(|| ["/etc/cdi", "/var/run/cdi", "/etc/buildkit/cdi"].map(PathBuf::from).to_vec());
            worker::Devices { dirs, auto_allowed: file.cdi.auto_allowed }
        }
    };
    let debug_level = if flags.trace || file.trace {
        Some("trace")
    } else if flags.debug || file.debug {
        Some("debug")
    } else {
        None
    };
    let level = debug_level
        .map(str::to_owned)
        .or(flags.log_level)
        .or(file.log.level)
        .or_else(|| env("BUILDKITD_LOG_LEVEL"))
        .unwrap_or_else(|| "info".into());
    let json = match flags.log_format.or(file.log.format).as_deref() {
        None | Some("text" | "") => false,
        Some("json") => true,
        Some(other) => return Err(format!("unsupported log type {other:?}")),
    };
    let addresses = [flags.addr, file.grpc.address, vec![paths.address]].into_iter().find(|list| !list.is_empty()).unwrap_or_default();
    let debug_address = flags.debug_address.or_else(|| env("BUILDKITD_DEBUGADDR")).or(file.grpc.debug_address);
    let debug_address = debug_address.filter(|address| !address.is_empty());
    let group = flags.group.map(|name| group_id(&name)).transpose()?;
    Ok(Config {
        log: Log { json, level },
        gc_rules,
        ceiling,
        root,
        addresses,
        debug_address,
        socket_owner: (file.grpc.uid, group.or(file.grpc.gid)),
        tls: Tls {
            cert: flags.tls_cert.or(file.grpc.tls.cert),
            key: flags.tls_key.or(file.grpc.tls.key),
            ca: flags.tls_ca.or(file.grpc.tls.ca),
        },
        entitlements,
        devices,
        proxy_network: flags.proxy_network.unwrap_or(file.proxy_network),
        dockerfile_enabled: file.frontend.get("dockerfile.v0").and_then(|f| f.enabled).unwrap_or(true),
        gateway_sources: file.frontend.get("gateway.v0").map(|f| f.allowed_repositories.clone()).unwrap_or_default(),
        gateway_enabled: file.frontend.get("gateway.v0").and_then(|f| f.enabled).unwrap_or(true),
        provenance_env: provenance_env::load(
            &file.provenance_env_dir.filter(|p| !p.as_os_str().is_empty()).unwrap_or(paths.provenance_env),
        )?,
        sbom_generator: match file.sbom_generator.as_deref().filter(|text| !text.is_empty()) {
            Some(text) => job::Generator::parse(text, "generator").map_err(|e| format!("invalid sbomGenerator: {e}"))?,
            None => job::Generator::Any,
        },
        grace_period: flags.grace_period.unwrap_or(Duration::from_secs(20)),
        idle_exit: flags.idle_exit,
        network,
        dns: sandbox::Dns { nameservers: file.dns.nameservers, search: file.dns.search_domains, options: file.dns.options },
        registry: registry::Config {
            hosts: file.registry.into_iter().map(|(name, table)| (name, host(table))).collect(),
            concurrency,
            user_agent: "buildkit/v0.32".into(),
            proxy: proxy(),
            ..registry::Config::default()
        },
        platforms_max_age: file.system.platforms_cache_max_age.map_or(Duration::from_secs(20), |s| s.0),
        snapshotter: match flags.oci_snapshotter.or(oci.snapshotter).as_deref().unwrap_or("auto") {
            "auto" | "" => snapshot::Backend::Auto,
            "overlayfs" => snapshot::Backend::Overlay,
            "native" => snapshot::Backend::Native,
            other => return Err(format!("unknown snapshotter name: {other:?}")),
        },
        binary: flags.oci_binary.or(oci.binary),
        labels,
        platforms: platforms.iter().map(|p| p.parse().map_err(|e| format!("{e}"))).collect::<Result<_, String>>()?,
        parallelism: flags.oci_max_parallelism.or(oci.max_parallelism).filter(|&n| n > 0),
        host_proc,
        confinement: sandbox::Confinement {
            apparmor: flags.oci_apparmor_profile.or(oci.apparmor_profile).filter(|name| !name.is_empty()),
            selinux: flags.oci_selinux.unwrap_or(oci.selinux),
        },
        cgroup_parent: oci.default_cgroup_parent.unwrap_or_default(),
        log_limits: log_limits()?,
        program_path: program_path(),
        program_proxy: program_proxy(),
        history: file.history.map_or_else(Retention::default, |table| Retention {
            age: table.max_age.map_or(Duration::ZERO, |age| age.0),
            entries: usize::try_from(table.max_entries).unwrap_or(0),
        }),
        warnings,
    })
}

fn host(table: RegistryTable) -> Host {
    Host {
        mirrors: table.mirrors,
        http: table.http,
        insecure: table.insecure.unwrap_or(false),
        ca: table.ca,
        keypairs: table.keypair.into_iter().map(|k| Keypair { cert: k.cert, key: k.key }).collect(),
        tls_dirs: table.tlsconfigdir,
    }
}

/// Where things are unless told otherwise.
struct Paths {
    config: PathBuf,
    provenance_env: PathBuf,
    root: PathBuf,
    address: String,
}

impl Paths {
    /// Where other configurations are found.
    fn configs(&self) -> PathBuf {
        self.config.parent().unwrap_or(Path::new("/")).to_owned()
    }

    fn of_environment() -> Self {
        let first = |name: &str| env(name).map(|value| PathBuf::from(value.split(':').next().unwrap_or_default()));
        let home = PathBuf::from(env("HOME").unwrap_or_else(|| "/root".into()));
        if !is_rootless() {
            return Self {
                config: "/etc/buildkit/buildkitd.toml".into(),
                provenance_env: "/etc/buildkit/provenance.d".into(),
                root: "/var/lib/buildkit".into(),
                address: "unix:///run/buildkit/buildkitd.sock".into(),
            };
        }
        let runtime = first("XDG_RUNTIME_DIR").unwrap_or_else(|| PathBuf::from(format!("/run/user/{}", user_outside())));
        let configs = first("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config")).join("buildkit");
        Self {
            config: configs.join("buildkitd.toml"),
            provenance_env: configs.join("provenance.d"),
            root: first("XDG_DATA_HOME").unwrap_or_else(|| home.join(".local/share")).join("buildkit"),
            address: format!("unix://{}", runtime.join("buildkit/buildkitd.sock").display()),
        }
    }
}

/// In a user namespace and called by somebody else than root, or not root at all.
fn is_rootless() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let whole = map.split_whitespace().collect::<Vec<_>>() == ["0", "0", "4294967295"];
    let user = env("USER").filter(|u| !u.is_empty());
    env(USER_OUTSIDE).is_some() || !rustix::process::geteuid().is_root() || (!whole && user.is_some_and(|u| u != "root"))
}

/// Set by [`super::rootless`] to the id of the user who is root in here.
pub const USER_OUTSIDE: &str = "KILN_ROOTLESS_UID";

fn user_outside() -> String {
    env(USER_OUTSIDE).unwrap_or_else(|| rustix::process::getuid().as_raw().to_string())
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn proxy() -> Proxy {
    let either = |name: &str| env(name).or_else(|| env(&name.to_lowercase()));
    let no_proxy = either("NO_PROXY").map(|list| list.split(',').map(|e| e.trim().to_owned()).collect()).unwrap_or_default();
    Proxy { http: either("HTTP_PROXY"), https: either("HTTPS_PROXY"), no_proxy }
}

/// Where programs are looked for.
pub fn program_path() -> std::ffi::OsString {
    std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into())
}

/// As they stand in the environment: programs know them by these names.
fn program_proxy() -> Vec<(String, String)> {
    let names = ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy"];
    names.into_iter().filter_map(|name| Some((name.to_owned(), env(name)?))).collect()
}

/// -1 is unlimited.
fn log_limits() -> Result<ops::exec::LogLimits, String> {
    let default = ops::exec::LogLimits::default();
    let limit = |name: &str, default: Option<u64>| match env(name)
        .map(|v| v.parse::<i64>().map_err(|_| format!("{name}: {v:?} is not a number")))
    {
        None => Ok(default),
        Some(Ok(n)) => Ok(u64::try_from(n).ok()),
        Some(Err(e)) => Err(e),
    };
    Ok(ops::exec::LogLimits {
        size: limit("BUILDKIT_STEP_LOG_MAX_SIZE", default.size)?,
        speed: limit("BUILDKIT_STEP_LOG_MAX_SPEED", default.speed)?,
    })
}

fn group_id(name: &str) -> Result<u32, String> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let line = groups.lines().find(|line| line.split(':').next() == Some(name));
    line.and_then(|line| line.split(':').nth(2)?.parse().ok()).ok_or_else(|| format!("group {name} not found"))
}

fn absolute(path: PathBuf) -> Result<PathBuf, String> {
    std::path::absolute(&path).map_err(|e| format!("{}: {e}", path.display()))
}
