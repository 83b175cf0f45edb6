//! Which platforms a worker runs: the machine's own, and those that the kernel has an interpreter for.
use std::fs;
use std::path::Path;

use oci::Platform;

/// binfmt_misc entries by the name that qemu's packages register, and the platforms they stand for.
const EMULATED: [(&str, &str); 10] = [
    ("qemu-x86_64", "linux/amd64"),
    ("qemu-aarch64", "linux/arm64"),
    ("qemu-riscv64", "linux/riscv64"),
    ("qemu-ppc64le", "linux/ppc64le"),
    ("qemu-s390x", "linux/s390x"),
    ("qemu-i386", "linux/386"),
    ("qemu-mips64el", "linux/mips64le"),
    ("qemu-mips64", "linux/mips64"),
    ("qemu-loongarch64", "linux/loong64"),
    ("qemu-arm", "linux/arm/v7"),
];

/// The native platform first, then its lesser variants, then emulated ones.
pub fn detect() -> Vec<Platform> {
    detect_in(Path::new("/proc/sys/fs/binfmt_misc"), Platform::host(), amd64_level())
}

fn detect_in(binfmt: &Path, host: Platform, amd64_level: u8) -> Vec<Platform> {
    let mut found = vec![host.clone()];
    if host.architecture == "amd64" {
        found.extend((2..=amd64_level).map(|level| Platform::new("linux", "amd64", &format!("v{level}"))));
        found.push(Platform::new("linux", "386", ""));
    }
    for (entry, platform) in EMULATED {
        let enabled = fs::read_to_string(binfmt.join(entry)).is_ok_and(|text| text.starts_with("enabled"));
        let platform: Platform = platform.parse().expect("the table holds platforms");
        if enabled && !found.contains(&platform) {
            found.push(platform.clone());
            if platform.architecture == "arm" {
                found.push(Platform::new("linux", "arm", "v6"));
            }
        }
    }
    found
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
    use super::*;

    #[test]
    fn registered_interpreters_add_platforms() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("qemu-aarch64"), "enabled\ninterpreter /usr/bin/qemu\n").unwrap();
        fs::write(dir.path().join("qemu-s390x"), "disabled\n").unwrap();
        let found: Vec<String> = detect_in(dir.path(), Platform::new("linux", "amd64", ""), 2).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["linux/amd64", "linux/amd64/v2", "linux/386", "linux/arm64"]);
    }
}
