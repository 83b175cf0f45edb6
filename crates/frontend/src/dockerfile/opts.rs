//! The options of a request.
use std::collections::BTreeMap;
use std::net::IpAddr;

use dockerfile::convert::{NoCache, Options};
use dockerfile::instruction::csv_fields;
use dockerfile::lint;
use dockerfile::parse_platform;
use dockerfile::source::ResolveMode;
use dockerfile::text::parse_bool;
use fault::{Context as _, Detail, Fault, Kind, Result};
use llb::{LinuxResources, NetMode, Ulimit};
use oci::Platform;

use super::context::Entrypoint;
use crate::attestations::{SbomRequest, Wanted};
use crate::bridge::{Build, CacheImport};

/// Options with types. What concerns the language is in `options`, the rest beside it.
#[derive(Debug, Clone, Default)]
pub(super) struct Config {
    /// As they came, with what options say about other options.
    pub opts: BTreeMap<String, String>,
    base: Options,
    pub target_platforms: Vec<Platform>,
    pub multi_platform: bool,
    pub cache_imports: Vec<CacheImport>,
    pub sbom: Option<SbomRequest>,
}

impl Config {
    pub fn parse(build: &Build) -> Result<Self> {
        let mut opts = build.opts.clone();
        check_daemon(build)?;
        let mut config = Self::default();
        let opt = |key: &str| opts.get(key).map_or("", String::as_str);

        let native = build.workers.first().and_then(|w| w.platforms.first()).cloned();
        config.base.build_platforms = vec![native.unwrap_or_else(Platform::host)];
        if !opt("platform").is_empty() {
            config.target_platforms = opt("platform").split(',').map(target_platform).collect::<Result<_>>()?;
        }
        config.base.resolve_mode = match opt("image-resolve-mode") {
            "default" | "" => ResolveMode::Default,
            "pull" => ResolveMode::ForcePull,
            "local" => ResolveMode::PreferLocal,
            other => return Err(invalid(format!("invalid image-resolve-mode: {other}"))),
        };
        config.base.extra_hosts = extra_hosts(opt("add-hosts")).context("failed to parse additional hosts")?;
        config.base.shm_size = match opt("shm-size") {
            "" => 0,
            text => parse_int(text).context("failed to parse shm size")?,
        };
        config.base.ulimits = ulimits(opt("ulimit")).context("failed to parse ulimit")?;
        config.base.linux_resources = resources(&opts).context("failed to parse resource limits")?;
        config.base.network = match opt("force-network-mode") {
            "" | "sandbox" => NetMode::Unset,
            "none" => NetMode::None,
            "host" => NetMode::Host,
            other => return Err(invalid(format!("invalid netmode {other}"))),
        };
        config.base.no_cache = match opts.get("no-cache").map(String::as_str) {
            None => NoCache::None,
            Some("") => NoCache::All,
            Some(names) => NoCache::Stages(names.split(',').map(str::to_owned).collect()),
        };
        override_opt(&mut opts, "multi-platform", "build-arg:BUILDKIT_MULTI_PLATFORM");
        config.multi_platform = multi_platform(&opts, config.target_platforms.len() > 1)?;
        config.cache_imports = cache_imports(&opts)?;
        config.sbom = Wanted::parse(&opts, "scanner")?.sbom;
        override_opt(&mut opts, "hostname", "build-arg:BUILDKIT_SANDBOX_HOSTNAME");

        let opt = |key: &str| opts.get(key).cloned().unwrap_or_default();
        config.base.build_args = with_prefix(&opts, "build-arg:");
        config.base.labels = with_prefix(&opts, "label:");
        config.base.cache_namespace = opt("build-arg:BUILDKIT_CACHE_MOUNT_NS");
        config.base.cgroup_parent = opt("cgroup-parent");
        config.base.target = opt("target");
        config.base.hostname = opt("hostname");
        if let Some(text) = opts.get("build-arg:BUILDKIT_DOCKERFILE_CHECK") {
            let parsed = lint::Config::parse(text).map_err(|e| invalid(e.to_string()));
            config.base.lint = Some(parsed.context("failed to parse build-arg:BUILDKIT_DOCKERFILE_CHECK")?);
        }
        config.base.multi_platform = config.multi_platform;
        config.opts = opts;
        Ok(config)
    }

    /// Empty if not given.
    pub fn opt(&self, key: &str) -> &str {
        self.opts.get(key).map_or("", String::as_str)
    }

    /// The session that serves a local directory.
    pub fn session_for<'a>(&'a self, local: &str, build: &'a Build) -> &'a str {
        self.opts.get(&format!("local-sessionid:{local}")).unwrap_or(&build.session_id)
    }

    /// What the language needs to know for one platform.
    pub fn options(&self, platform: Option<&Platform>, entrypoint: &Entrypoint, build: &Build) -> Options {
        Options {
            target_platform: platform.cloned(),
            source: entrypoint.info(),
            caps: build.llb_caps.iter().map(str::to_owned).collect(),
            ..self.base.clone()
        }
    }

