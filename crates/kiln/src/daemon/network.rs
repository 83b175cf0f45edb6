//! Which network steps get: from flags, the file's worker table and the environment, as buildkitd reads them.
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::config::program_path;
use sandbox::network::{Bridge, Carrier, Cni, Mode, Setup, Uplink};

/// Keys of `[worker.oci]`, or the flags that say the same.
#[derive(Debug, Default, Clone)]
pub struct NetworkTable {
    pub network_mode: Option<String>,
    pub cni_config_path: Option<PathBuf>,
    pub cni_binary_path: Option<PathBuf>,
    pub cni_pool_size: Option<usize>,
    pub bridge_name: Option<String>,
    pub bridge_subnet: Option<String>,
    pub rootless_net: Option<String>,
}

impl NetworkTable {
    /// What is given here wins over `other`.
    pub fn or(self, other: Self) -> Self {
        Self {
            network_mode: self.network_mode.or(other.network_mode),
            cni_config_path: self.cni_config_path.or(other.cni_config_path),
            cni_binary_path: self.cni_binary_path.or(other.cni_binary_path),
            cni_pool_size: self.cni_pool_size.or(other.cni_pool_size),
            bridge_name: self.bridge_name.or(other.bridge_name),
            bridge_subnet: self.bridge_subnet.or(other.bridge_subnet),
            rootless_net: self.rootless_net.or(other.rootless_net),
        }
    }

    /// `configs` is where the CNI configuration is by default. A user's daemon has the host's network unless told otherwise.
    pub fn setup(self, configs: &Path, rootless: bool, environment: &Environment) -> Result<Setup, String> {
        let cni = Cni {
            config: self.cni_config_path.unwrap_or_else(|| configs.join("cni.json")),
            binaries: self.cni_binary_path.unwrap_or_else(|| "/opt/cni/bin".into()),
        };
        let default = Bridge::default();
        let subnet = self.bridge_subnet.filter(|text| !text.is_empty());
        let bridge = Bridge {
            name: self.bridge_name.filter(|name| !name.is_empty()).unwrap_or(default.name),
            subnet: subnet.map_or(Ok(default.subnet), |text| text.parse())?,
        };
        let mode = match self.network_mode.as_deref().unwrap_or("auto") {
            "host" => Mode::Host,
            "none" => Mode::None,
            "bridge" => Mode::Bridge(bridge),
            "cni" => Mode::Cni(cni),
            "" | "auto" if rootless => Mode::Host,
            "" | "auto" if environment.bridge_auto => Mode::Bridge(bridge),
            "" | "auto" if cni.config.exists() => Mode::Cni(cni),
            "" | "auto" => Mode::Host,
            other => return Err(format!("invalid network mode: {other:?}")),
        };
        Ok(Setup {
            mode,
            pool: self.cni_pool_size.unwrap_or(0),
            within: environment.detached.clone(),
            uplink: uplink(self.rootless_net.as_deref().unwrap_or("host"), environment)?,
            lock: environment.lock.clone(),
        })
    }
}

/// The network that a user's daemon makes for its steps. The names are those of rootlesskit's `--net`.
fn uplink(name: &str, environment: &Environment) -> Result<Option<Uplink>, String> {
    let carrier = match name {
        "" | "host" => return Ok(None),
        "pasta" => Carrier::Pasta,
        "slirp4netns" => Carrier::Slirp4netns,
        other => return Err(format!("invalid rootless network {other:?}: host, pasta or slirp4netns is wanted")),
    };
    if environment.rootlesskit {
        return Err(format!(
            "--rootless-net={name} is for a daemon without rootlesskit, which makes the network here: start it with --net={name}"
        ));
    }
    if !environment.user_namespace {
        return Err(format!("--rootless-net={name} is for a daemon that an ordinary user starts: this one has the machine's network"));
    }
    Ok(Some(Uplink { carrier, search: environment.path.clone() }))
}

