//! Which platforms a worker runs: the machine's own, and those that an emulator is at hand for, registered with the kernel or not.
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use fault::{Fault, Kind, Result};
use oci::Platform;
use sandbox::{Emulator, emulation};

/// What emulators may stand in for, in the order in which it is told.
const EMULATED: [&str; 10] = [
    "linux/amd64",
    "linux/arm64",
    "linux/riscv64",
    "linux/ppc64le",
    "linux/s390x",
    "linux/386",
    "linux/mips64le",
    "linux/mips64",
    "linux/loong64",
    "linux/arm/v7",
];
const REGISTERED: &str = "/proc/sys/fs/binfmt_misc";

/// What runs the programs of a platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Runner {
    Machine,
    /// An emulator that the kernel knows of under this name, and has open for containers too.
    Registered(String),
    /// An emulator that each container must be given.
    Own(Emulator),
}

impl Runner {
    /// What a container must be given.
    pub fn emulator(self) -> Option<Emulator> {
        match self {
            Self::Own(emulator) => Some(emulator),
            Self::Machine | Self::Registered(_) => None,
        }
    }

    /// The emulator's name, if it is one.
    pub fn emulated_by(&self) -> Option<String> {
        match self {
            Self::Machine => None,
            Self::Registered(name) => Some(name.clone()),
            Self::Own(emulator) => Some(emulator.program.file_name()?.to_string_lossy().into_owned()),
        }
    }
}

/// What this machine can run.
#[derive(Debug)]
pub struct Platforms {
    host: Platform,
    amd64_level: u8,
    binfmt: PathBuf,
    /// Where emulators may lie; empty where containers cannot be given one.
    dirs: Vec<PathBuf>,
    /// Architectures whose emulator did not pass [`Platforms::verify`].
    broken: Mutex<BTreeSet<String>>,
}

impl Platforms {
    /// `dirs` are searched for emulators, if the kernel lets containers have their own.
    pub fn new(dirs: Vec<PathBuf>) -> Self {
        let dirs = if emulation::supported() { dirs } else { Vec::new() };
        Self { host: Platform::host(), amd64_level: amd64_level(), binfmt: REGISTERED.into(), dirs, broken: Mutex::default() }
    }

    /// The native platform first, then its lesser variants, then emulated ones.
    pub fn detect(&self) -> Vec<Platform> {
        let mut found = vec![self.host.clone()];
        if self.host.architecture == "amd64" {
            found.extend((2..=self.amd64_level).map(|level| Platform::new("linux", "amd64", &format!("v{level}"))));
            found.push(Platform::new("linux", "386", ""));
        }
        for platform in EMULATED {
            let platform: Platform = platform.parse().expect("the table holds platforms");
            if found.contains(&platform) || self.find(&platform.architecture).is_none() {
                continue;
            }
            let is_arm = platform.architecture == "arm";
            found.push(platform);
            if is_arm {
                found.push(Platform::new("linux", "arm", "v6"));
            }
        }
        found
    }

    /// Those of the platforms that are not the machine's own.
    pub fn emulated(&self, platforms: &[Platform]) -> Vec<Platform> {
        let is_emulated = |platform: &&Platform| self.runner(platform).is_ok_and(|runner| runner != Runner::Machine);
        platforms.iter().filter(is_emulated).cloned().collect()
    }

    /// What runs a platform's programs; the machine itself, if it can. A platform that nothing runs is refused, with what would help.
    pub fn runner(&self, wanted: &Platform) -> Result<Runner> {
        // Whoever names a system only means this machine.
        if wanted.architecture.is_empty() {
            return Ok(Runner::Machine);
        }
        let runner = if wanted.os == self.host.os { self.find(&wanted.architecture) } else { None };
        runner.ok_or_else(|| {
            let known = self.detect().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let help = help(&wanted.architecture);
            Fault::new(Kind::Precondition, format!("no support for running processes with {wanted} platform, supported: {known}; {help}"))
        })
    }

    /// [`Platforms::verify`], beside what else the daemon does.
    pub fn verify_in_background(self: &Arc<Self>, scratch: PathBuf) {
        let platforms = self.clone();
        task::spawn("verify emulators", async move {
            let verified = task::blocking(move || {
                platforms.verify(&scratch);
                Ok::<_, Fault>(())
            });
            if let Err(error) = verified.await {
                tracing::warn!(%error, "emulators could not be tried");
            }
        });
    }

    /// Has every emulator run a tiny program, put into `scratch`. One that fails is not used, and named in the log.
    pub fn verify(&self, scratch: &Path) {
        for platform in EMULATED {
            let platform: Platform = platform.parse().expect("the table holds platforms");
            let architecture = &platform.architecture;
            let (works, program) = match self.find(architecture) {
                Some(Runner::Registered(name)) => {
                    (emulation::kernel_runs(architecture, scratch), format!("the registered emulator {name}"))
                }
                Some(Runner::Own(emulator)) => (emulator.works(scratch), emulator.program.display().to_string()),
                Some(Runner::Machine) | None => continue,
            };
            if !works {
                tracing::warn!(%platform, "{program} does not run programs of that platform, and is not used");
                self.broken.lock().expect("no holder of this lock panics").insert(architecture.clone());
            }
        }
    }

