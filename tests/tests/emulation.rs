//! Steps of another architecture on this machine, with no emulator registered with the kernel.
//!
//! Needs root, Debian's qemu-user-static, Debian's busybox for arm64 (`KILN_TEST_ARM64_BUSYBOX`, which `cargo xtask test` sets), and a kernel
//! from 6.7 on.
#![allow(clippy::unwrap_used)]
use std::fs;
use std::path::{Path, PathBuf};

use testkit::Daemon;

const DOCKERFILE: &str = "FROM scratch AS base
ARG TARGETARCH
COPY --from=tools busybox-$TARGETARCH /bin/busybox
SHELL [\"/bin/busybox\", \"sh\", \"-c\"]
RUN /bin/busybox --install -s /bin
# A child, a script with an interpreter, another user.
RUN uname -m > /machine; sh -c 'uname -m' >> /machine; printf '#!/bin/sh\\nuname -m\\n' > /script; chmod 755 /script; /script >> /machine
RUN --mount=type=cache,target=/c mkdir /home; echo x > /c/x; chown 101:102 /home; chmod 4755 /script
USER 101:102
RUN touch /home/file; echo \"$(id -u):$(id -g)\" > /home/id; cat /machine
FROM scratch
COPY --from=base /machine /home/id /
";

fn context() -> (tempfile::TempDir, PathBuf) {
    let busybox = std::env::var_os("KILN_TEST_ARM64_BUSYBOX").expect("set KILN_TEST_ARM64_BUSYBOX, as cargo xtask test does");
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("tools")).unwrap();
    fs::copy("/bin/busybox", dir.path().join("tools/busybox-amd64")).unwrap();
    fs::copy(busybox, dir.path().join("tools/busybox-arm64")).unwrap();
    fs::create_dir(dir.path().join("context")).unwrap();
    fs::write(dir.path().join("context/Dockerfile"), DOCKERFILE).unwrap();
    let out = dir.path().join("out");
    (dir, out)
}

fn arguments(dir: &Path, out: &Path) -> Vec<String> {
    let tools = format!("tools={}", dir.join("tools").display());
    let output = format!("type=local,dest={}", out.display());
    let context = dir.join("context").display().to_string();
    ["build", "--platform", "linux/amd64,linux/arm64", "--build-context", &tools, "-o", &output, &context].map(str::to_owned).to_vec()
}

#[test]
fn steps_of_another_machine_run_though_nothing_is_registered() {
    let registered = || fs::read_dir("/proc/sys/fs/binfmt_misc").map_or(0, Iterator::count);
    let before = registered();
    let daemon = Daemon::start(&[]);
    let (dir, out) = context();
    let arguments = arguments(dir.path(), &out);
    daemon.ok(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    for (platform, machine) in [("linux_amd64", "x86_64"), ("linux_arm64", "aarch64")] {
        assert_eq!(fs::read_to_string(out.join(platform).join("machine")).unwrap(), format!("{machine}\n").repeat(3));
        assert_eq!(fs::read_to_string(out.join(platform).join("id")).unwrap(), "101:102\n");
    }
    assert_eq!(registered(), before);
    let workers = String::from_utf8(daemon.ok(&["debug", "workers", "-v"]).stdout).unwrap();
    assert!(workers.contains("linux/arm64"), "{workers}");
}
