//! AppArmor and SELinux: what confines a container beyond what every container has, where the daemon was told to and the kernel can.
use std::collections::HashSet;
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use fault::Kind;

use crate::link::Labels;
use crate::{SandboxError, Security};

/// What the daemon was told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Confinement {
    /// The AppArmor profile of sandboxed containers.
    pub apparmor: Option<String>,
    /// Give containers labels of SELinux.
    pub selinux: bool,
}

/// Gives containers their profile and labels.
#[derive(Debug)]
pub(crate) struct Confiner {
    told: Confinement,
    has_apparmor: bool,
    /// `None` if it is off.
    selinux: Option<Contexts>,
}

impl Confiner {
    /// Fails if a profile or the policy's contexts are missing. That the kernel has no such security module is said by [`Confiner::labels`],
    /// as BuildKit does.
    pub fn open(told: Confinement) -> Result<Self, SandboxError> {
        let has_apparmor = apparmor_runs();
        if let (true, Some(profile)) = (has_apparmor, &told.apparmor) {
            check_loaded(profile, fs::read_to_string(Path::new(APPARMOR).join("profiles")).ok().as_deref())?;
        }
        let selinux = if told.selinux && selinux_runs() { Some(Contexts::load(Path::new("/"))?) } else { None };
        Ok(Self { told, has_apparmor, selinux })
    }

    /// For one container; the level is its own as long as it is held.
    pub fn labels(&self, security: Security) -> Result<(Labels, Option<Level>), SandboxError> {
        let mut labels = Labels::default();
        let sandboxed = security == Security::Sandbox;
        if self.told.selinux && self.selinux.is_none() {
            return Err(refused("selinux is not available"));
        }
        if let Some(profile) = self.told.apparmor.as_ref().filter(|_| sandboxed) {
            if !self.has_apparmor {
                return Err(refused(format!("AppArmor is not supported on this host, but the profile '{profile}' was specified")));
            }
            labels.apparmor = Some(profile.clone());
        }
        let Some(contexts) = &self.selinux else { return Ok((labels, None)) };
        if !sandboxed {
            labels.mount = Some(with_level(&contexts.file, PRIVILEGED));
            return Ok((labels, None));
        }
        let level = contexts.has_levels.then(|| Level::take(&contexts.taken));
        let own = |context: &str| level.as_ref().map_or_else(|| context.to_owned(), |level| with_level(context, &level.name));
        (labels.process, labels.mount) = (Some(own(&contexts.process)), Some(own(&contexts.file)));
        Ok((labels, level))
    }
}

fn refused(message: impl Into<String>) -> SandboxError {
    SandboxError::Setup { message: message.into(), kind: Kind::Precondition }
}

const APPARMOR: &str = "/sys/kernel/security/apparmor";

fn apparmor_runs() -> bool {
    Path::new(APPARMOR).exists() && fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"))
}

/// `loaded` is the kernel's list, if it can be read: one `NAME (MODE)` a line.
fn check_loaded(profile: &str, loaded: Option<&str>) -> Result<(), SandboxError> {
    // A profile of another namespace, or several at once, is not in the list by its name.
    let plain = profile != "unconfined" && !profile.starts_with(':') && !profile.contains("//&");
    let Some(loaded) = loaded.filter(|_| plain) else { return Ok(()) };
    if loaded.lines().any(|line| line.rsplit_once(" (").map_or(line, |(name, _)| name) == profile) {
        return Ok(());
    }
    Err(refused(format!(
        "AppArmor profile {profile:?} is not loaded: load it with 'apparmor_parser -r /etc/apparmor.d/{profile}' (wherever its file is) \
         before the daemon starts, or leave --oci-worker-apparmor-profile out"
    )))
}

const SELINUX: &str = "/sys/fs/selinux";

/// A kernel with SELinux and no policy calls everything `kernel`.
fn selinux_runs() -> bool {
    const MAGIC: i64 = 0xf97c_ff8c;
    let mounted = rustix::fs::statfs(SELINUX).is_ok_and(|stat| stat.f_type == MAGIC);
    let writable = rustix::fs::statvfs(SELINUX).is_ok_and(|stat| !stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    let own = fs::read_to_string("/proc/self/attr/current").unwrap_or_default();
    mounted && writable && own.trim_end_matches('\0') != "kernel"
}

/// What the policy wants containers to be.
#[derive(Debug)]
struct Contexts {
    process: String,
    file: String,
    has_levels: bool,
    taken: Arc<Mutex<HashSet<String>>>,
}

impl Contexts {
    /// From where container engines have them, below `root`.
    fn load(root: &Path) -> Result<Self, SandboxError> {
        let config = fs::read_to_string(root.join("etc/selinux/config")).unwrap_or_default();
        let policy = values(&config).find(|(key, _)| *key == "SELINUXTYPE").map_or("", |(_, value)| value);
        let own: PathBuf = root.join("etc/selinux").join(policy).join("contexts/lxc_contexts");
        let places = [root.join("usr/share/containers/selinux/contexts"), own.clone()];
        let text = places.iter().map(fs::read_to_string).find_map(io::Result::ok).unwrap_or_default();
        let find = |wanted: &str| values(&text).find(|(key, _)| *key == wanted).map(|(_, value)| value.to_owned());
        let (Some(process), Some(file)) = (find("process"), find("file")) else {
            return Err(refused(format!(
                "SELinux is on, but its policy has no labels for containers ({} names none): install the package container-selinux, or \
                 leave --oci-worker-selinux out",
                own.display()
            )));
        };
        let taken = Arc::new(Mutex::new(HashSet::from([PRIVILEGED.to_owned()])));
        Ok(Self { has_levels: process.splitn(4, ':').count() == 4, process, file, taken })
    }
}

/// `key = "value"` lines.
fn values(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with([';', '#']));
    lines.filter_map(|line| line.split_once('=')).map(|(key, value)| (key.trim(), value.trim().trim_matches('"')))
}

