//! What those who run the daemon rely on: figures that are true, and a daemon that sleeps while nobody wants anything.
#![allow(clippy::unwrap_used)]
use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use testkit::{Daemon, PATIENCE, Registry, busybox_image, http, wait_until};

/// Where the daemon's debug endpoint listens.
fn debug_address(daemon: &Daemon) -> String {
    wait_until("the address of the debug endpoint", PATIENCE, || {
        let log = fs::read_to_string(daemon.log_path()).unwrap();
        let rest = log.split_once("debug and metrics endpoint on ")?.1;
        // Once the line goes on, what it says is whole.
        rest.split_once(char::is_whitespace).map(|(address, _)| address.to_owned())
    })
}

/// Sample to value.
fn scrape(address: &str) -> BTreeMap<String, f64> {
    let reply = http("GET", address, "/metrics", &[], b"").unwrap();
    assert_eq!((reply.status, reply.headers["content-type"].starts_with("text/plain; version=0.0.4")), (200, true));
    let text = String::from_utf8(reply.body).unwrap();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples.map(|line| line.rsplit_once(' ').unwrap()).map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
}

#[test]
fn figures_follow_what_the_daemon_does() {
    let registry = Registry::start();
    registry.push("base", "latest", &busybox_image());
    let daemon = Daemon::start(&["--debugaddr", "127.0.0.1:0"]);
    let address = debug_address(&daemon);
    let before = scrape(&address);
    assert_eq!(before["buildkit_builds_total{status=\"success\"}"], 0.0);
    assert_eq!(before["kiln_http_bytes_total{direction=\"received\"}"], 0.0);

    let context = tempfile::tempdir().unwrap();
    let write = |command: &str| {
        let text = format!("FROM {}/base:latest\nRUN {command}\n", registry.host());
        fs::write(context.path().join("Dockerfile"), text).unwrap();
    };
    write("dd if=/dev/urandom of=/f bs=64k count=16");
    let dir = context.path().to_str().unwrap();
    let output = format!("type=image,name={}/made:latest,push=true", registry.host());
    daemon.ok(&["build", "-o", &output, dir]);
    daemon.ok(&["build", dir]);
    write("exit 3");
    assert!(!daemon.kiln(&["build", dir]).output().unwrap().status.success());

    let after = wait_until("the new layers to be measured", PATIENCE, || {
        Some(scrape(&address)).filter(|after| after["kiln_store_bytes{of=\"trees\"}"] > f64::from(1 << 20))
    });
    assert_eq!(after["buildkit_builds_total{status=\"success\"}"], 2.0, "{after:?}");
    assert_eq!(after["buildkit_builds_total{status=\"failure\",error_code=\"Unknown\"}"], 1.0, "{after:?}");
    assert_eq!(after["buildkit_build_duration_seconds_count{status=\"success\"}"], 2.0);
    assert!(after["buildkit_builds_steps_total{kind=\"cached\"}"] >= 1.0, "{after:?}");
    assert!(after["buildkit_builds_steps_total{kind=\"total\"}"] > after["buildkit_builds_steps_total{kind=\"cached\"}"]);
    assert!(after["kiln_http_bytes_total{direction=\"received\"}"] > 100_000.0, "the base image: {after:?}");
    assert!(after["kiln_http_bytes_total{direction=\"sent\"}"] > f64::from(1 << 20), "the layer: {after:?}");
    assert!(after["kiln_store_bytes{of=\"blobs\"}"] > f64::from(1 << 20), "{after:?}");
    assert_eq!(after["kiln_builds_running"], 0.0);
    assert_eq!(after["kiln_pruned_records_total"], 0.0);
    assert!(after["process_resident_memory_bytes"] > f64::from(1 << 20));

    daemon.ok(&["prune", "--all"]);
    let pruned = scrape(&address);
    assert!(pruned["kiln_pruned_records_total"] >= 2.0, "{pruned:?}");
    assert!(pruned["kiln_pruned_bytes_total"] > f64::from(1 << 20), "{pruned:?}");
    assert!(pruned["kiln_store_bytes{of=\"trees\"}"] < after["kiln_store_bytes{of=\"trees\"}"], "{pruned:?}");
}

