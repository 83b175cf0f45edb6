//! Containers do not outlive whoever watches them.
#![allow(clippy::unwrap_used, reason = "tests")]
#[allow(dead_code)]
mod world;

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sandbox::{Builtin, Io, SandboxError};
use world::{World, shell};

/// The ids of processes with this in their environment.
fn marked(mark: &str) -> Vec<i32> {
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    // Whole: one mark may begin as another does.
    let whole = format!("{mark}\0");
    pids.filter(|pid| fs::read(format!("/proc/{pid}/environ")).is_ok_and(|env| String::from_utf8_lossy(&env).contains(&whole))).collect()
}

fn parent(pid: i32) -> i32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

#[tokio::test]
async fn a_container_dies_with_its_monitor() {
    let world = World::new(|settings| Ok(Box::new(Builtin::new(settings)?)));
    for user in ["", "bob"] {
        let container = world.container();
        let id = container.id.clone();
        let mark = format!("MARK=monitor-{id}");
        let mut process = shell("sleep 1000; sleep 1000");
        process.env.push(mark.clone());
        process.user = user.into();
        let running = world.runtime.create(container, process, Io::default()).await.unwrap();
        until("it runs", || marked(&mark).len() == 2).await;
        let monitor = marked(&mark)
            .into_iter()
            .map(parent)
            .find(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "kiln-monitor\n"));
        kill(monitor.unwrap());
        assert!(matches!(running.wait().await, Err(SandboxError::Helper(_))));
        until("it is gone", || marked(&mark).is_empty()).await;
        let places = ["/sys/fs/cgroup/memory/buildkit", "/sys/fs/cgroup/buildkit"];
        until("its cgroup is gone", || places.iter().all(|place| !std::path::Path::new(place).join(&id).exists())).await;
    }
}

/// The daemon's part of a test: this program again, in a role that the environment names.
#[tokio::test]
async fn containers_die_with_the_daemon() {
    const ROLE: &str = "SANDBOX_TEST_DAEMON";
    if let Ok(mark) = std::env::var(ROLE) {
        let world = World::new(|settings| Ok(Box::new(Builtin::new(settings)?)));
        let mut process = shell("(setsid sleep 1000 &); sleep 1000; sleep 1000");
        process.env.push(mark);
        world.run(world.container(), process).await;
        return;
    }
    let mark = format!("MARK=daemon-{}", std::process::id());
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "containers_die_with_the_daemon"])
        .env(ROLE, &mark)
        .env("TMPDIR", dir.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let inside = || marked(&mark).into_iter().filter(|pid| *pid != daemon.id() as i32).count();
    until("it runs", || inside() >= 3).await;
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    until("all are gone", || marked(&mark).is_empty()).await;
}
