//! Steps of another architecture on this machine: with an emulator that only lies there, with one that is registered with the kernel, and
//! with none.
//!
//! Needs root, Debian's qemu-user-static, Debian's busybox for arm64 (below `KILN_TEST_BUSYBOXES`, which `cargo xtask test` sets), Debian's
//! docker-registry, and a kernel from 6.7 on.
#![allow(clippy::unwrap_used)]
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::json;
use testkit::{BaseImage, Daemon, Registry, Tar, busybox_image};

/// Where no emulator is.
const NOWHERE: &str = "/nonexistent";
const DEBIAN: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Each way of running a program adds a line to `/machine`.
const PROGRAMS: &str = r#"FROM scratch AS base
ARG TARGETARCH
COPY --from=tools busybox-$TARGETARCH /bin/busybox
SHELL ["/bin/busybox", "sh", "-c"]
RUN /bin/busybox --install -s /bin
# A child, a script with an interpreter, a program that is gone while it runs, a root within the root, one in a mount, many at once.
RUN uname -m > /machine; sh -c 'uname -m' >> /machine; printf '#!/bin/sh\nuname -m\n' > /script; chmod 755 /script; /script >> /machine
RUN mkdir /gone; cp /bin/busybox /gone; /gone/busybox sh -c 'rm /gone/busybox; /bin/uname -m >> /machine'
RUN mkdir -p /r/bin; cp /bin/busybox /r/bin; chroot /r /bin/busybox uname -m >> /machine
RUN --mount=type=bind,target=/ctx --mount=type=tmpfs,target=/t cp /bin/busybox /t; test -e /ctx/Dockerfile; /t/busybox uname -m >> /machine
RUN for i in 1 2 3 4 5 6 7 8; do (/bin/uname -m > /m$i) & done; wait; cat /m? | sort -u >> /machine
# The name by which it is called, and what it says it is.
RUN test "$(readlink /proc/self/exe)" = /bin/busybox; /bin/cat /proc/self/cmdline | grep -q ^/bin/cat
"#;
const PROGRAM_LINES: usize = 7;

/// What follows on that, with other users; one more line.
const USERS: &str = r#"
RUN --mount=type=cache,target=/c mkdir /home; echo x > /c/x; chown 101:102 /home; chmod 4755 /script
RUN mkdir /etc; echo root::0:0::/:/bin/sh > /etc/passwd; rm /bin/su; cp /bin/busybox /bin/su; chmod 4755 /bin/su
USER 101:102
RUN /bin/su -c 'test $(id -u) = 0; uname -m >> /machine'
RUN touch /home/file; echo "$(id -u):$(id -g)" > /home/id; cat /machine
FROM scratch
COPY --from=base /machine /home/id /
"#;

fn arm64_busybox() -> PathBuf {
    kiln_tests::foreign_busybox("arm64")
}

/// An image of that architecture that holds nothing but busybox.
fn foreign_image() -> BaseImage {
    let tar = Tar::new().dir("bin/", 0o755).file("bin/busybox", 0o755, fs::read(arm64_busybox()).unwrap()).symlink("bin/sh", "busybox");
    BaseImage::of_platform("arm64", vec![tar.finish()], json!({"Env": ["PATH=/bin"]}))
}

fn context(dockerfile: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("tools")).unwrap();
    fs::copy("/bin/busybox", dir.path().join("tools/busybox-amd64")).unwrap();
    fs::copy(arm64_busybox(), dir.path().join("tools/busybox-arm64")).unwrap();
    fs::create_dir(dir.path().join("context")).unwrap();
    fs::write(dir.path().join("context/Dockerfile"), dockerfile).unwrap();
    dir
}

