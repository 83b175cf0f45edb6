//! The daemon's command line: buildkitd's flags, and a few of kiln's own.
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::gc::{Limits, Space};
use super::network::NetworkTable;

/// `None` and empty lists mean "not given".
#[derive(Debug, Default, Clone)]
pub struct Flags {
    pub config: Option<PathBuf>,
    pub root: Option<PathBuf>,
    pub addr: Vec<String>,
    pub debug_address: Option<String>,
    pub debug: bool,
    pub trace: bool,
    pub log_format: Option<String>,
    pub log_level: Option<String>,
    pub group: Option<String>,
    pub tls_cert: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    pub tls_ca: Option<PathBuf>,
    pub allow_insecure_entitlement: Vec<String>,
    pub proxy_network: Option<bool>,
    pub rootless: Option<bool>,
    pub oci_worker: Option<String>,
    pub oci_labels: Vec<String>,
    pub oci_snapshotter: Option<String>,
    pub oci_platforms: Vec<String>,
    pub network: NetworkTable,
    pub oci_binary: Option<PathBuf>,
    pub cdi_disabled: Option<bool>,
    pub cdi_dirs: Vec<PathBuf>,
    pub oci_max_parallelism: Option<usize>,
    pub oci_no_process_sandbox: bool,
    pub oci_apparmor_profile: Option<String>,
    pub oci_selinux: Option<bool>,
    pub oci_gc: Option<bool>,
    pub oci_gc_limits: Option<Limits>,
    /// kiln's own: see docs/operating.md.
    pub oci_gc_ceiling: Option<Space>,
    /// kiln's own: how long running builds may go on after SIGTERM.
    pub grace_period: Option<Duration>,
    /// kiln's own: end after so long without a client.
    pub idle_exit: Option<Duration>,
    /// Flags that are understood and have no effect yet.
    pub ignored: Vec<String>,
}

pub enum Parsed {
    Run(Box<Flags>),
    Version,
    Help,
}

/// Flags with a value that buildkitd knows and this version does nothing with.
const WITHOUT_EFFECT: [&str; 24] = [
    "otel-socket-path",
    "profile-cpu",
    "profile-memory",
    "profile-memoryrate",
    "profile-block",
    "profile-mutex",
    "profile-trace",
    "oci-worker-proxy-snapshotter-path",
    "containerd-worker-addr",
    "containerd-worker-labels",
    "containerd-worker-platform",
    "containerd-worker-namespace",
    "containerd-worker-runtime",
    "containerd-worker-net",
    "containerd-worker-snapshotter",
    "containerd-worker-apparmor-profile",
    "containerd-worker-gc-keepstorage",
    "containerd-cni-config-path",
    "containerd-cni-binary-dir",
    "containerd-cni-pool-size",
    "containerd-max-parallelism",
    "containerd-worker-bridge-name",
    "containerd-worker-bridge-subnet",
    "containerd-worker",
];

/// Switches of that kind.
const SWITCHES_WITHOUT_EFFECT: [&str; 4] = ["save-cache-debug", "oci-worker-rootless", "containerd-worker-gc", "containerd-worker-selinux"];

