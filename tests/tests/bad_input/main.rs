//! What clients and registries should never send: each is refused with an error that names it, and the daemon builds on.
#![allow(clippy::unwrap_used)]
mod client;
mod containers;
mod definitions;
mod depth;
mod files;
mod images;
mod registry;

use testkit::Daemon;

/// The daemon still answers, and still builds.
pub fn lives_on(daemon: &Daemon) {
    daemon.ok(&["debug", "workers"]);
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().display().to_string();
    std::fs::write(dir.path().join("Dockerfile"), "FROM scratch\nCOPY mark /mark\n").unwrap();
    std::fs::write(dir.path().join("mark"), &mark).unwrap();
    let out = dir.path().join("out");
    daemon.ok(&["build", "-o", &format!("type=local,dest={}", out.display()), dir.path().to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(out.join("mark")).unwrap(), mark);
    let log = std::fs::read_to_string(daemon.log_path()).unwrap();
    assert!(!log.contains("panicked"), "{log}");
}
