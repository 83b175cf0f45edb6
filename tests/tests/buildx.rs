//! Docker's buildx, unmodified, through its remote driver.
#![allow(clippy::unwrap_used)]
use std::collections::BTreeSet;
use std::fs;

use kiln_tests::Buildx;
use testkit::{Daemon, Registry, busybox_image};

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

/// Contexts of a bake file: a directory and another target, in two files of their own.
fn lay_out(root: &std::path::Path) {
    for (path, text) in [
        ("lib/Dockerfile", "FROM scratch\nARG WORD\nCOPY lib.txt /lib.txt\nCOPY <<EOF /word\n$WORD\nEOF\n"),
        ("lib/lib.txt", "of the library\n"),
        (
            "web/Dockerfile",
            "FROM scratch AS base\nCOPY --from=lib /word /word\nCOPY --from=plain lib.txt /l\nFROM base AS final\nCOPY w /w\n",
        ),
        ("web/w", "of the web\n"),
    ] {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

#[test]
fn targets_of_a_bake_file_share_contexts() {
    let daemon = Daemon::start(&[]);
    let buildx = Buildx::new(&daemon);
    let dir = tempfile::tempdir().unwrap();
    lay_out(dir.path());
    let file = r#"
        group "default" { targets = ["app", "tool"] }
        variable "WORD" { default = "overridden" }
        target "base" {
          context = "lib"
          args = { WORD = WORD }
        }
        target "app" {
          context = "web"
          contexts = { lib = "target:base", plain = "lib" }
          target = "final"
          output = ["type=local,dest=out/app"]
        }
        target "tool" {
          name = "tool-${item}"
          matrix = { item = ["a", "b"] }
          dockerfile-inline = "FROM base AS one\nFROM scratch\nARG ITEM\nCOPY --from=one /word /word\nCOPY <<EOF /item\n$ITEM\nEOF\n"
          contexts = { base = "target:base" }
          args = { ITEM = item }
          output = ["type=local,dest=out/${item}"]
        }"#;
    fs::write(dir.path().join("docker-bake.hcl"), file).unwrap();
    let mut bake = buildx.command("KILN_TEST_BUILDX");
    bake.args(["bake", "--builder", "kiln", "--progress", "plain"]).env("WORD", "from bake").current_dir(dir.path());
    let output = buildx.succeeds(&mut bake);
    for (path, text) in [
        ("app/word", "from bake\n"),
        ("app/l", "of the library\n"),
        ("app/w", "of the web\n"),
        ("a/word", "from bake\n"),
        ("a/item", "a\n"),
        ("b/word", "from bake\n"),
        ("b/item", "b\n"),
    ] {
        assert_eq!(fs::read_to_string(dir.path().join("out").join(path)).unwrap(), text, "{path}");
    }
    // What three targets share is made once: it has one number, under whichever target's name it is shown.
    let shown = String::from_utf8_lossy(&output.stderr).into_owned();
    let copies = shown.lines().filter(|line| line.contains("COPY lib.txt /lib.txt")).filter_map(|line| line.split(' ').next());
    assert_eq!(copies.collect::<BTreeSet<_>>().len(), 1, "{shown}");
}

#[test]
fn compose_builds_services_that_need_each_other() {
    let registry = Registry::start();
    let daemon = Daemon::start(&[]);
    let buildx = Buildx::new(&daemon);
    let dir = tempfile::tempdir().unwrap();
    lay_out(dir.path());
    let host = registry.host();
    let file = format!(
        "services:\n  lib:\n    build:\n      context: lib\n      args: {{WORD: composed}}\n    image: {host}/lib:1\n  web:\n    build:\n      context: web\n      \
         target: final\n      additional_contexts: {{lib: \"service:lib\", plain: ./lib}}\n    image: {host}/web:1\n"
    );
    fs::write(dir.path().join("compose.yaml"), file).unwrap();
    let mut compose = buildx.command("KILN_TEST_COMPOSE");
    // Without a Docker daemon there is nowhere else for images to go.
    compose.args(["build", "--builder", "kiln", "--push"]).current_dir(dir.path());
    // It runs buildx, which it looks for among its client's plugins.
    let plugins = daemon.home().join("docker/cli-plugins");
    fs::create_dir_all(&plugins).unwrap();
    std::os::unix::fs::symlink(std::env::var_os("KILN_TEST_BUILDX").unwrap(), plugins.join("docker-buildx")).unwrap();
    buildx.succeeds(&mut compose);
    let output = dir.path().join("out");
    let from = format!("FROM {host}/web:1\n");
    fs::write(dir.path().join("Dockerfile"), from).unwrap();
    let dest = format!("type=local,dest={}", output.display());
    buildx.ok(&["build", "--builder", "kiln", "-o", &dest, dir.path().to_str().unwrap()]);
    for (path, text) in [("word", "composed\n"), ("l", "of the library\n"), ("w", "of the web\n")] {
        assert_eq!(fs::read_to_string(output.join(path)).unwrap(), text, "{path}");
    }
}

#[test]
fn platforms_without_a_layer_have_an_image() {
    let daemon = Daemon::start(&[]);
    let buildx = Buildx::new(&daemon);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("Dockerfile"), "FROM scratch\n").unwrap();
    let output = dir.path().join("image.tar");
    let dest = format!("type=oci,dest={}", output.display());
    let platforms = "linux/amd64,linux/arm64";
    buildx.ok(&["build", "--builder", "kiln", "--platform", platforms, "--provenance", "false", "-o", &dest, dir.path().to_str().unwrap()]);
    let files = testkit::read_tar(&fs::read(output).unwrap());
    assert_eq!(files.keys().filter(|name| name.starts_with("blobs/sha256/")).filter(|name| !name.ends_with('/')).count(), 5);
}