    pub fn native_platform(&self) -> &Platform {
        &self.base.build_platforms[0]
    }

    pub fn resolve_mode(&self) -> ResolveMode {
        self.base.resolve_mode
    }
}

pub(super) fn invalid(message: impl Into<String>) -> Fault {
    // BuildKit gives these no code of their own.
    Fault::new(Kind::Unknown, message)
}

/// What an old daemon lacks, and what was once there.
fn check_daemon(build: &Build) -> Result<()> {
    if !build.llb_caps.contains("file.base") {
        return Err(invalid("needs BuildKit 0.5 or later"));
    }
    let removed = |what: &str| Err(invalid(format!("support for \"{what} was removed in BuildKit 0.11")));
    if build.opts.get("override-copy-image").is_some_and(|v| !v.is_empty()) {
        return removed("override-copy-image\"");
    }
    if build.opts.get("build-arg:BUILDKIT_DISABLE_FILEOP").and_then(|v| parse_bool(v)) == Some(true) {
        return removed("BUILDKIT_DISABLE_FILEOP\" build-arg");
    }
    Ok(())
}

fn override_opt(opts: &mut BTreeMap<String, String>, key: &str, by: &str) {
    if let Some(value) = opts.get(by).filter(|v| !v.is_empty()).cloned() {
        opts.insert(key.to_owned(), value);
    }
}

fn with_prefix(opts: &BTreeMap<String, String>, prefix: &str) -> BTreeMap<String, String> {
    opts.iter().filter_map(|(k, v)| Some((k.strip_prefix(prefix)?.to_owned(), v.clone()))).collect()
}

fn target_platform(text: &str) -> Result<Platform> {
    let platform =
        parse_platform(text).map_err(|e| invalid(e.to_string())).with_context(|| format!("failed to parse target platform {text}"))?;
    Ok(platform.normalized())
}

fn multi_platform(opts: &BTreeMap<String, String>, several: bool) -> Result<bool> {
    let Some(text) = opts.get("multi-platform").filter(|v| !v.is_empty()) else { return Ok(several) };
    match parse_bool(text) {
        None => Err(invalid(format!("invalid boolean value for multi-platform: {text}"))),
        Some(false) if several => Err(invalid("conflicting config: returning multiple target platforms is not allowed")),
        Some(wanted) => Ok(wanted),
    }
}

fn fields(text: &str) -> Result<Vec<String>> {
    if text.is_empty() { Ok(Vec::new()) } else { csv_fields(text).map_err(|e| invalid(e.to_string())) }
}

fn extra_hosts(text: &str) -> Result<Vec<(String, String)>> {
    let host = |field: String| {
        let lower = field.to_lowercase();
        let (name, ip) = lower.split_once('=').ok_or_else(|| invalid(format!("invalid key-value pair {field}")))?;
        let address: IpAddr = ip.parse().map_err(|_| invalid(format!("failed to parse IP {ip}")))?;
        Ok((name.to_owned(), address.to_canonical().to_string()))
    };
    fields(text)?.into_iter().map(host).collect()
}

/// Go's error text for a number that is none.
fn number_error(function: &str, text: &str, digits: &str) -> Fault {
    let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let why = if is_number { "value out of range" } else { "invalid syntax" };
    invalid(format!("strconv.{function}: parsing {text:?}: {why}"))
}

fn parse_int(text: &str) -> Result<i64> {
    text.parse().map_err(|_| number_error("ParseInt", text, text.strip_prefix(['+', '-']).unwrap_or(text)))
}

fn parse_uint(text: &str) -> Result<u64> {
    let digits_only = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| digits_only).ok_or_else(|| number_error("ParseUint", text, text))
}

const ULIMITS: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

fn ulimits(text: &str) -> Result<Vec<Ulimit>> {
    fields(text)?.iter().map(|field| ulimit(field)).collect()
}

fn ulimit(text: &str) -> Result<Ulimit> {
    let (name, value) = text.split_once('=').ok_or_else(|| invalid(format!("invalid ulimit argument: {text}")))?;
    if !ULIMITS.contains(&name) {
        return Err(invalid(format!("invalid ulimit type: {name}")));
    }
    let (soft, hard) = match value.split(':').collect::<Vec<_>>().as_slice() {
        [both] => (parse_int(both)?, parse_int(both)?),
        [soft, hard] => {
            let hard = parse_int(hard)?;
            (parse_int(soft)?, hard)
        }
        _ => {
            let why = "can only have up to two, `soft[:hard]`";
            return Err(invalid(format!("too many limit value arguments - {value}, {why}")));
        }
    };
    if hard != -1 && (soft == -1 || soft > hard) {
        let what = "ulimit soft limit must be less than or equal to hard limit";
        return Err(invalid(match soft {
            -1 => format!("{what}: soft: -1 (unlimited), hard: {hard}"),
            soft => format!("{what}: {soft} > {hard}"),
        }));
    }
    Ok(Ulimit { name: name.to_owned(), soft, hard })
}

