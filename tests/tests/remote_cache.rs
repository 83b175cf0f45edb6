//! Caches that leave one daemon and arrive in another, and that are what BuildKit would have written.
#![allow(clippy::unwrap_used)]
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;
use testkit::{Daemon, Registry, busybox_image};

const DOCKERFILE: &str = "\
    ARG BASE\n\
    FROM $BASE AS a\n\
    ENV PATH=/bin:/usr/bin\n\
    RUN echo one > /one\n\
    COPY ctx.txt /ctx.txt\n\
    RUN cat /ctx.txt /one > /two\n\
    FROM $BASE\n\
    ENV PATH=/bin:/usr/bin\n\
    COPY --link --from=a /two /two\n\
    COPY --link ctx.txt /c\n";

/// What BuildKit wrote for [`DOCKERFILE`] with one more step, `RUN sha256sum /two > /final`, on an image of its own.
const GOLDEN: &str = include_str!("../../crates/cache/tests/golden/config.json");
/// The keys of that image, which are the only ones that are not the same with any image.
const GOLDEN_IMAGE: [&str; 2] = ["sha256:083efcb2", "sha256:82915e02"];

fn context(last: &str) -> tempfile::TempDir {
    context_of(&format!("{DOCKERFILE}{last}\n"))
}

fn context_of(dockerfile: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("Dockerfile"), dockerfile).unwrap();
    fs::write(dir.path().join("ctx.txt"), "hello\n").unwrap();
    std::os::unix::fs::chown(dir.path().join("ctx.txt"), Some(0), Some(0)).unwrap();
    fs::set_permissions(dir.path().join("ctx.txt"), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    dir
}

fn path(dir: &Path) -> &str {
    dir.to_str().unwrap()
}

/// Each record as its digest and, for each input, what it is known by; an image's key is `image`.
fn records(config: &Value, is_image: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let all = config["records"].as_array().unwrap();
    let name = |n: usize| {
        let digest = all[n]["digest"].as_str().unwrap();
        if is_image(digest) { "image".to_owned() } else { digest.to_owned() }
    };
    let inputs = |record: &Value| -> Vec<BTreeSet<String>> {
        let input = |entry: &Value| format!("{} of {}", entry["selector"], name(entry["link"].as_u64().unwrap() as usize));
        record["inputs"].as_array().into_iter().flatten().map(|i| i.as_array().unwrap().iter().map(input).collect()).collect()
    };
    (0..all.len()).map(|n| format!("{} {:?} {}", name(n), inputs(&all[n]), all[n].get("layers").is_some())).collect()
}

#[test]
fn keys_and_links_are_buildkits() {
    let registry = Registry::start();
    registry.push("base", "latest", &busybox_image());
    let daemon = Daemon::start(&[]);
    let dir = context("RUN sha256sum /two > /final");
    let base = format!("BASE={}/base:latest", registry.host());
    let cache = format!("type=registry,ref={}/cache:x,mode=max,ignore-error=false", registry.host());
    daemon.ok(&["build", "--build-arg", &base, "--cache-to", &cache, path(dir.path())]);
    let manifest = registry.manifest("cache", "x");
    let ours: Value = serde_json::from_slice(&registry.blob("cache", manifest["config"]["digest"].as_str().unwrap())).unwrap();
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    let known: Vec<&str> = golden["records"].as_array().unwrap().iter().map(|r| r["digest"].as_str().unwrap()).collect();
    let theirs = records(&golden, |digest| GOLDEN_IMAGE.iter().any(|image| digest.starts_with(image)));
    assert_eq!(records(&ours, |digest| !known.contains(&digest)), theirs);
}

