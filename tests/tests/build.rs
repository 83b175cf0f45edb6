//! The everyday path: `kiln build` against a daemon, results in a real registry or on disk.
#![allow(clippy::unwrap_used)]
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use testkit::{Daemon, Registry, busybox_image, read_tar};

/// The files of an image, all layers applied in order.
fn flatten(registry: &Registry, repository: &str, tag: &str) -> (serde_json::Value, std::collections::BTreeMap<String, testkit::TarEntry>) {
    let mut manifest = registry.manifest(repository, tag);
    if let Some(children) = manifest["manifests"].as_array() {
        let child = children.iter().find(|m| m["platform"]["os"] == "linux").expect("the index has a linux image");
        manifest = registry.manifest(repository, child["digest"].as_str().unwrap());
    }
    let config = serde_json::from_slice(&registry.blob(repository, manifest["config"]["digest"].as_str().unwrap())).unwrap();
    let mut files = std::collections::BTreeMap::new();
    for layer in manifest["layers"].as_array().unwrap() {
        let blob = registry.blob(repository, layer["digest"].as_str().unwrap());
        for (name, entry) in read_tar(&gunzip(&blob)) {
            let base = name.rsplit('/').next().unwrap_or_default();
            if let Some(hidden) = base.strip_prefix(".wh.") {
                let gone = format!("{}{hidden}", &name[..name.len() - base.len()]);
                files.retain(|path: &String, _| *path != gone && !path.starts_with(&format!("{gone}/")));
            } else {
                files.insert(name, entry);
            }
        }
    }
    (config, files)
}

fn gunzip(blob: &[u8]) -> Vec<u8> {
    if !blob.starts_with(&[0x1f, 0x8b]) {
        return blob.to_vec();
    }
    let mut child = std::process::Command::new("gzip")
        .arg("-dc")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let blob = blob.to_vec();
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &blob));
    let mut out = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut out).unwrap();
    assert!(child.wait().unwrap().success());
    writer.join().unwrap().unwrap();
    out
}