fn resources(opts: &BTreeMap<String, String>) -> Result<Option<LinuxResources>> {
    let get = |key: &str| opts.get(key).filter(|v| !v.is_empty());
    let named = |key: &str, value: &str| format!("invalid {key} value: {value}");
    let must = |key: &str, value: &str, what: &str| invalid(format!("{}: must be {what}", named(key, value)));
    let signed = |key: &str, valid: fn(i64) -> bool, what: &str| match get(key) {
        None => Ok(0),
        Some(value) => {
            let n = parse_int(value).with_context(|| named(key, value))?;
            if valid(n) { Ok(n) } else { Err(must(key, value, what)) }
        }
    };
    let unsigned = |key: &str| match get(key) {
        None => Ok(0),
        Some(value) => match parse_uint(value).with_context(|| named(key, value))? {
            0 => Err(must(key, value, "> 0")),
            n => Ok(n),
        },
    };
    let set = |key: &str| match get(key) {
        None => Ok(String::new()),
        Some(value) => check_cpuset(value).with_context(|| named(key, value)).map(|()| value.clone()),
    };
    let found = LinuxResources {
        memory: signed("memory", |n| n > 0, "> 0")?,
        memory_swap: signed("memswap", |n| n == -1 || n > 0, "-1 (unlimited) or > 0")?,
        cpu_shares: unsigned("cpushares")?,
        cpu_period: unsigned("cpuperiod")?,
        cpu_quota: signed("cpuquota", |n| n > 0, "> 0")?,
        cpuset_cpus: set("cpusetcpus")?,
        cpuset_mems: set("cpusetmems")?,
    };
    Ok((found != LinuxResources::default()).then_some(found))
}

/// `0-3,5`
fn check_cpuset(text: &str) -> Result<()> {
    const MAX: u32 = 8192;
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (kind, valid, top) = match part.split_once('-') {
            None => ("element", true, part.parse::<u32>().ok()),
            Some((low, high)) => {
                let (low, high) = (low.trim().parse::<u32>().ok(), high.trim().parse::<u32>().ok());
                ("range", low.is_some() && low <= high, high)
            }
        };
        match top.filter(|_| valid) {
            None => return Err(invalid(format!("invalid cpuset {kind} {part:?}"))),
            Some(top) if top > MAX => return Err(invalid(format!("cpuset {kind} {part:?} exceeds maximum {MAX}"))),
            Some(_) => {}
        }
    }
    Ok(())
}

fn cache_imports(opts: &BTreeMap<String, String>) -> Result<Vec<CacheImport>> {
    let mut found = Vec::new();
    if let Some(text) = opts.get("cache-imports").filter(|v| !v.is_empty()) {
        let wrong = |why: String| invalid(format!("failed to unmarshal cache-imports ({text:?}): {why}"));
        let entries: Vec<serde_json::Map<String, serde_json::Value>> = serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?;
        for entry in entries {
            let field = |name: &str| entry.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone());
            let kind = field("type").map_or(Ok(String::new()), serde_json::from_value).map_err(|e| wrong(e.to_string()))?;
            let attrs = field("attrs").filter(|v| !v.is_null());
            let attrs = attrs.map_or(Ok(BTreeMap::new()), serde_json::from_value).map_err(|e| wrong(e.to_string()))?;
            found.push(CacheImport { kind, attrs });
        }
    }
    if let Some(references) = opts.get("cache-from").filter(|v| !v.is_empty()) {
        let import = |r: &str| CacheImport { kind: "registry".into(), attrs: BTreeMap::from([("ref".into(), r.to_owned())]) };
        found.extend(references.split(',').map(import));
    }
    Ok(found)
}

/// Checks what attestations are wanted; the bill of materials is ours to make.
/// A frontend capability that was asked for and is not there.
pub(super) struct MissingCap {
    pub fault: Fault,
    /// Tolerable if the build is forwarded to another frontend.
    pub forward: bool,
}

const FRONTEND_CAPS: [&str; 4] = [
    "moby.buildkit.frontend.inputs",
    "moby.buildkit.frontend.subrequests",
    "moby.buildkit.frontend.contexts",
    "moby.buildkit.frontend.gitquerystring",
];

pub(super) fn check_frontend_caps(wanted: &str) -> Result<(), MissingCap> {
    let mut missing = Ok(());
    for entry in wanted.split(',').filter(|entry| !entry.is_empty()) {
        let name = entry.split('+').next().unwrap_or_default();
        if FRONTEND_CAPS.contains(&name) {
            continue;
        }
        let fault = Fault::new(Kind::Unimplemented, format!("unsupported frontend capability {name}"))
            .with_detail(Detail::FrontendCap { name: name.to_owned() });
        let forward = entry.contains("+forward");
        missing = Err(MissingCap { fault, forward });
        if !forward {
            break;
        }
    }
    missing
}