/// What the environment says of networks.
#[derive(Debug, Default)]
pub struct Environment {
    /// Bridges are the default.
    bridge_auto: bool,
    /// Held while the first namespace is made.
    lock: Option<PathBuf>,
    /// The network that rootlesskit made beside the daemon's.
    detached: Option<PathBuf>,
    /// The daemon was started by it.
    rootlesskit: bool,
    /// The daemon is root of one, and not of the machine.
    user_namespace: bool,
    /// Where programs are looked for.
    path: OsString,
}

impl Environment {
    pub fn read() -> Self {
        let get = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let rootlesskit = get("ROOTLESSKIT_STATE_DIR");
        let detached = rootlesskit.as_ref().map(|dir| PathBuf::from(dir).join("netns"));
        Self {
            bridge_auto: get("BUILDKIT_NETWORK_BRIDGE_AUTO")
                .is_some_and(|value| ["1", "t", "T", "true", "TRUE", "True"].iter().any(|yes| value == *yes)),
            lock: get("BUILDKIT_CNI_INIT_LOCK_PATH").map(Into::into),
            detached: detached.filter(|path| path.symlink_metadata().is_ok()),
            rootlesskit: rootlesskit.is_some(),
            user_namespace: sandbox::rootless::in_user_namespace(),
            path: program_path(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(table: NetworkTable, rootless: bool, environment: &Environment, configs: &Path) -> Result<Mode, String> {
        table.setup(configs, rootless, environment).map(|setup| setup.mode)
    }

    #[test]
    fn auto_is_cni_with_a_configuration_and_else_the_host() {
        let dir = tempfile::tempdir().unwrap();
        let plain = Environment::default();
        let auto = || mode(NetworkTable::default(), false, &plain, dir.path()).unwrap();
        assert_eq!(auto(), Mode::Host);
        std::fs::write(dir.path().join("cni.json"), "{}").unwrap();
        assert!(matches!(auto(), Mode::Cni(Cni { binaries, .. }) if binaries == Path::new("/opt/cni/bin")));
        assert_eq!(mode(NetworkTable::default(), true, &plain, dir.path()).unwrap(), Mode::Host);
        let bridges = Environment { bridge_auto: true, ..Environment::default() };
        assert_eq!(mode(NetworkTable::default(), false, &bridges, dir.path()).unwrap(), Mode::Bridge(Bridge::default()));
    }

    #[test]
    fn flags_win_and_nonsense_is_refused() {
        let named = |mode: &str| NetworkTable { network_mode: Some(mode.into()), ..NetworkTable::default() };
        let table = NetworkTable { bridge_subnet: Some("10.9.0.0/24".into()), ..named("cni") };
        let bridge = Bridge { subnet: "10.9.0.0/24".parse().unwrap(), ..Bridge::default() };
        let plain = Environment::default();
        assert_eq!(mode(named("bridge").or(table), false, &plain, Path::new("/")).unwrap(), Mode::Bridge(bridge));
        assert_eq!(mode(named("none"), false, &plain, Path::new("/")).unwrap(), Mode::None);
        assert_eq!(mode(named("x"), false, &plain, Path::new("/")).unwrap_err(), "invalid network mode: \"x\"");
        let wrong = NetworkTable { bridge_subnet: Some("10.9.0.0".into()), ..named("bridge") };
        assert!(mode(wrong, false, &plain, Path::new("/")).unwrap_err().contains("bridge subnet"));
    }

    #[test]
    fn a_network_of_its_own_is_for_a_users_daemon() {
        let user = || Environment { user_namespace: true, path: "/bin".into(), ..Environment::default() };
        assert_eq!(uplink("host", &user()), Ok(None));
        assert_eq!(uplink("pasta", &user()), Ok(Some(Uplink { carrier: Carrier::Pasta, search: "/bin".into() })));
        assert!(uplink("vpnkit", &user()).unwrap_err().contains("slirp4netns is wanted"));
        assert!(uplink("pasta", &Environment { rootlesskit: true, ..user() }).unwrap_err().contains("--net=pasta"));
        assert!(uplink("pasta", &Environment::default()).unwrap_err().contains("ordinary user"));
    }
}
