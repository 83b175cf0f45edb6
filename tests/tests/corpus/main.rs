//! Dockerfiles in the style of real projects, each built for real and compared with what is written down of its result: config, history, and the files of every
//! layer with mode, owner and content; or the error that it must fail with.
//!
//! A case is a file of `tests/corpus/<theme>/`; see `case.rs` for its form. What is expected was taken from BuildKit's own daemon: with `CORPUS_DAEMON=<address>`
//! the corpus runs against that daemon, and with `CORPUS_WRITE=1` what it answers is written into the cases.
#![allow(clippy::unwrap_used)]
mod case;
mod result;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use case::Case;
use testkit::{Daemon, Registry, busybox_image, kiln_binary};

/// Builds at a time.
const PARALLEL: usize = 4;

#[test]
fn every_case_has_its_result() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let only = std::env::var("CORPUS_ONLY").unwrap_or_default();
    let cases: Vec<(PathBuf, Case)> =
        paths(&root).into_iter().filter(|p| p.to_str().unwrap().contains(&only)).map(|p| (p.clone(), Case::read(&p))).collect();
    assert!(!only.is_empty() || cases.len() >= 150, "the corpus has {} cases", cases.len());
    let registry = Registry::start();
    registry.push("base", "latest", &busybox_image());
    registry.push("parent", "latest", &result::parent_image());
    let home = tempfile::tempdir().unwrap();
    let foreign = std::env::var("CORPUS_DAEMON").ok();
    let own = foreign.is_none().then(|| Daemon::start(&[]));
    let address = foreign.unwrap_or_else(|| own.as_ref().unwrap().address());
    let place = Arc::new(Place { address, registry: registry.host(), home: home.path().to_owned() });
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| {
                while let Some((path, case)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let name = path.strip_prefix(&root).unwrap().display().to_string();
                    let actual = place.build(&name, case);
                    if std::env::var_os("CORPUS_WRITE").is_some() {
                        case.write(path, &actual);
                    } else if actual != case.expected {
                        failures.lock().unwrap().push(format!("{name}:\n{}", difference(&case.expected, &actual)));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} of {} cases differ:\n\n{}", failures.len(), cases.len(), failures.join("\n"));
}

fn paths(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for theme in std::fs::read_dir(root).unwrap() {
        found.extend(std::fs::read_dir(theme.unwrap().path()).unwrap().map(|entry| entry.unwrap().path()));
    }
    found.sort();
    found
}

struct Place {
    address: String,
    registry: String,
    home: PathBuf,
}

impl Place {
    /// What the case comes to, in the words of its expectation.
    fn build(&self, name: &str, case: &Case) -> String {
        let dir = self.home.join(name.replace('/', "_"));
        let (context, out) = (dir.join("context"), dir.join("out.tar"));
        case.lay_out(&context);
        let mut command = Command::new(kiln_binary());
        command.args(["build", "--progress", "plain", "--frontend", "dockerfile.v0"]).env("BUILDKIT_HOST", &self.address);
        let local = |name: &str, path: &Path| format!("{name}={}", path.display());
        command.args(["--local", &local("context", &context), "--local", &local("dockerfile", &context)]);
        for (name, path) in &case.locals {
            command.args(["--local", &local(name, &context.join(path))]);
        }
        for image in ["base", "parent"] {
            command.args(["--opt", &format!("context:{image}=docker-image://{}/{image}:latest", self.registry)]);
        }
        for opt in &case.opts {
            command.args(["--opt", opt]);
        }
        for (id, value) in &case.secrets {
            let path = dir.join(format!("secret-{id}"));
            std::fs::write(&path, value).unwrap();
            command.args(["--secret", &format!("id={id},src={}", path.display())]);
        }
        command.args(["--output", &format!("type=oci,compression=uncompressed,dest={}", out.display())]);
        let output = command.env("DOCKER_CONFIG", &self.home).stdin(Stdio::null()).output().unwrap();
        if output.status.success() {
            result::describe(&std::fs::read(&out).unwrap())
        } else {
            result::describe_failure(&String::from_utf8_lossy(&output.stderr))
        }
    }
}

/// The lines that are on one side only.
fn difference(expected: &str, actual: &str) -> String {
    let (left, right): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), actual.lines().collect());
    let mut text = String::new();
    for (sign, these, those) in [('-', &left, &right), ('+', &right, &left)] {
        these.iter().filter(|line| !those.contains(line)).for_each(|line| text.push_str(&format!("  {sign} {line}\n")));
    }
    if text.is_empty() { "  the same lines in another order\n".to_owned() } else { text }
}
