//! What must not break it: kill -9, bad input, clients that go away.
#![allow(clippy::unwrap_used)]
use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use testkit::{Daemon, Registry, busybox_image, wait_until};

fn dockerfile(text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("Dockerfile"), text).unwrap();
    dir
}

/// The bar: twenty kills at moments spread over a build; each next start is immediate, `du` works, the same build succeeds and what was
/// acknowledged before is still cached.
#[test]
fn kill_nine_in_the_middle_of_builds_loses_nothing_acknowledged() {
    let registry = Registry::start();
    registry.push("base", "latest", &busybox_image());
    let mut daemon = Daemon::start(&[]);
    let base = format!("FROM {}/base:latest\nRUN cat /proc/sys/kernel/random/uuid > /stamp\n", registry.host());
    let kept = dockerfile(&base);
    let out = tempfile::tempdir().unwrap();
    let stamp = |daemon: &Daemon, to: &str| {
        let dest = out.path().join(to);
        daemon.ok(&["build", "-o", &format!("type=local,dest={}", dest.display()), kept.path().to_str().unwrap()]);
        fs::read(dest.join("stamp")).unwrap()
    };
    let acknowledged = stamp(&daemon, "first");
    for round in 0..20u64 {
        let mut text = base.clone();
        for step in 0..8 {
            text.push_str(&format!("RUN dd if=/dev/urandom of=/f{step} bs=64k count=8 2>/dev/null && echo {round}\n"));
        }
        let dir = dockerfile(&text);
        let mut client = daemon.kiln(&["build", dir.path().to_str().unwrap()]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let until = Instant::now() + Duration::from_millis(15 + round * 37 % 400);
        wait_until("the moment of the kill", Duration::from_secs(5), || (Instant::now() >= until).then_some(()));
        daemon.kill();
        let _ = client.wait();
        let begun = Instant::now();
        daemon.restart();
        assert!(begun.elapsed() < Duration::from_secs(1), "round {round}: the next start took {:?}", begun.elapsed());
        daemon.ok(&["du"]);
        assert_eq!(stamp(&daemon, &format!("r{round}")), acknowledged, "round {round}: an acknowledged step ran again");
        if round % 5 == 0 {
            daemon.ok(&["build", dir.path().to_str().unwrap()]);
        }
    }
}

#[test]
fn a_client_that_goes_away_takes_its_step_with_it() {
    let registry = Registry::start();
    registry.push("base", "latest", &busybox_image());
    let daemon = Daemon::start(&[]);
    let mark = format!("31{}", std::process::id());
    let dir = dockerfile(&format!("FROM {}/base:latest\nRUN sleep {mark} & sleep {mark}\n", registry.host()));
    let mut client = daemon.kiln(&["build", dir.path().to_str().unwrap()]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let sleepers = || {
        fs::read_dir("/proc")
            .unwrap()
            .filter_map(|e| fs::read(e.ok()?.path().join("cmdline")).ok())
            .filter(|line| line.starts_with(b"sleep\0") && line[6..].starts_with(mark.as_bytes()))
            .count()
    };
    wait_until("the step to run", Duration::from_secs(30), || (sleepers() == 2).then_some(()));
    client.kill().unwrap();
    client.wait().unwrap();
    wait_until("the step's processes to end", Duration::from_secs(10), || (sleepers() == 0).then_some(()));
    daemon.ok(&["debug", "workers"]);
}

#[test]
fn bad_input_is_refused_by_name_and_the_daemon_lives_on() {
    let daemon = Daemon::start(&[]);
    for (text, want) in [
        ("FROM scratch\nCOYP a b\n", "unknown instruction: COYP"),
        ("FROM scratch\nCOPY missing /\n", "\"/missing\": not found"),
        ("RUN true\n", "no build stage in current context"),
        ("FROM localhost:1/nothing:here\n", "localhost:1/nothing:here"),
        ("", "the Dockerfile cannot be empty"),
    ] {
        let dir = dockerfile(text);
        let output = daemon.kiln(&["build", "--progress", "plain", dir.path().to_str().unwrap()]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(want), "{text:?} said\n{said}");
    }
    daemon.ok(&["debug", "info"]);
}

#[test]
fn no_mount_process_or_cgroup_is_left_after_builds_and_a_stop() {
    let registry = Registry::start();
    registry.push("base", "latest", &busybox_image());
    let mut daemon = Daemon::start(&[]);
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap().lines().filter(|l| l.contains("kiln-test-")).count();
    let before = mounts();
    for step in 0..5 {
        let dir = dockerfile(&format!("FROM {}/base:latest\nRUN (sleep 1000 &) ; echo {step}\n", registry.host()));
        daemon.ok(&["build", dir.path().to_str().unwrap()]);
    }
    assert_eq!(mounts(), before);
    assert!(daemon.stop().success());
    assert_eq!(mounts(), before);
}