#[test]
fn the_debug_endpoint_says_what_there_is() {
    let daemon = Daemon::start(&["--debugaddr", "127.0.0.1:0"]);
    let address = debug_address(&daemon);
    let get = |method: &str, path: &str| {
        let reply = http(method, &address, path, &[], b"").unwrap();
        (reply.status, String::from_utf8(reply.body).unwrap())
    };
    assert_eq!(get("GET", "/debug/gc"), (200, "done\n".to_owned()));
    let (status, text) = get("GET", "/debug/pprof/heap");
    assert_eq!(status, 404);
    assert!(text.contains("/debug/pprof/heap") && text.contains("/metrics"), "{text}");
    assert_eq!(get("POST", "/debug/gc").0, 405);
    assert_eq!(get("GET", "/debug/requests"), (200, "no build runs\n".to_owned()));

    let context = tempfile::tempdir().unwrap();
    let registry = Registry::start();
    registry.push("base", "latest", &busybox_image());
    fs::write(context.path().join("Dockerfile"), format!("FROM {}/base:latest\nRUN sleep 600\n", registry.host())).unwrap();
    let mut build = daemon.kiln(&["build", "--build-arg", "TOKEN=hidden", context.path().to_str().unwrap()]).spawn().unwrap();
    let shown = wait_until("the build in the list", PATIENCE, || {
        let (_, text) = get("GET", "/debug/requests");
        text.contains("running for").then_some(text)
    });
    assert!(!shown.contains("hidden"), "{shown}");
    assert_eq!(scrape(&address)["kiln_builds_running"], 1.0);
    build.kill().unwrap();
    build.wait().unwrap();
    wait_until("the end of the build", PATIENCE, || (scrape(&address)["kiln_builds_running"] == 0.0).then_some(()));
}

/// systemd and shells give processes few files for the sake of programs that `select()`. The daemon takes what the hard limit allows; steps
/// get what it was given.
#[test]
fn the_daemon_may_open_more_files_than_its_steps() {
    // Enough for other tests that share this process.
    let given = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(200), ..given }).unwrap();
    let registry = Registry::start();
    registry.push("base", "latest", &busybox_image());
    let context = tempfile::tempdir().unwrap();
    let mut text = format!("FROM {}/base:latest AS last\nRUN echo files $(ulimit -Sn) $(ulimit -Hn)\n", registry.host());
    for number in 0..24 {
        text += &format!("FROM {}/base:latest AS s{number}\nRUN echo {number} > /{number}\n", registry.host());
    }
    text += "FROM last\n";
    for number in 0..24 {
        text += &format!("COPY --from=s{number} /{number} /\n");
    }
    fs::write(context.path().join("Dockerfile"), text).unwrap();
    for flags in [&[][..], &["--oci-worker-binary=runc"], &["--oci-worker-binary=crun"]] {
        let daemon = Daemon::start(flags);
        let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).unwrap();
        let files: Vec<_> = limits.lines().find(|line| line.starts_with("Max open files")).unwrap().split_whitespace().collect();
        assert_eq!(files[3], files[4], "{flags:?}");
        let output = daemon.ok(&["build", "--progress=plain", "--no-cache", context.path().to_str().unwrap()]);
        let said = String::from_utf8(output.stderr).unwrap();
        let line = format!(" files 200 {}", files[4]);
        assert!(said.lines().any(|said| said.ends_with(&line)), "{flags:?}: {said}");
    }
}

/// How often the daemon's threads have gone to sleep so far: none does so without having been woken.
fn wakeups(pid: u32) -> u64 {
    let switches = |thread: fs::DirEntry| {
        let status = fs::read_to_string(thread.path().join("status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse::<u64>().ok())
    };
    fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten().filter_map(switches).sum()
}

/// Upkeep goes on for half a minute after the last build; then nothing wakes the daemon up.
#[test]
fn an_idle_daemon_sleeps() {
    let daemon = Daemon::start(&[]);
    let context = tempfile::tempdir().unwrap();
    fs::write(context.path().join("Dockerfile"), "FROM scratch\nCOPY Dockerfile /\n").unwrap();
    daemon.ok(&["build", context.path().to_str().unwrap()]);
    let (mut last, mut since) = (0, Instant::now());
    wait_until("six seconds without a wakeup", PATIENCE * 3, || {
        let now = wakeups(daemon.pid());
        if now != last {
            (last, since) = (now, Instant::now());
        }
        (since.elapsed() > Duration::from_secs(6)).then_some(())
    });
}
