//! Test tools from Debian: ordinary packages are installed; what this release lacks is taken from a newer suite and only unpacked.
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::{Outcome, run};

/// A mirror that fails, or is in the middle of an update of its own, mostly works again a little later; so does another apt that has the lock.
const PAUSES: [u64; 4] = [5, 20, 60, 120];
/// One file is tried again right away, and who else installs something is waited for.
const PATIENT: [&str; 4] = ["-o", "Acquire::Retries=5", "-o", "DPkg::Lock::Timeout=300"];

/// Installs packages with apt; needs root.
pub fn install(packages: &[&str]) -> Outcome {
    again_and_again(|| {
        // Some of the machine's other sources may be out of reach, which is only a warning.
        run(Command::new("apt-get").args(["update", "-qq"]))?;
        let mut command = Command::new("apt-get");
        command.args(PATIENT).args(["install", "-y", "-qq", "--no-install-recommends"]).args(packages);
        run(command.env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null()))
    })
}

/// What depends on the network, with longer and longer pauses between the tries. The last failure counts.
fn again_and_again(attempt: impl Fn() -> Outcome) -> Outcome {
    for pause in PAUSES {
        let Err(error) = attempt() else { return Ok(()) };
        eprintln!("xtask: {error}; trying again in {pause} seconds");
        std::thread::sleep(Duration::from_secs(pause));
    }
    attempt()
}

/// Unpacks one package of a suite, for any architecture, below `into`, with lists and cache of its own: the system's stay as they are. Of a
/// package that only names another, as that of the current kernel does, it is the other.
pub fn unpack_from(suite: &str, package: &str, architecture: &str, into: &Path) -> Outcome {
    let mirror = mirror()?;
    again_and_again(|| try_to_unpack_from(&mirror, suite, package, architecture, into))
}

fn try_to_unpack_from(mirror: &str, suite: &str, package: &str, architecture: &str, into: &Path) -> Outcome {
    let apt = into.join("apt");
    // An earlier try may have left half a list, or half a package.
    if apt.exists() {
        fs::remove_dir_all(&apt)?;
    }
    for dir in ["lists/partial", "cache/archives/partial", "debs"] {
        fs::create_dir_all(apt.join(dir))?;
    }
    fs::write(apt.join("status"), "")?;
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    fs::write(apt.join("sources.list"), format!("deb [signed-by={keyring}] {mirror} {suite} main\n"))?;
    let option = |key: &str, value: String| ["-o".to_owned(), format!("{key}={value}")];
    let path = |name: &str| apt.join(name).display().to_string();
    let options: Vec<String> = [
        option("Dir::Etc::SourceList", path("sources.list")),
        option("Dir::Etc::SourceParts", "-".into()),
        option("Dir::State::Lists", path("lists")),
        option("Dir::State::status", path("status")),
        option("Dir::Cache", path("cache")),
        option("APT::Sandbox::User", "root".into()),
        option("APT::Architectures", architecture.into()),
        option("Acquire::Languages", "none".into()),
    ]
    .concat();
    // Unless told that this is a failure, apt goes on without lists that it could not get.
    run(Command::new("apt-get").args(PATIENT).args(&options).args(["update", "-qq", "--error-on=any"]))?;
    let package = real_package(package, &options)?;
    run(Command::new("apt-get")
        .args(PATIENT)
        .args(&options)
        .args(["download", "-qq", &format!("{package}:{architecture}")])
        .current_dir(apt.join("debs")))?;
    for deb in fs::read_dir(apt.join("debs"))? {
        run(Command::new("dpkg").arg("-x").arg(deb?.path()).arg(into))?;
    }
    fs::remove_dir_all(apt)?;
    Ok(())
}

/// `linux-image-cloud-amd64` depends on the image of one version, and has no files.
fn real_package(package: &str, options: &[String]) -> Result<String, Box<dyn std::error::Error>> {
    if !package.starts_with("linux-image-") {
        return Ok(package.to_owned());
    }
    let output = Command::new("apt-cache").args(options).args(["depends", package]).output()?;
    let text = String::from_utf8(output.stdout)?;
    let image = text.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    Ok(format!("linux-image-{}", image.ok_or("the kernel's package names no image")?))
}

/// This machine's architecture, as Debian names it.
pub fn own_architecture() -> Result<String, Box<dyn std::error::Error>> {
    let output = Command::new("dpkg").arg("--print-architecture").output()?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// The mirror that this machine's apt takes Debian's main archive from.
fn mirror() -> Result<String, Box<dyn std::error::Error>> {
    // Also where its lists are not there, as in images that were made small.
    let arguments = ["indextargets", "--no-release-info", "--format", "$(REPO_URI) $(COMPONENT) $(CREATED_BY)"];
    let output = Command::new("apt-get").args(arguments).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let uri = text
        .lines()
        .filter_map(|line| line.strip_suffix(" main Packages"))
        .find(|uri| uri.trim_end_matches('/').ends_with("/debian"))
        .ok_or("apt knows no Debian archive: is this Debian?")?;
    Ok(uri.to_owned())
}