/// What a build for both platforms leaves is what each machine says.
fn builds_for_both(daemon: &Daemon) {
    let dir = context(&(PROGRAMS.to_owned() + USERS));
    let (tools, out) = (format!("tools={}", dir.path().join("tools").display()), dir.path().join("out"));
    let (output, context) = (format!("type=local,dest={}", out.display()), dir.path().join("context"));
    let platforms = "linux/amd64,linux/arm64";
    let options = ["build", "--progress", "plain", "--platform", platforms, "--build-context", &tools, "-o", &output];
    let said = daemon.ok(&[&options[..], &[context.to_str().unwrap()]].concat());
    for (platform, machine) in [("linux_amd64", "x86_64"), ("linux_arm64", "aarch64")] {
        assert_eq!(fs::read_to_string(out.join(platform).join("machine")).unwrap(), format!("{machine}\n").repeat(PROGRAM_LINES + 1));
        assert_eq!(fs::read_to_string(out.join(platform).join("id")).unwrap(), "101:102\n");
    }
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("emulated by qemu-aarch64"), "{said}");
    let workers = String::from_utf8(daemon.ok(&["debug", "workers", "-v"]).stdout).unwrap();
    let emulated = workers.lines().find(|line| line.starts_with("kiln.platforms.emulated:"));
    assert!(emulated.is_some_and(|line| line.contains("linux/arm64") && !line.contains("linux/amd64")), "{workers}");
}

#[test]
fn steps_of_another_machine_run_though_nothing_is_registered() {
    let registered = || -> BTreeSet<_> {
        let names = fs::read_dir("/proc/sys/fs/binfmt_misc").into_iter().flatten().map(|entry| entry.unwrap().file_name());
        // These two are there whenever it is mounted.
        names.filter(|name| name != "register" && name != "status").collect()
    };
    let before = registered();
    builds_for_both(&Daemon::start(&[]));
    assert_eq!(registered(), before);
}

#[test]
fn an_ordinary_users_steps_of_another_machine_run_too() {
    builds_for_both(&Daemon::start_rootless(&[]));
}

/// The daemon runs where nothing but the registration leads to an emulator. It is one of a user namespace, so that the machine's stays as it is.
#[test]
fn a_registered_emulator_is_used() {
    let dir = context(&format!("{PROGRAMS}FROM scratch\nCOPY --from=base /machine /\n"));
    let script = r#"
        mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
        magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
        mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
        echo ":qemu-aarch64:M::$magic:$mask:/usr/bin/qemu-aarch64-static:POCF" > /proc/sys/fs/binfmt_misc/register
        PATH=/nonexistent exec ./kiln --root ./root build --progress plain --platform linux/arm64 --build-context tools=tools -o type=local,dest=out context
    "#;
    testkit::copy_program(&testkit::kiln_binary(), &dir.path().join("kiln"));
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "--propagation", "slave", "sh", "-ec", script]);
    let output = command.current_dir(dir.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{}", fs::read_to_string(dir.path().join("root/daemon.log")).unwrap_or_default());
    assert!(said.contains("emulated by qemu-aarch64 "), "{said}");
    assert_eq!(fs::read_to_string(dir.path().join("out/machine")).unwrap(), "aarch64\n".repeat(PROGRAM_LINES));
}

/// Two images: one of this machine's architecture, one of another's.
fn registry() -> Registry {
    let registry = Registry::start();
    registry.push("native", "latest", &busybox_image());
    registry.push("foreign", "latest", &foreign_image());
    registry
}

fn build(daemon: &Daemon, platforms: &str, dockerfile: &str) -> (Output, String) {
    build_with(daemon, platforms, dockerfile, &[])
}

fn build_with(daemon: &Daemon, platforms: &str, dockerfile: &str, flags: &[&str]) -> (Output, String) {
    let dir = context(dockerfile);
    let context = dir.path().join("context");
    let args = [&["build", "--progress", "plain", "--platform", platforms][..], flags, &[context.to_str().unwrap()]].concat();
    let output = daemon.kiln(&args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, said)
}

