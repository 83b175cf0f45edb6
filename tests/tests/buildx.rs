//! Docker's buildx, unmodified, through its remote driver.
#![allow(clippy::unwrap_used)]
use std::fs;
use std::process::{Command, Output};

use testkit::{Daemon, Registry, busybox_image};

struct Buildx<'a> {
    daemon: &'a Daemon,
}

impl<'a> Buildx<'a> {
    fn new(daemon: &'a Daemon) -> Self {
        let buildx = Self { daemon };
        buildx.ok(&["create", "--name", "kiln", "--driver", "remote", &daemon.address()]);
        buildx
    }

    fn ok(&self, args: &[&str]) -> Output {
        let program =
            std::env::var_os("KILN_TEST_BUILDX").expect("KILN_TEST_BUILDX names Debian's docker-buildx: `cargo xtask test` sets it");
        let output = Command::new(program)
            .args(args)
            .env("DOCKER_CONFIG", self.daemon.home().join("docker"))
            .env("BUILDX_CONFIG", self.daemon.home().join("buildx"))
            .env("HOME", self.daemon.home())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "buildx {args:?}: {}\n{}\ndaemon log:\n{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            fs::read_to_string(self.daemon.log_path()).unwrap()
        );
        output
    }
}

#[test]
fn build_and_push_with_the_default_attestation_asked_for() {
    let registry = Registry::start();
    registry.push("base", "latest", &busybox_image());
    let daemon = Daemon::start(&[]);
    let buildx = Buildx::new(&daemon);
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("src")).unwrap();
    fs::write(dir.path().join("src/a"), "a\n").unwrap();
    fs::write(dir.path().join("token"), "s3cret").unwrap();
    let text = format!(
        "# syntax=docker/dockerfile:1\nFROM {0}/base:latest AS build\nARG WORD\nCOPY src /src\n\
         RUN --mount=type=cache,target=/c --mount=type=secret,id=token cat /src/a /run/secrets/token > /out && echo $WORD >> /out\n\
         FROM {0}/base:latest\nCOPY --from=build /out /out\nCMD [\"cat\", \"/out\"]\n",
        registry.host()
    );
    fs::write(dir.path().join("Dockerfile"), text).unwrap();
    let name = format!("{}/team/app:latest", registry.host());
    let metadata = daemon.home().join("metadata.json");
    let secret = format!("id=token,src={}", dir.path().join("token").display());
    let args = [
        "build",
        "--builder",
        "kiln",
        "--progress",
        "plain",
        "--push",
        "-t",
        &name,
        "--build-arg",
        "WORD=word",
        "--secret",
        &secret,
        "--metadata-file",
        metadata.to_str().unwrap(),
        dir.path().to_str().unwrap(),
    ];
    buildx.ok(&args);
    let again = buildx.ok(&args);
    assert!(String::from_utf8_lossy(&again.stderr).contains("CACHED"));

    let metadata: serde_json::Value = serde_json::from_slice(&fs::read(metadata).unwrap()).unwrap();
    let digest = metadata["containerimage.digest"].as_str().unwrap();
    assert_eq!(oci::Digest::of(registry.get("/v2/team/app/manifests/latest").body).to_string(), digest);
    let inspected = buildx.ok(&["imagetools", "inspect", "--raw", &name]);
    assert!(String::from_utf8_lossy(&inspected.stdout).contains("schemaVersion"));
}

#[test]
fn the_builder_can_be_inspected_measured_and_pruned() {
    let daemon = Daemon::start(&[]);
    let buildx = Buildx::new(&daemon);
    let inspected = String::from_utf8_lossy(&buildx.ok(&["inspect", "kiln"]).stdout).into_owned();
    assert!(inspected.contains("running") && inspected.contains("linux/amd64"), "{inspected}");
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("Dockerfile"), "FROM scratch\nCOPY Dockerfile /\n").unwrap();
    buildx.ok(&["build", "--builder", "kiln", dir.path().to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&buildx.ok(&["du", "--builder", "kiln"]).stdout).contains("Total:"));
    assert!(String::from_utf8_lossy(&buildx.ok(&["prune", "--builder", "kiln", "-f", "-a"]).stdout).contains("Total:"));
    let left = buildx.ok(&["du", "--builder", "kiln"]);
    assert!(String::from_utf8_lossy(&left.stdout).contains("0B"), "{}", String::from_utf8_lossy(&left.stdout));
}
