//! Runs all four rings of tests. A missing component is installed when that is possible and is a failure otherwise.
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Outcome, debian, run};

/// (program, by name or path; Debian package)
const COMPONENTS: [(&str, &str); 23] = [
    ("busybox", "busybox-static"),
    ("runc", "runc"),
    ("crun", "crun"),
    ("newuidmap", "uidmap"),
    ("qemu-aarch64-static", "qemu-user-static"),
    ("docker-registry", "docker-registry"),
    ("ssh-agent", "openssh-client"),
    ("git", "git"),
    ("ip", "iproute2"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("pasta", "passt"),
    ("slirp4netns", "slirp4netns"),
    ("openssl", "openssl"),
    ("skopeo", "skopeo"),
    ("umoci", "umoci"),
    ("containerd", "containerd"),
    ("dockerd", "docker.io"),
    ("rpmbuild", "rpm"),
    ("db5.3_load", "db5.3-util"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("mke2fs", "e2fsprogs"),
    ("apparmor_parser", "apparmor"),
    ("secilc", "secilc"),
];

/// Architectures, as Debian names them, whose steps are tried here. Only its suite sid has riscv64, and still i386.
const FOREIGN: [&str; 6] = ["arm64", "armhf", "i386", "ppc64el", "riscv64", "s390x"];

/// Where plugins of Docker's client lie in Debian's packages, which are named like them.
const PLUGINS: &str = "usr/libexec/docker/cli-plugins";

pub fn all_rings(root: &Path, filter: &[String]) -> Outcome {
    install()?;
    let (buildx, compose, foreign) = (plugin(root, "docker-buildx")?, plugin(root, "docker-compose")?, foreign_busyboxes(root)?);
    run(Command::new("cargo").args(["build", "--locked", "-p", "kiln"]).current_dir(root))?;
    let runner: &[&str] = if found("cargo-nextest") { &["nextest", "run"] } else { &["test"] };
    let mut command = Command::new("cargo");
    command.current_dir(root).args(runner).args(["--workspace", "--locked", "--no-fail-fast"]).args(filter);
    command.env("KILN_TEST_BUILDX", buildx).env("KILN_TEST_COMPOSE", compose).env("KILN_TEST_BUSYBOXES", foreign);
    run(command.env("KILN_TEST_KERNEL", kernel(root)?))
}

fn install() -> Outcome {
    let missing: Vec<&str> = COMPONENTS.iter().filter(|(program, _)| !found(program)).map(|&(_, package)| package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if std::fs::metadata("/proc/self")?.uid() != 0 {
        return Err(format!("these Debian packages are missing and only root can install them: {}", missing.join(" ")).into());
    }
    debian::install(&missing)?;
    // Part of docker.io itself before Debian 13.
    if found("docker") { Ok(()) } else { debian::install(&["docker-cli"]) }
}

/// A plugin of Docker's client as Debian packages it: the installed one, or else one unpacked below the target directory.
fn plugin(root: &Path, name: &str) -> Result<PathBuf, Box<dyn std::error::Error>> {
    let place = Path::new(PLUGINS).join(name);
    let installed = Path::new("/").join(&place);
    if installed.is_file() {
        return Ok(installed);
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let tools = target.join("test-tools");
    let unpacked = tools.join(&place);
    if !unpacked.is_file() {
        std::fs::create_dir_all(&tools)?;
        debian::unpack_from("sid", name, &debian::own_architecture()?, &tools.canonicalize()?)?;
    }
    Ok(unpacked.canonicalize()?)
}

/// The directory with Debian's static busybox for each of [`FOREIGN`], unpacked below the target directory: what emulators are tried with.
fn foreign_busyboxes(root: &Path) -> Result<PathBuf, Box<dyn std::error::Error>> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let tools = target.join("test-tools");
    for architecture in FOREIGN {
        let place = tools.join(architecture);
        if !place.join("usr/bin/busybox").is_file() {
            std::fs::create_dir_all(&place)?;
            debian::unpack_from("sid", "busybox-static", architecture, &place.canonicalize()?)?;
        }
    }
    Ok(tools.canonicalize()?)
}

/// The kernel of Debian 12, unpacked below the target directory: what the tests in a virtual machine boot.
fn kernel(root: &Path) -> Result<PathBuf, Box<dyn std::error::Error>> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let tools = target.join("test-tools/kernel");
    if !tools.join("boot").is_dir() {
        std::fs::create_dir_all(&tools)?;
        debian::unpack_from("bookworm", "linux-image-cloud-amd64", "amd64", &tools.canonicalize()?)?;
    }
    Ok(tools.canonicalize()?)
}

fn found(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}
