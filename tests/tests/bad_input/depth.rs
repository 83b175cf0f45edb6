//! Trees that steps make too deep.
use testkit::{Daemon, PATIENCE, Registry, busybox_image, wait_until};

use super::lives_on;

/// Levels of a chain of directories: few enough for paths to name all, more than a small stack has room for.
const LEVELS: usize = 1200;

fn build(daemon: &Daemon, base: &str, step: &str, rest: &str) -> std::process::Output {
    let dir = tempfile::tempdir().unwrap();
    let chain = vec!["a"; LEVELS].join("/");
    std::fs::write(dir.path().join("Dockerfile"), format!("FROM {base} AS deep\nRUN p={chain} && {step}\n{rest}")).unwrap();
    daemon.kiln(&["build", "--progress", "plain", dir.path().to_str().unwrap()]).output().unwrap()
}

#[test]
fn trees_of_any_depth_are_copied_or_refused_and_go_again() {
    let registry = Registry::start();
    registry.push("base", "latest", &busybox_image());
    let base = format!("{}/base:latest", registry.host());
    let daemon = Daemon::start(&[]);
    let copied = build(&daemon, &base, "mkdir -p /deep/$p && echo x > /deep/$p/f", "FROM scratch\nCOPY --from=deep /deep /deep\n");
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    // Each chain goes below the bottom of the next.
    let deeper = "mkdir acc && for i in 1 2 3 4 5 6 7 8; do mkdir -p t/$p && mv acc t/$p/acc && mv t acc; done && mv acc /deep";
    let refused = build(&daemon, &base, deeper, "FROM scratch\nCOPY --from=deep /deep /deep\n");
    assert!(!refused.status.success(), "nothing can name its files");
    lives_on(&daemon);
    daemon.ok(&["prune", "--all"]);
    wait_until("the trash to be emptied", PATIENCE, || {
        std::fs::read_dir(daemon.root().join("snapshots/trash")).unwrap().next().is_none().then_some(())
    });
    lives_on(&daemon);
}