/// What no sandboxed process has.
const PRIVILEGED: &str = "s0:c1022,c1023";
const CATEGORIES: u64 = 1024;

fn with_level(context: &str, level: &str) -> String {
    let parts: Vec<&str> = context.splitn(4, ':').take(3).collect();
    format!("{}:{level}", parts.join(":"))
}

/// Two categories that no other container of this daemon has; given back when dropped.
#[derive(Debug)]
pub(crate) struct Level {
    name: String,
    taken: Arc<Mutex<HashSet<String>>>,
}

impl Level {
    fn take(taken: &Arc<Mutex<HashSet<String>>>) -> Self {
        let mut names = taken.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            // Each state is random; other engines choose from the same categories.
            let random = RandomState::new().hash_one(names.len());
            let (a, b) = (random % CATEGORIES, (random >> 32) % CATEGORIES);
            let name = format!("s0:c{},c{}", a.min(b), a.max(b));
            if a != b && names.insert(name.clone()) {
                return Self { name, taken: Arc::clone(taken) };
            }
        }
    }
}

impl Drop for Level {
    fn drop(&mut self) {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_must_be_loaded() {
        let loaded = "docker-default (enforce)\n/usr/bin/man (complain)\n";
        check_loaded("docker-default", Some(loaded)).unwrap();
        check_loaded("unconfined", Some(loaded)).unwrap();
        check_loaded("kiln", None).unwrap();
        let error = check_loaded("docker", Some(loaded)).unwrap_err().to_string();
        assert!(error.contains("\"docker\" is not loaded") && error.contains("apparmor_parser -r"), "{error}");
    }

    fn machine(contexts: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("etc/selinux/mini/contexts");
        fs::create_dir_all(&dir).unwrap();
        fs::write(root.path().join("etc/selinux/config"), "# SELINUXTYPE=other\nSELINUX=enforcing\nSELINUXTYPE=mini\n").unwrap();
        fs::write(dir.join("lxc_contexts"), contexts).unwrap();
        root
    }

    fn confiner(contexts: &str) -> Confiner {
        let selinux = Some(Contexts::load(machine(contexts).path()).unwrap());
        Confiner { told: Confinement { apparmor: None, selinux: true }, has_apparmor: false, selinux }
    }

    #[test]
    fn every_container_has_categories_of_its_own() {
        let confiner = confiner("process = \"system_u:system_r:container_t:s0\"\nfile = \"system_u:object_r:container_file_t:s0\"\n");
        let mut held = Vec::new();
        let mut seen = HashSet::new();
        for _ in 0..2000 {
            let (labels, level) = confiner.labels(Security::Sandbox).unwrap();
            let (process, mount) = (labels.process.unwrap(), labels.mount.unwrap());
            let level = level.inspect(|level| assert!(process.ends_with(&level.name) && mount.ends_with(&level.name)));
            assert!(
                process.starts_with("system_u:system_r:container_t:s0:c") && mount.starts_with("system_u:object_r:container_file_t:s0:c")
            );
            assert!(seen.insert(process));
            held.push(level);
        }
        let (labels, level) = confiner.labels(Security::Insecure).unwrap();
        assert_eq!((labels.process, level.is_none()), (None, true));
        assert_eq!(labels.mount.unwrap(), "system_u:object_r:container_file_t:s0:c1022,c1023");
        drop(held);
        assert_eq!(confiner.selinux.unwrap().taken.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_policy_without_levels_or_containers_is_told_apart() {
        let (labels, level) = confiner("process=u:r:c_t\nfile=u:r:f_t").labels(Security::Sandbox).unwrap();
        assert_eq!((labels.process.as_deref(), level.is_none()), (Some("u:r:c_t"), true));
        let error = Contexts::load(machine("file = \"u:r:f_t\"").path()).unwrap_err().to_string();
        assert!(error.contains("container-selinux") && error.contains("mini/contexts/lxc_contexts"), "{error}");
    }

    #[test]
    fn what_the_kernel_lacks_is_refused_by_name() {
        let told = Confinement { apparmor: Some("p".into()), selinux: false };
        let without = Confiner { told, has_apparmor: false, selinux: None };
        let error = without.labels(Security::Sandbox).unwrap_err().to_string();
        assert_eq!(error, "AppArmor is not supported on this host, but the profile 'p' was specified");
        assert!(without.labels(Security::Insecure).unwrap().0.apparmor.is_none());
        let without = Confiner { told: Confinement { apparmor: None, selinux: true }, has_apparmor: true, selinux: None };
        for security in [Security::Sandbox, Security::Insecure] {
            assert_eq!(without.labels(security).unwrap_err().to_string(), "selinux is not available");
        }
    }
}