#[test]
fn without_an_emulator_a_build_is_refused_before_any_step_has_run() {
    let (registry, daemon) = (registry(), Daemon::start_with_path(NOWHERE, &[]));
    let dockerfile = format!(
        "FROM --platform=$BUILDPLATFORM {host}/native AS native\nRUN echo $((40 + 2)) have run\n\
         FROM {host}/foreign\nCOPY Dockerfile /\nCOPY --from=native /etc/passwd /\nRUN echo $((70 + 7)) have run\n",
        host = registry.host()
    );
    for platforms in ["linux/arm64", "linux/amd64,linux/arm64"] {
        let (output, said) = build(&daemon, platforms, &dockerfile);
        assert!(!output.status.success());
        for part in ["linux/arm64", "RUN echo $((70 + 7))", "apt-get install qemu-user-static", "Dockerfile:6"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(!said.contains("42 have run") && !said.contains("77 have run"), "{said}");
    }
    // Nothing of it needs to run.
    let copies = dockerfile.lines().filter(|line| !line.starts_with("RUN")).collect::<Vec<_>>().join("\n");
    let (output, said) = build(&daemon, "linux/arm64", &copies);
    assert!(output.status.success(), "{said}");
}

/// What an image says of itself counts, not under which platform it is used.
#[test]
fn a_native_image_may_go_by_another_platforms_name() {
    let (registry, daemon) = (registry(), Daemon::start_with_path(NOWHERE, &[]));
    let dockerfile = format!("FROM {}/native\nRUN echo $((40 + 2)) have run\n", registry.host());
    let (output, said) = build(&daemon, "linux/arm64", &dockerfile);
    assert!(output.status.success() && said.contains("42 have run"), "{said}");
}

#[test]
fn what_the_cache_holds_needs_no_emulator() {
    let (registry, mut daemon) = (registry(), Daemon::start_with_path(DEBIAN, &[]));
    let dockerfile = format!("FROM {}/foreign\nRUN busybox uname -m\n", registry.host());
    let (output, said) = build(&daemon, "linux/arm64", &dockerfile);
    assert!(output.status.success() && said.contains("aarch64"), "{said}");
    daemon.stop();
    daemon.set_path(NOWHERE);
    daemon.restart();
    let (output, said) = build(&daemon, "linux/arm64", &dockerfile);
    assert!(output.status.success() && said.contains("CACHED"), "{said}");
}

#[test]
fn a_step_that_is_in_the_cache_with_other_inputs_is_refused_before_any_other_has_run() {
    let (registry, mut daemon) = (registry(), Daemon::start_with_path(DEBIAN, &[]));
    let dockerfile = |note: &str| {
        format!(
            "FROM --platform=$BUILDPLATFORM {host}/native AS native\nRUN echo $((40 + 2)) have run {note}\n\
             FROM {host}/foreign\nCOPY Dockerfile /\nRUN busybox uname -m\nCOPY --from=native /etc/passwd /\n",
            host = registry.host()
        )
    };
    let (output, said) = build(&daemon, "linux/arm64", &dockerfile("first"));
    assert!(output.status.success() && said.contains("aarch64") && said.contains("42 have run"), "{said}");
    daemon.stop();
    daemon.set_path(NOWHERE);
    daemon.restart();
    let (output, said) = build(&daemon, "linux/arm64", &dockerfile("first"));
    assert!(output.status.success(), "{said}");
    let (output, said) = build(&daemon, "linux/arm64", &dockerfile("second"));
    assert!(!output.status.success() && said.contains("apt-get install qemu-user-static") && said.contains("Dockerfile:5"), "{said}");
    assert!(!said.contains("42 have run"), "{said}");
}

#[test]
fn what_an_imported_cache_holds_needs_no_emulator_and_the_rest_is_refused_before_any_step_has_run() {
    let (registry, maker) = (registry(), Daemon::start_with_path(DEBIAN, &[]));
    let dir = tempfile::tempdir().unwrap();
    let dockerfile = |says: &str| {
        format!(
            "FROM --platform=$BUILDPLATFORM {host}/native AS native\nRUN echo $((40 + 2)) have run {says}\n\
             FROM {host}/foreign\nCOPY --from=native /etc/passwd /\nRUN busybox echo {says}\n",
            host = registry.host()
        )
    };
    let cache = dir.path().join("cache").display().to_string();
    let (output, said) =
        build_with(&maker, "linux/arm64", &dockerfile("this"), &["--cache-to", &format!("type=local,mode=max,dest={cache}")]);
    assert!(output.status.success(), "{said}");
    let daemon = Daemon::start_with_path(NOWHERE, &[]);
    let from = ["--cache-from", &format!("type=local,src={cache}")];
    let (output, said) = build_with(&daemon, "linux/arm64", &dockerfile("that"), &from);
    assert!(!output.status.success() && said.contains("apt-get install qemu-user-static") && said.contains("Dockerfile:5"), "{said}");
    assert!(said.contains("importing cache") && !said.contains("42 have run"), "{said}");
    let (output, said) = build_with(&daemon, "linux/arm64", &dockerfile("this"), &from);
    assert!(output.status.success() && said.contains("CACHED"), "{said}");
}
