//! Runs all four rings of tests. A missing component is installed when that is possible and is a failure otherwise.
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::Outcome;

/// (program, Debian package)
const COMPONENTS: [(&str, &str); 6] = [
    ("busybox", "busybox-static"),
    ("runc", "runc"),
    ("crun", "crun"),
    ("docker-registry", "docker-registry"),
    ("ssh-agent", "openssh-client"),
    ("git", "git"),
];

fn rings(root: &Path, filter: &[String]) -> Outcome {
    let nextest = found("cargo-nextest");
    let mut command = Command::new("cargo");
    command.current_dir(root);
    if nextest {
        command.args(["nextest", "run", "--workspace", "--locked", "--no-fail-fast"]).args(filter);
    } else {
        command.args(["test", "--workspace", "--locked", "--no-fail-fast"]).args(filter);
    }
    crate::run(&mut command)
}

pub fn run(root: &Path, filter: &[String]) -> Outcome {
    install()?;
    rings(root, filter)
}

fn install() -> Outcome {
    let missing: Vec<&str> = COMPONENTS.iter().filter(|(program, _)| !found(program)).map(|&(_, package)| package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if std::fs::metadata("/proc/self")?.uid() != 0 {
        return Err(format!("these Debian packages are missing and only root can install them: {}", missing.join(" ")).into());
    }
    crate::run(Command::new("apt-get").arg("update").arg("-qq"))?;
    crate::run(
        Command::new("apt-get")
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(&missing)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdout(Stdio::null()),
    )
}

fn found(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}
