//! What is left of steps, those that ended and those that were cancelled: nothing.
//!
//! Needs root. `KILN_TEST_STEPS` sets how many steps are run (of which a tenth is cancelled); 100 by default.
#![allow(clippy::unwrap_used)]
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use testkit::{Daemon, PATIENCE, wait_until};

/// Steps of one build that is left to end, for each one that is cancelled.
const TOGETHER: usize = 9;

#[test]
fn rootful() {
    let house = House::new(Daemon::start(&[]));
    house.leaves_nothing();
}

#[test]
fn rootless() {
    let house = House::new(Daemon::start_rootless(&[]));
    house.leaves_nothing();
}

/// Bridges of the machine's own network, whose links and tables are looked at, too.
#[test]
fn bridged() {
    let name = format!("kilnl{}", std::process::id());
    let mut house = House::new(Daemon::start(&[
        "--oci-worker-net=bridge",
        "--oci-worker-bridge-name",
        &name,
        "--oci-worker-bridge-subnet=10.79.0.0/24",
    ]));
    house.leaves_nothing();
    house.daemon.stop();
    let links = Command::new("ip").args(["-o", "link"]).output().expect("iproute2 is installed");
    assert!(!String::from_utf8_lossy(&links.stdout).contains(&name), "the bridge is left");
}

#[test]
fn without_a_network() {
    House::new(Daemon::start(&["--oci-worker-net=none"])).leaves_nothing();
}

/// What a daemon has beyond itself.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    /// Its descendants, by name: how many of each.
    processes: BTreeMap<String, usize>,
    /// Open in the helper.
    descriptors: usize,
    mounts: Vec<String>,
    cgroups: Vec<PathBuf>,
    networks: usize,
    /// Of single containers.
    files: Vec<PathBuf>,
}

impl Traces {
    /// What a daemon has while nothing runs: its helper.
    fn are_of_no_container(&self) -> bool {
        self.processes.values().sum::<usize>() == 1 && self.mounts.is_empty() && self.cgroups.is_empty() && self.files.is_empty()
    }
}

struct House {
    daemon: Daemon,
    context: tempfile::TempDir,
}

impl House {
    fn new(daemon: Daemon) -> Self {
        let context = tempfile::tempdir().unwrap();
        fs::copy("/bin/busybox", context.path().join("busybox")).unwrap();
        Self { daemon, context }
    }

    fn leaves_nothing(&self) {
        let wanted: usize = std::env::var("KILN_TEST_STEPS").map_or(100, |text| text.parse().expect("KILN_TEST_STEPS is a number"));
        self.together(usize::MAX);
        let before = self.traces_once(|traces| traces, Traces::are_of_no_container);
        assert!(before.are_of_no_container(), "{before:?}");
        let rounds = wanted / (TOGETHER + 1);
        for round in 0..rounds {
            self.together(round);
            self.cancelled(round);
        }
        // The helper may have been about to close one when it was looked at.
        let no_more = |traces: Traces| Traces { descriptors: traces.descriptors.max(before.descriptors), ..traces };
        assert_eq!(self.traces_once(no_more, |traces| *traces == before), before);
    }