    fn find(&self, architecture: &str) -> Option<Runner> {
        if architecture == self.host.architecture || (architecture == "386" && self.host.architecture == "amd64") {
            return Some(Runner::Machine);
        }
        if self.broken.lock().expect("no holder of this lock panics").contains(architecture) {
            return None;
        }
        if let Some(name) = self.registered(architecture) {
            return Some(Runner::Registered(name));
        }
        Emulator::find(architecture, &self.dirs).map(Runner::Own)
    }

    /// Only with flag F has the kernel the emulator open; without, it would look for it in the container.
    fn registered(&self, architecture: &str) -> Option<String> {
        let name = emulation::registered_name(architecture)?;
        let text = fs::read_to_string(self.binfmt.join(&name)).ok()?;
        let open = text.lines().filter_map(|line| line.strip_prefix("flags:")).any(|flags| flags.contains('F'));
        (text.starts_with("enabled") && open).then_some(name)
    }
}

/// What makes steps of an architecture run that do not.
fn help(architecture: &str) -> String {
    let Some(name) = emulation::registered_name(architecture) else {
        return "no emulator of it is known, so it takes a daemon on such a machine".to_owned();
    };
    let package = if emulation::supported() { "qemu-user-static" } else { "qemu-user-static binfmt-support" };
    format!(
        "install an emulator beside the daemon with: apt-get install {package} (it is found in the daemon's PATH as {name}-static), \
         or register one with the machine: docker run --privileged --rm tonistiigi/binfmt --install {architecture}"
    )
}

/// Microarchitecture levels of x86-64 as the psABI defines them, by the kernel's feature names.
fn amd64_level() -> u8 {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags: Vec<&str> = text.lines().find(|line| line.starts_with("flags")).map(|l| l.split_whitespace().collect()).unwrap_or_default();
    let all = |names: &[&str]| names.iter().all(|name| flags.contains(name));
    if !all(&["cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"]) {
        1
    } else if !all(&["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"]) {
        2
    } else if !all(&["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"]) {
        3
    } else {
        4
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn platforms(binfmt: &Path, dirs: Vec<PathBuf>) -> Platforms {
        let host = Platform::new("linux", "amd64", "");
        Platforms { host, amd64_level: 2, binfmt: binfmt.to_owned(), dirs, broken: Mutex::default() }
    }

    #[test]
    fn registered_interpreters_add_platforms() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("qemu-aarch64"), "enabled\ninterpreter /usr/bin/qemu\nflags: OCF\n").unwrap();
        fs::write(dir.path().join("qemu-riscv64"), "enabled\ninterpreter /usr/bin/qemu\nflags: \n").unwrap();
        fs::write(dir.path().join("qemu-s390x"), "disabled\nflags: F\n").unwrap();
        let platforms = platforms(dir.path(), Vec::new());
        let found: Vec<String> = platforms.detect().iter().map(ToString::to_string).collect();
        assert_eq!(found, ["linux/amd64", "linux/amd64/v2", "linux/386", "linux/arm64"]);
        let runner = |architecture| platforms.runner(&Platform::new("linux", architecture, ""));
        assert_eq!(runner("arm64").unwrap(), Runner::Registered("qemu-aarch64".into()));
        assert_eq!(runner("").unwrap(), Runner::Machine);
        assert_eq!(runner("386").unwrap(), Runner::Machine);
        let refused = runner("s390x").unwrap_err().to_string();
        assert!(refused.contains("linux/s390x platform") && refused.contains("qemu-user-static"), "{refused}");
        let refused = runner("pdp11").unwrap_err().to_string();
        assert!(refused.contains("no emulator of it is known"), "{refused}");
    }

    #[test]
    fn an_emulator_that_does_not_work_is_not_used() {
        let (binfmt, dir, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let program = dir.path().join("qemu-aarch64-static");
        // Static, but it knows nothing of emulation.
        fs::copy("/bin/busybox", &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let platforms = platforms(binfmt.path(), vec![dir.path().to_owned()]);
        let arm64 = Platform::new("linux", "arm64", "");
        assert_eq!(platforms.runner(&arm64).unwrap().emulator().map(|e| e.program), Some(program.canonicalize().unwrap()));
        assert_eq!(platforms.runner(&arm64).unwrap().emulated_by().as_deref(), Some("qemu-aarch64-static"));
        platforms.verify(scratch.path());
        assert!(platforms.runner(&arm64).is_err());
        assert!(!platforms.detect().contains(&arm64));
    }
}
