//! Builds of the past as clients see them, and why steps ran that had run before.
#![allow(clippy::unwrap_used)]
use std::fs;

use kiln_tests::Buildx;
use serde_json::Value;
use testkit::{BaseImage, Daemon, PATIENCE, Registry, Tar, busybox_image, wait_until};

fn context(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn records(daemon: &Daemon) -> Vec<Value> {
    let listed = daemon.ok(&["history", "ls", "--format", "json"]).stdout;
    text(&listed).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_reason_for_a_miss_is_told() {
    let registry = Registry::start();
    registry.push("base", "latest", &busybox_image());
    let daemon = Daemon::start(&["--debug"]);
    let dockerfile = format!("FROM {}/base:latest\nARG WORD=one\nCOPY src /src\nRUN echo $WORD > /word\n", registry.host());
    let dir = context(&[("Dockerfile", &dockerfile), ("src/a", "a"), ("src/deep/b", "b")]);
    let path = dir.path().to_str().unwrap();
    let build = |more: &[&str]| {
        let args = [&["build", "--progress", "plain", "--why", "-o", "type=tar,dest=/dev/null"], more, &[path]].concat();
        text(&daemon.ok(&args).stderr)
    };
    const NONE: &str = "no step ran that had run in an earlier build";

    assert!(build(&[]).contains(NONE), "the first build has nothing to be compared with");
    assert!(build(&[]).contains(NONE), "all cached");
    let said = build(&["--build-arg", "WORD=two"]);
    assert!(said.contains("[3/3] RUN echo two > /word\n   build argument WORD has changed\n"), "{said}");
    assert!(!said.contains("COPY src /src\n   "), "{said}");

    fs::write(dir.path().join("src/deep/b"), "other").unwrap();
    fs::write(dir.path().join("src/c"), "c").unwrap();
    let said = build(&["--build-arg", "WORD=two"]);
    assert!(said.contains("[2/3] COPY src /src\n   files of the build context: changed src/deep/b; new src/c\n"), "{said}");
    assert!(said.contains("[3/3] RUN echo two > /word\n   the step \"[2/3] COPY src /src\" gave another result\n"), "{said}");

    let other = BaseImage::of_layers(
        vec![Tar::new().file("new", 0o644, "new").finish(), busybox_image().layers[0].clone()],
        serde_json::json!({"Env": ["PATH=/bin:/usr/bin"]}),
    );
    registry.push("base", "latest", &other);
    let said = build(&["--build-arg", "WORD=two"]);
    let (before, now) = (busybox_image().digest(), other.digest());
    let host = registry.host();
    let base = format!("its base image has changed from {host}/base:latest@{before} to {host}/base:latest@{now}\n");
    assert!(said.contains(&format!("[2/3] COPY src /src\n   {base}")), "{said}");

    let said = build(&["--build-arg", "WORD=two", "--no-cache"]);
    assert_eq!(said.matches("   the build forbids the cache for it (no-cache)\n").count(), 2, "{said}");

    daemon.ok(&["prune", "--all"]);
    let said = build(&["--build-arg", "WORD=two"]);
    assert_eq!(said.matches("   its earlier result is not in the cache any more (pruned or evicted)\n").count(), 2, "{said}");

    // The history tells the same, and so does the log.
    let why = text(&daemon.ok(&["history", "why"]).stdout);
    assert!(why.contains("its earlier result is not in the cache any more"), "{why}");
    let latest = &records(&daemon)[0];
    assert_eq!(latest["misses"].as_array().unwrap().len(), 2);
    assert_eq!(latest["misses"][0]["reasons"][0]["kind"], "evicted");
    let log = fs::read_to_string(daemon.log_path()).unwrap();
    assert!(log.contains("a step missed the cache") && log.contains("build argument WORD has changed"), "{log}");
}

#[test]
fn the_history_survives_a_kill_right_after_the_build() {
    let mut daemon = Daemon::start(&[]);
    let dir = context(&[("Dockerfile", "FROM scratch\nCOPY a /\n"), ("a", "a")]);
    let bad = context(&[("Dockerfile", "FROM scratch\nCOPY nothing /\n")]);
    daemon.ok(&["build", "-o", "type=tar,dest=/dev/null", dir.path().to_str().unwrap()]);
    daemon.kill();
    daemon.restart();
    let failed = daemon.kiln(&["build", bad.path().to_str().unwrap()]).output().unwrap();
    assert!(!failed.status.success());
    daemon.kill();
    daemon.restart();
    let found = records(&daemon);
    let status: Vec<&str> = found.iter().map(|record| record["Status"].as_str().unwrap()).collect();
    assert_eq!(status, ["error", "completed"]);
    assert!(found[0]["error"]["message"].as_str().unwrap().contains("/nothing"), "{}", found[0]);
    let reference = found[1]["Ref"].as_str().unwrap();
    let log = text(&daemon.ok(&["history", "logs", reference, "--progress", "plain"]).stderr);
    assert!(log.contains("COPY a /"), "{log}");
    let filtered = text(&daemon.ok(&["history", "ls", "--filter", "status==error,duration<1h"]).stdout);
    assert_eq!(filtered.lines().count(), 2, "{filtered}");
    daemon.ok(&["history", "rm", "--all"]);
    assert!(records(&daemon).is_empty());
}

/// What buildx says, on both streams.
fn says(buildx: &Buildx, args: &[&str]) -> String {
    let output = buildx.ok(&[args, &["--builder", "kiln"]].concat());
    text(&output.stdout) + &text(&output.stderr)
}

fn refused(buildx: &Buildx, args: &[&str]) {
    let status = buildx.command("KILN_TEST_BUILDX").args(args).args(["--builder", "kiln"]).output().unwrap().status;
    assert!(!status.success(), "{args:?}");
}

/// References, the newest first. buildx puts builder and node in front.
fn references_in(buildx: &Buildx) -> Vec<String> {
    let listed = says(buildx, &["history", "ls", "--format", "json"]);
    let reference =
        |line: &str| serde_json::from_str::<Value>(line).unwrap()["ref"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
    listed.lines().map(reference).collect()
}

#[test]
fn docker_buildx_history() {
    let registry = Registry::start();
    registry.push("base", "latest", &busybox_image());
    let daemon = Daemon::start(&[]);
    let buildx = Buildx::new(&daemon);
    let good = format!("FROM {}/base:latest\nARG WORD\nRUN echo hello $WORD\n", registry.host());
    let dir = context(&[("Dockerfile", &good), ("bad.Dockerfile", &good.replace("hello", "oh no && exit 7 #"))]);
    let path = dir.path().to_str().unwrap();
    let name = format!("{}/team/app:v1", registry.host());
    says(&buildx, &["build", "--push", "-t", &name, "--build-arg", "WORD=world", path]);
    refused(&buildx, &["build", "-f", &format!("{path}/bad.Dockerfile"), path]);
    let references = references_in(&buildx);
    let [bad, good] = references.as_slice() else { panic!("{references:?}") };

    let inspected = says(&buildx, &["history", "inspect", good]);
    assert!(inspected.contains("WORD") && inspected.contains("world") && inspected.contains("Build Steps"), "{inspected}");
    let json: Value = serde_json::from_str(&says(&buildx, &["history", "inspect", good, "--format", "json"])).unwrap();
    assert_eq!((json["Status"].as_str(), json["Ref"].as_str()), (Some("completed"), Some(good.as_str())), "{json}");
    // Nobody asked for provenance, and the record has it: buildx reads the materials out of it.
    let base = json["Materials"].as_array().and_then(|all| all.first()).unwrap_or_else(|| panic!("no materials in {json}"));
    assert_eq!(base["Digests"][0], busybox_image().digest().to_string(), "{json}");
    let provenance = says(&buildx, &["history", "inspect", "attachment", good, "--type", "https://slsa.dev/provenance/v1"]);
    let provenance: Value = serde_json::from_str(&provenance).unwrap();
    let request = &provenance["buildDefinition"]["externalParameters"]["request"];
    assert_eq!(request["args"]["build-arg:WORD"], "world", "{provenance}");
    assert_eq!(provenance["runDetails"]["metadata"]["buildkit_metadata"]["source"]["infos"][0]["filename"], "Dockerfile", "{provenance}");
    let usage = &provenance["runDetails"]["metadata"]["buildkit_metadata"]["sysUsage"];
    assert!(usage[0]["memoryStat"]["total"].as_u64().unwrap() > 0 && usage[0]["cpuStat"]["user"].is_number(), "{usage}");
    let failed: Value = serde_json::from_str(&says(&buildx, &["history", "inspect", bad, "--format", "json"])).unwrap();
    assert!(["error", "failed"].contains(&failed["Status"].as_str().unwrap()), "{failed}");
    assert!(failed["Error"]["Message"].as_str().unwrap().contains("exit code: 7"), "{failed}");
    assert!(failed["Error"]["Logs"].as_array().unwrap().iter().any(|line| line.as_str().unwrap().contains("oh no")), "{failed}");
    assert!(says(&buildx, &["history", "logs", good]).contains("hello world"));

    let bundle = daemon.home().join("bundle.dockerbuild");
    says(&buildx, &["history", "export", "-o", bundle.to_str().unwrap(), good]);
    assert!(fs::metadata(&bundle).unwrap().len() > 0);

    says(&buildx, &["history", "rm", bad]);
    assert_eq!(references_in(&buildx), std::slice::from_ref(good));
    refused(&buildx, &["history", "logs", bad]);
}

#[test]
fn an_abandoned_build_is_in_the_history_as_canceled() {
    let registry = Registry::start();
    registry.push("base", "latest", &busybox_image());
    let daemon = Daemon::start(&[]);
    let dir = context(&[("Dockerfile", &format!("FROM {}/base:latest\nRUN echo $((40 + 2)) runs && sleep 1000\n", registry.host()))]);
    let shown = daemon.home().join("shown");
    let mut client = daemon.kiln(&["build", "--progress", "plain", dir.path().to_str().unwrap()]);
    let mut client = client.stderr(fs::File::create(&shown).unwrap()).spawn().unwrap();
    wait_until("the step to run", PATIENCE, || fs::read_to_string(&shown).unwrap().contains("42 runs").then_some(()));
    let running = || {
        let listed = text(&daemon.ok(&["debug", "histories"]).stdout);
        let line = listed.lines().find(|line| line.starts_with("STARTED"))?;
        line.split_whitespace().nth(1).map(str::to_owned)
    };
    let reference = wait_until("the build to be listed", PATIENCE, running);
    client.kill().unwrap();
    client.wait().unwrap();
    let ended = || records(&daemon).into_iter().find(|record| record["Ref"] == reference.as_str());
    let record = wait_until("the build to end", PATIENCE, ended);
    assert_eq!((record["Status"].as_str(), record["error"]["code"].as_i64()), (Some("canceled"), Some(1)), "{record}");
}