fn context(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

fn path(dir: &Path) -> &str {
    dir.to_str().unwrap()
}

#[test]
fn a_multi_stage_build_arrives_in_a_registry_file_by_file() {
    let registry = Registry::start();
    registry.push("base", "latest", &busybox_image());
    let daemon = Daemon::start(&[]);
    let dir = context(&[
        (
            "Dockerfile",
            &format!(
                "ARG BASE={}/base:latest\n\
                 FROM $BASE AS build\n\
                 ARG WORD=unset\n\
                 ENV GREETING=\"hello ${{WORD}}\"\n\
                 WORKDIR /src\n\
                 COPY --chown=1000:1000 src/ .\n\
                 RUN --mount=type=cache,target=/cache --mount=type=secret,id=token \\\n\
                     echo \"$GREETING\" > /out && cat /run/secrets/token >> /out && id -u > /cache/who && cat /cache/who >> /out\n\
                 FROM $BASE\n\
                 COPY --from=build /out /result/out\n\
                 COPY --from=build /src /result/src\n\
                 RUN rm /etc/group\n\
                 USER builder\n\
                 LABEL a=b\n\
                 CMD [\"cat\", \"/result/out\"]\n",
                registry.host()
            ),
        ),
        ("src/a.txt", "a"),
        ("src/deep/b.txt", "b"),
        ("secret", "s3cret"),
    ]);
    let name = format!("{}/team/app:v1", registry.host());
    let secret = format!("id=token,src={}", dir.path().join("secret").display());
    daemon.ok(&["build", "--push", "-t", &name, "--build-arg", "WORD=world", "--secret", &secret, path(dir.path())]);

    let (config, files) = flatten(&registry, "team/app", "v1");
    assert_eq!(config["config"]["User"], "builder");
    assert_eq!(config["config"]["Labels"]["a"], "b");
    assert_eq!(config["config"]["Cmd"], serde_json::json!(["cat", "/result/out"]));
    assert_eq!(String::from_utf8_lossy(&files["result/out"].data), "hello world\ns3cret0\n");
    assert_eq!((files["result/src/a.txt"].uid, files["result/src/a.txt"].data.as_slice()), (1000, b"a".as_slice()));
    assert_eq!(files["result/src/deep/b.txt"].data, b"b");
    assert!(!files.contains_key("etc/group"), "a removed file stays removed");
    assert!(!files.keys().any(|f| f.starts_with("run/secrets") || f.starts_with("cache")), "mounts leave nothing: {:?}", files.keys());
    assert_eq!(
        config["rootfs"]["diff_ids"].as_array().unwrap().len(),
        registry.manifest("team/app", "v1")["layers"].as_array().map_or(4, Vec::len),
        "one diff id for each layer"
    );
}

#[test]
fn the_second_build_is_cached_also_after_a_restart_and_a_touch() {
    let registry = Registry::start();
    registry.push("base", "latest", &busybox_image());
    let mut daemon = Daemon::start(&[]);
    let dir = context(&[
        ("Dockerfile", &format!("FROM {}/base:latest\nCOPY a.txt /\nRUN cat /proc/sys/kernel/random/uuid > /stamp\n", registry.host())),
        ("a.txt", "a"),
    ]);
    let out = tempfile::tempdir().unwrap();
    let build = |daemon: &Daemon, to: &str| {
        let dest = out.path().join(to);
        let log = daemon.ok(&["build", "--progress", "plain", "-o", &format!("type=local,dest={}", dest.display()), path(dir.path())]);
        (fs::read(dest.join("stamp")).unwrap(), String::from_utf8_lossy(&log.stderr).into_owned())
    };
    let (first, _) = build(&daemon, "1");
    let (second, log) = build(&daemon, "2");
    assert_eq!(first, second, "the step did not run again");
    assert!(log.contains("CACHED"), "{log}");

    let now = std::time::SystemTime::now() + std::time::Duration::from_secs(60);
    fs::File::options().write(true).open(dir.path().join("a.txt")).unwrap().set_modified(now).unwrap();
    assert_eq!(build(&daemon, "3").0, first, "a touched mtime does not miss");

    assert!(daemon.stop().success());
    daemon.restart();
    assert_eq!(build(&daemon, "4").0, first, "the cache survives a restart");

    fs::write(dir.path().join("a.txt"), "changed").unwrap();
    assert_ne!(build(&daemon, "5").0, first, "a changed file runs the step");
}

#[test]
fn a_failing_step_shows_its_log_its_exit_code_and_its_lines() {
    let registry = Registry::start();
    registry.push("base", "latest", &busybox_image());
    let daemon = Daemon::start(&[]);
    let dir = context(&[("Dockerfile", &format!("FROM {}/base:latest\nRUN echo about to fail && exit 7\n", registry.host()))]);
    let output = daemon.kiln(&["build", "--progress", "plain", path(dir.path())]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(text.contains("about to fail"), "{text}");
    assert!(text.contains("process \"/bin/sh -c echo about to fail && exit 7\" did not complete successfully: exit code: 7"), "{text}");
    assert!(text.contains(">>> RUN echo about to fail && exit 7"), "the source line is shown:\n{text}");
    daemon.ok(&["debug", "workers"]);
}

#[test]
fn local_export_keeps_modes_and_links() {
    let daemon = Daemon::start(&[]);
    let dir = context(&[("Dockerfile", "FROM scratch\nCOPY --chmod=750 a.txt /dir/a.txt\nCOPY links /\n"), ("a.txt", "a")]);
    fs::create_dir(dir.path().join("links")).unwrap();
    std::os::unix::fs::symlink("dir/a.txt", dir.path().join("links/link")).unwrap();
    let out = dir.path().join("out");
    daemon.ok(&["build", "-o", path(&out), path(dir.path())]);
    assert_eq!(fs::metadata(out.join("dir/a.txt")).unwrap().mode() & 0o7777, 0o750);
    assert_eq!(fs::read_to_string(out.join("link")).unwrap(), "a");
}

#[test]
fn without_a_daemon_kiln_starts_one_for_the_build() {
    let home = tempfile::tempdir().unwrap();
    let dir = context(&[("Dockerfile", "FROM scratch\nCOPY a.txt /\n"), ("a.txt", "a")]);
    let out = dir.path().join("out.tar");
    let output = std::process::Command::new(testkit::kiln_binary())
        .args(["--root", path(&home.path().join("root"))])
        .args(["build", "-o", &format!("type=oci,dest={}", out.display()), path(dir.path())])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tar = read_tar(&fs::read(out).unwrap());
    assert_eq!(tar["oci-layout"].data, br#"{"imageLayoutVersion":"1.0.0"}"#);
    assert!(tar.contains_key("index.json"));
}

#[test]
fn called_as_the_daemonless_script_it_is_buildctl_with_a_daemon_for_one_command() {
    let home = tempfile::tempdir().unwrap();
    let dir = context(&[("Dockerfile", "FROM scratch\nCOPY a.txt /\n"), ("a.txt", "a")]);
    let script = home.path().join("buildctl-daemonless.sh");
    std::os::unix::fs::symlink(testkit::kiln_binary(), &script).unwrap();
    let root = home.path().join("root");
    let run = |flags: String, args: &[&str]| {
        let mut command = std::process::Command::new(&script);
        command.args(args).env("BUILDKITD_FLAGS", flags).env("TMPDIR", home.path()).env_remove("BUILDKIT_HOST");
        command.output().unwrap()
    };
    let (locals, out) = ([format!("context={}", path(dir.path())), format!("dockerfile={}", path(dir.path()))], dir.path().join("out"));
    let output = format!("type=local,dest={}", out.display());
    let build = ["build", "--frontend", "dockerfile.v0", "--local", &locals[0], "--local", &locals[1], "--output", &output];
    for ending in ["", " --debug"] {
        let built = run(format!("--root {}{ending}", root.display()), &build);
        let said = String::from_utf8_lossy(&built.stderr).into_owned();
        assert!(built.status.success(), "{said}");
        assert!(out.join("a.txt").is_file());
        assert_eq!(said.contains("CACHED"), !ending.is_empty(), "what was kept is there for the next command: {said}");
    }
    // The daemon has gone, or its lock would be held; and so has all it needed for the while.
    let left: Vec<_> = fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(left.iter().filter(|name| *name != "root" && *name != "buildctl-daemonless.sh").count(), 0, "{left:?}");
    let refused = run("--no-such-flag".to_owned(), &["debug", "workers"]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no-such-flag"), "{}", String::from_utf8_lossy(&refused.stderr));
}

#[test]
fn a_root_that_is_in_use_is_said_at_once_with_who_uses_it() {
    let daemon = Daemon::start(&[]);
    let dir = context(&[("Dockerfile", "FROM scratch\nCOPY a.txt /\n"), ("a.txt", "a")]);
    let script = dir.path().join("buildctl-daemonless.sh");
    std::os::unix::fs::symlink(testkit::kiln_binary(), &script).unwrap();
    let root = daemon.root();
    let mut daemonless = std::process::Command::new(&script);
    daemonless.args(["debug", "workers"]).env("BUILDKITD_FLAGS", format!("--root {}", root.display()));
    let mut one_shot = std::process::Command::new(testkit::kiln_binary());
    one_shot.args(["--root", path(&root), "build", path(dir.path())]);
    for mut command in [daemonless, one_shot] {
        let output = command.env_remove("BUILDKIT_HOST").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{said}");
        assert!(said.contains(&format!("could not lock {}, another instance running?", root.join("buildkitd.lock").display())), "{said}");
        assert!(said.contains(&format!("process {} on ", daemon.pid())) && said.contains(&daemon.address()), "{said}");
        // Another daemon that is about to listen would have been waited for, and then not have answered.
        assert!(said.contains("the daemon could not be started") && !said.contains("does not answer"), "{said}");
    }
}

#[test]
fn standard_input_is_a_context_or_a_dockerfile() {
    let daemon = Daemon::start(&[]);
    let dir = context(&[("a.txt", "a")]);
    let out = dir.path().join("out");
    let tar = testkit::Tar::new()
        .file("Dockerfile", 0o644, "FROM scratch\nCOPY sub /\n")
        .file("sub/Other", 0o644, "FROM scratch\nCOPY sub/b.txt /c.txt\n")
        .file("sub/b.txt", 0o640, "b")
        .finish();
    let text = b"FROM scratch\nCOPY a.txt* /\nCOPY <<E /here.txt\nhere\nE\n".to_vec();
    for (args, input, file) in [
        (&["-"][..], &tar, "b.txt"),
        (&["-f", "sub/Other", "-"], &tar, "c.txt"),
        (&["-f", "-", path(dir.path())], &text, "a.txt"),
        (&["-"], &text, "here.txt"),
    ] {
        let given = dir.path().join("input");
        fs::write(&given, input).unwrap();
        let _ = fs::remove_dir_all(&out);
        let mut command = daemon.kiln(&[&["build", "-o", path(&out)], args].concat());
        let output = command.stdin(fs::File::open(&given).unwrap()).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(out.join(file).is_file(), "{args:?}: {:?}", fs::read_dir(&out).unwrap().collect::<Vec<_>>());
    }
}