impl Flags {
    pub fn parse(args: Vec<OsString>) -> Result<Parsed, String> {
        let mut flags = Self::default();
        let mut args = args.into_iter().map(|a| a.into_string().map_err(|a| format!("argument {a:?} is not UTF-8")));
        while let Some(arg) = args.next() {
            let arg = arg?;
            let Some(body) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')).filter(|b| !b.is_empty()) else {
                return Err(format!("unexpected argument {arg:?}"));
            };
            let (name, inline) = match body.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (body.to_owned(), None),
            };
            match name.as_str() {
                "version" | "v" => return Ok(Parsed::Version),
                "help" | "h" => return Ok(Parsed::Help),
                _ => {}
            }
            if flags.switch(&name, inline.as_deref())? {
                continue;
            }
            let value = match inline {
                Some(value) => value,
                None => args.next().ok_or_else(|| format!("flag needs an argument: --{name}"))??,
            };
            flags.value(&name, value)?;
        }
        Ok(Parsed::Run(Box::new(flags)))
    }

    fn switch(&mut self, name: &str, inline: Option<&str>) -> Result<bool, String> {
        let on = match inline {
            None | Some("true" | "1" | "t") => true,
            Some("false" | "0" | "f") => false,
            Some(_) => return Ok(false),
        };
        match name {
            "debug" => self.debug = on,
            "trace" => self.trace = on,
            "proxy-network" => self.proxy_network = Some(on),
            "rootless" => self.rootless = Some(on),
            "oci-worker-gc" => self.oci_gc = Some(on),
            "oci-worker-no-process-sandbox" => self.oci_no_process_sandbox = on,
            "oci-worker-selinux" => self.oci_selinux = Some(on),
            "cdi-disabled" => self.cdi_disabled = Some(on),
            _ if SWITCHES_WITHOUT_EFFECT.contains(&name) => self.ignored.push(name.to_owned()),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn value(&mut self, name: &str, value: String) -> Result<(), String> {
        match name {
            "config" => self.config = Some(value.into()),
            "root" => self.root = Some(value.into()),
            "addr" => self.addr.push(value),
            "debugaddr" => self.debug_address = Some(value),
            "log-format" => self.log_format = Some(value),
            "log-level" => self.log_level = Some(value),
            "group" => self.group = Some(value),
            "tlscert" => self.tls_cert = Some(value.into()),
            "tlskey" => self.tls_key = Some(value.into()),
            "tlscacert" => self.tls_ca = Some(value.into()),
            "allow-insecure-entitlement" => self.allow_insecure_entitlement.push(value),
            "oci-worker" => self.oci_worker = Some(value),
            "oci-worker-labels" => self.oci_labels.push(value),
            "oci-worker-snapshotter" => self.oci_snapshotter = Some(value),
            "oci-worker-platform" => self.oci_platforms.push(value),
            "oci-worker-net" => self.network.network_mode = Some(value),
            "oci-cni-config-path" => self.network.cni_config_path = Some(value.into()),
            "oci-cni-binary-dir" | "oci-cni-binary-path" => self.network.cni_binary_path = Some(value.into()),
            "oci-cni-pool-size" => self.network.cni_pool_size = Some(number(name, &value)?),
            "oci-worker-bridge-name" => self.network.bridge_name = Some(value),
            "oci-worker-bridge-subnet" => self.network.bridge_subnet = Some(value),
            "rootless-net" => self.network.rootless_net = Some(value),
            "cdi-spec-dir" => self.cdi_dirs.push(value.into()),
            "oci-worker-apparmor-profile" => self.oci_apparmor_profile = Some(value),
            "oci-worker-binary" => self.oci_binary = Some(value.into()),
            "oci-max-parallelism" => self.oci_max_parallelism = Some(number(name, &value)?),
            "oci-worker-gc-keepstorage" => self.oci_gc_limits = Some(Limits::parse(&value)?),
            "oci-worker-gc-ceiling" => {
                let space = Space::parse(&value).ok_or_else(|| format!("invalid disk space {value}"))?;
                self.oci_gc_ceiling = Some(space);
            }
            "grace-period" => self.grace_period = Some(Duration::from_secs(number(name, &value)?)),
            "idle-exit" => self.idle_exit = Some(Duration::from_secs(number(name, &value)?)),
            _ if WITHOUT_EFFECT.contains(&name) => self.ignored.push(name.to_owned()),
            _ => return Err(format!("flag provided but not defined: -{name}")),
        }
        Ok(())
    }
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, String> {
    value.trim_end_matches('s').parse().map_err(|_| format!("invalid value {value:?} for flag --{name}: a number is wanted"))
}

pub fn usage(program: &str) -> String {
    format!(
        "USAGE: {program} [flags]

  --config FILE              configuration (default /etc/buildkit/buildkitd.toml)
  --root DIR                 where everything is kept (default /var/lib/buildkit)
  --addr ADDRESS             unix://PATH, tcp://HOST:PORT or fd://; may be repeated
  --debugaddr HOST:PORT      figures for Prometheus and for debugging, over plain HTTP; unix://PATH, too
  --group GROUP              group that owns unix sockets
  --tlscert, --tlskey, --tlscacert FILE
                             TLS for tcp and fd listeners; with a CA, clients need certificates
  --debug, --trace           log at these levels
  --log-format text|json     --log-level trace|debug|info|warn|error
  --allow-insecure-entitlement network.host|security.insecure
  --oci-worker-binary FILE   runc, crun or another OCI runtime in the place of the built-in sandbox
  --oci-worker-apparmor-profile NAME
                             AppArmor profile of steps; it must be loaded
  --oci-worker-selinux       give steps labels of SELinux
  --proxy-network            steps reach the network through the daemon's proxy only
  --oci-worker-net auto|host|bridge|cni|none
                             network of steps; bridge is built in
  --oci-worker-bridge-name NAME, --oci-worker-bridge-subnet NETWORK
  --oci-cni-config-path FILE, --oci-cni-binary-dir DIR
  --oci-cni-pool-size N      network namespaces kept ready, of a bridge too
  --rootless-net host|pasta|slirp4netns
                             what a user's daemon connects its steps with
  --oci-worker-snapshotter auto|overlayfs|native
  --oci-worker-no-process-sandbox
                             without root: steps see the daemon's /proc
  --cdi-spec-dir DIR (may be repeated), --cdi-disabled
                             devices that steps may ask for
  --oci-worker-platform OS/ARCH, --oci-worker-labels K=V, --oci-max-parallelism N
  --oci-worker-gc=false      no garbage collection (default on)
  --oci-worker-gc-keepstorage MB[,FREE_MB[,MAX_MB]]
                             what the build cache may keep, must leave free, may take at most
  --oci-worker-gc-ceiling SIZE
                             never more on disk than this, also while builds run: 50GB, 60%
  --grace-period SECONDS     how long builds may go on after SIGTERM (default 20)
  --idle-exit SECONDS        end after so long without a client and a build
  --version, --help"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Flags, String> {
        match Flags::parse(args.iter().map(Into::into).collect())? {
            Parsed::Run(flags) => Ok(*flags),
            _ => Err("not a run".into()),
        }
    }

    #[test]
    fn takes_what_buildkitd_takes() {
        let flags = parse(&[
            "--addr",
            "unix:///a",
            "-addr=tcp://b:1",
            "--debug",
            "--oci-worker=true",
            "--oci-worker-gc=false",
            "--containerd-worker=false",
            "--root=/r",
        ])
        .unwrap();
        assert_eq!(flags.addr, ["unix:///a", "tcp://b:1"]);
        assert_eq!(flags.root.as_deref(), Some(std::path::Path::new("/r")));
        assert!(flags.debug);
        assert_eq!(flags.oci_gc, Some(false));
        assert_eq!(flags.ignored, ["containerd-worker"]);
        assert!(parse(&["--nonsense", "x"]).unwrap_err().contains("nonsense"));
        assert!(parse(&["--root"]).unwrap_err().contains("needs an argument"));
    }

    /// The flags that a text names.
    fn named(text: &str) -> std::collections::BTreeSet<&str> {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
        words.filter_map(|word| word.strip_prefix("--")).filter(|flag| flag.starts_with(|c: char| c.is_ascii_lowercase())).collect()
    }

    #[test]
    fn the_operators_guide_names_every_flag_and_no_other() {
        let guide = include_str!("../../../../docs/operating.md");
        let own = usage("kiln daemon");
        let offered: std::collections::BTreeSet<&str> =
            named(&own).into_iter().filter(|flag| !["version", "help"].contains(flag)).collect();
        let missing: Vec<_> = offered.difference(&named(guide)).copied().collect();
        assert!(missing.is_empty(), "docs/operating.md does not name {missing:?}");

        // The first table; others are about other programs.
        let running = guide.split("\n### ").next().unwrap_or_default();
        let table = running.lines().filter(|line| line.starts_with("| `--")).filter_map(|line| line.split('|').nth(1)).collect::<String>();
        assert!(named(&table).len() > 30, "{table}");
        for flag in named(&table) {
            let flags = parse(&[&format!("--{flag}=1")]).unwrap_or_else(|error| panic!("docs/operating.md names --{flag}: {error}"));
            assert!(flags.ignored.is_empty(), "docs/operating.md names --{flag}, which has no effect");
            assert!(offered.contains(flag), "--help does not name --{flag}");
        }
    }
}