    /// As soon as they are like that, or else the last: ends are told before the last of a container is cleaned up.
    fn traces_once(&self, as_seen: impl Fn(Traces) -> Traces, ready: impl Fn(&Traces) -> bool) -> Traces {
        let begun = Instant::now();
        loop {
            let traces = as_seen(self.traces());
            if ready(&traces) || begun.elapsed() > PATIENCE {
                return traces;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn write(&self, steps: &str) {
        let text = format!("FROM scratch\nCOPY busybox /bin/busybox\nSHELL [\"/bin/busybox\", \"sh\", \"-c\"]\n{steps}");
        fs::write(self.context.path().join("Dockerfile"), text).unwrap();
    }

    fn path(&self) -> &str {
        self.context.path().to_str().unwrap()
    }

    /// Steps side by side and one after the other, with orphans, networks of their own, mounts, and failures that count as success.
    fn together(&self, round: usize) {
        let mut steps = String::new();
        for n in 0..TOGETHER {
            steps += match n % 3 {
                0 => "RUN /bin/busybox sleep 9999 & echo",
                1 => "RUN --network=none --mount=type=tmpfs,target=/t --mount=type=cache,target=/c echo",
                _ => "RUN --mount=type=secret,id=none (false || true); echo",
            };
            steps += &format!(" {round}-{n}\n");
        }
        self.write(&steps);
        self.daemon.ok(&["build", "--progress", "plain", self.path()]);
    }

    /// A step that would never end; its client goes away, politely or not.
    fn cancelled(&self, round: usize) {
        // Other tests look for theirs at the same time.
        let seconds = format!("99{round}.{}", self.daemon.pid());
        self.write(&format!(
            "RUN --network={} --mount=type=tmpfs,target=/t (/bin/busybox sleep {seconds} & /bin/busybox sleep {seconds})\n",
            if round.is_multiple_of(2) { "none" } else { "default" }
        ));
        let mut client = self.daemon.kiln(&["build", "--progress", "plain", self.path()]);
        let mut client: Child = client.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let running = || processes().into_values().any(|process| process.arguments.ends_with(std::slice::from_ref(&seconds)));
        wait_until("the step to run", PATIENCE, || running().then_some(()));
        let signal = if round.is_multiple_of(3) { "-KILL" } else { "-INT" };
        assert!(Command::new("kill").args([signal, &client.id().to_string()]).status().unwrap().success());
        client.wait().unwrap();
        wait_until("the cancelled step to be gone", PATIENCE, || (!running()).then_some(()));
    }

    fn traces(&self) -> Traces {
        let all = processes();
        let mut family = BTreeSet::from([self.daemon.pid()]);
        // Children have higher numbers than their parents, unless numbers have wrapped round; then a second look finds them.
        for _ in 0..4 {
            family.extend(all.iter().filter(|(_, process)| family.contains(&process.parent)).map(|(pid, _)| *pid).collect::<Vec<_>>());
        }
        family.remove(&self.daemon.pid());
        let mut names = BTreeMap::new();
        for pid in &family {
            *names.entry(all[pid].name.clone()).or_default() += 1;
        }
        let helper = family.iter().filter(|pid| all[pid].parent == self.daemon.pid()).min().expect("the daemon has a helper");
        let descriptors = fs::read_dir(format!("/proc/{helper}/fd")).map_or(0, Iterator::count);
        let home = self.daemon.home().to_str().unwrap();
        let mounts = ["self".to_owned(), self.daemon.pid().to_string(), helper.to_string()]
            .iter()
            .flat_map(|pid| fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap().lines().map(str::to_owned).collect::<Vec<_>>())
            .filter(|line| line.contains(home))
            .collect();
        let networks: BTreeSet<PathBuf> =
            family.iter().chain([&self.daemon.pid()]).filter_map(|pid| fs::read_link(format!("/proc/{pid}/ns/net")).ok()).collect();
        let mut cgroups = Vec::new();
        below(Path::new("/sys/fs/cgroup"), &format!("-{}-", self.daemon.pid()), &mut cgroups);
        let mut files = Vec::new();
        below(&self.daemon.root().join("sandbox"), "hosts.", &mut files);
        below(&self.daemon.root().join("sockets"), "", &mut files);
        Traces { processes: names, descriptors, mounts, cgroups, networks: networks.len(), files }
    }
}

#[derive(Debug)]
struct Process {
    name: String,
    parent: u32,
    arguments: Vec<String>,
}

fn processes() -> BTreeMap<u32, Process> {
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(|value| value.trim().to_owned());
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let arguments = arguments.split(|b| *b == 0).filter(|a| !a.is_empty()).map(|a| String::from_utf8_lossy(a).into_owned()).collect();
        let state = if field("State:")?.starts_with('Z') { " (zombie)" } else { "" };
        Some((pid, Process { name: field("Name:")? + state, parent: field("PPid:")?.parse().ok()?, arguments }))
    })
    .collect()
}

/// Everything below `top` with `part` in its name.
fn below(top: &Path, part: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(top).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().contains(part) {
            found.push(entry.path());
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            below(&entry.path(), part, found);
        }
    }
}