#[test]
fn what_one_daemon_built_the_next_has() {
    let registry = Registry::start();
    registry.push("base", "latest", &busybox_image());
    let dir = context("RUN cat /proc/sys/kernel/random/uuid > /stamp");
    let out = tempfile::tempdir().unwrap();
    let base = format!("BASE={}/base:latest", registry.host());
    let stamp = |daemon: &Daemon, to: &str, more: &[&str]| {
        let dest = out.path().join(to);
        let output = format!("type=local,dest={}", dest.display());
        daemon.ok(&[&["build", "--build-arg", &base, "--output", &output], more, &[path(dir.path())]].concat());
        fs::read_to_string(dest.join("stamp")).unwrap()
    };
    let local = out.path().join("cache");
    let to_local = format!("type=local,dest={},mode=max,ignore-error=false", local.display());
    let to_registry = format!("type=registry,ref={}/cache:y,mode=max,ignore-error=false", registry.host());
    let first = stamp(&Daemon::start(&[]), "first", &["--cache-to", &to_local, "--cache-to", &to_registry]);
    let from_local = format!("type=local,src={}", local.display());
    assert_eq!(stamp(&Daemon::start(&[]), "second", &["--cache-from", &from_local]), first);
    // A cache that is not there is no failure, and several are looked into together.
    let nowhere = format!("type=registry,ref={}/cache:nowhere", registry.host());
    let from_registry = format!("type=registry,ref={}/cache:y", registry.host());
    let daemon = Daemon::start(&[]);
    assert_eq!(stamp(&daemon, "third", &["--cache-from", &nowhere, "--cache-from", &from_registry]), first);
    // Into an image, and out of it again.
    let image = format!("{}/team/app:v1", registry.host());
    daemon.ok(&["build", "--build-arg", &base, "--push", "-t", &image, "--cache-to", "type=inline", path(dir.path())]);
    let inside = format!("type=registry,ref={image}");
    assert_eq!(stamp(&Daemon::start(&[]), "fourth", &["--cache-from", &inside]), first);
    // Its layers may have been given other times.
    let output = format!("type=image,name={image}-clamped,push=true,rewrite-timestamp=true,source-date-epoch=1700000000");
    daemon.ok(&["build", "--build-arg", &base, "-o", &output, "--cache-to", "type=inline", path(dir.path())]);
    let inside = format!("type=registry,ref={image}-clamped");
    assert_eq!(stamp(&Daemon::start(&[]), "fifth", &["--cache-from", &inside]), first);
}

/// In mode min only the last stage's layers go along, but all keys do: the next daemon finds the copy out of the first stage by definition,
/// and by content where that stage was written differently and made the same.
#[test]
fn the_least_cache_of_several_stages_is_found_by_definition_and_by_content() {
    let registry = Registry::start();
    registry.push("base", "latest", &busybox_image());
    let out = tempfile::tempdir().unwrap();
    let base = format!("BASE={}/base:latest", registry.host());
    for (n, dockerfile) in [DOCKERFILE.to_owned(), DOCKERFILE.replace("--link ", "")].into_iter().enumerate() {
        let dockerfile = format!("{dockerfile}RUN cat /proc/sys/kernel/random/uuid > /stamp\n");
        let (dir, variant) = (context_of(&dockerfile), context_of(&dockerfile.replace("echo one", "true; echo one")));
        let cache = format!("type=registry,ref={}/cache:least{n}", registry.host());
        let stamp = |dir: &Path, to: &str, more: &[&str]| {
            let dest = out.path().join(format!("{to}{n}"));
            let output = format!("type=local,dest={}", dest.display());
            let daemon = Daemon::start(&[]);
            daemon.ok(&[&["build", "--build-arg", &base, "--output", &output], more, &[path(dir)]].concat());
            fs::read_to_string(dest.join("stamp")).unwrap()
        };
        let first = stamp(dir.path(), "first", &["--cache-to", &format!("{cache},mode=min,ignore-error=false")]);
        assert_eq!(stamp(dir.path(), "same", &["--cache-from", &cache]), first);
        assert_eq!(stamp(variant.path(), "variant", &["--cache-from", &cache]), first);
    }
}

#[test]
fn a_cache_that_cannot_leave_fails_the_build_only_if_asked_to() {
    let registry = Registry::start();
    registry.push("base", "latest", &busybox_image());
    let daemon = Daemon::start(&[]);
    let dir = context("RUN true");
    let base = format!("BASE={}/base:latest", registry.host());
    // Nobody listens there.
    let cache = "type=registry,ref=localhost:1/cache:x";
    daemon.ok(&["build", "--build-arg", &base, "--cache-to", cache, path(dir.path())]);
    let strict = format!("{cache},ignore-error=false");
    let output = daemon.kiln(&["build", "--build-arg", &base, "--cache-to", &strict, path(dir.path())]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("localhost:1"), "{text}");
    // What is wrong with the attributes fails in any case, and before anything runs.
    let wrong = format!("{cache},oci-mediatypes=maybe");
    let output = daemon.kiln(&["build", "--build-arg", &base, "--cache-to", &wrong, path(dir.path())]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("failed to parse oci-mediatypes"), "{text}");
}
