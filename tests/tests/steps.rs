//! What steps see and what they leave.
#![allow(clippy::unwrap_used)]
use std::fs;

use testkit::{Daemon, Registry, busybox_image};

/// A build of `text`, in which `{base}` is a base image; its result in a directory.
fn build(text: &str) -> tempfile::TempDir {
    let registry = Registry::start();
    registry.push("base", "latest", &busybox_image());
    let daemon = Daemon::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("Dockerfile"), text.replace("{base}", &format!("{}/base:latest", registry.host()))).unwrap();
    let out = tempfile::tempdir().unwrap();
    daemon.ok(&["build", "-o", &format!("type=local,dest={}", out.path().display()), dir.path().to_str().unwrap()]);
    out
}

#[test]
fn a_cache_that_a_step_mounts_twice_is_one() {
    for sharing in ["locked", "private", "shared"] {
        let mount = |target: &str| format!("--mount=type=cache,id=both,target=/{target},sharing={sharing}");
        let out = build(&format!(
            "FROM {{base}} AS run\nRUN {} {} echo {sharing} > /a/x && cp /b/x /x\nFROM scratch\nCOPY --from=run /x /\n",
            mount("a"),
            mount("b")
        ));
        assert_eq!(fs::read_to_string(out.path().join("x")).unwrap().trim(), sharing);
    }
}

#[test]
fn mount_points_change_no_directory() {
    let out = build(
        "FROM {base} AS run\n\
         RUN mkdir -p /dir/kept && touch -d @1000 /dir/kept /dir\n\
         RUN --mount=type=tmpfs,target=/dir/tmp --mount=type=tmpfs,target=/dir/kept/tmp true\n\
         RUN stat -c %Y /dir /dir/kept > /times && ls /dir /dir/kept > /names\n\
         FROM scratch\n\
         COPY --from=run /times /names /\n",
    );
    assert_eq!(fs::read_to_string(out.path().join("times")).unwrap(), "1000\n1000\n");
    assert_eq!(fs::read_to_string(out.path().join("names")).unwrap(), "/dir:\nkept\n\n/dir/kept:\n");
}
