//! A root of busybox, and runtimes to run it with. Needs root, and busybox as a static program.
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use sandbox::{Container, Exit, Input, Io, Output, Process, Runtime, SandboxError, Settings};
use snapshot::MountSpec;
use task::Cancel;

pub struct World {
    pub dir: tempfile::TempDir,
    pub runtime: Box<dyn Runtime>,
    next: AtomicU32,
}

/// What a process left behind.
#[derive(Debug)]
pub struct Outcome {
    pub exit: Exit,
    pub stdout: String,
    pub stderr: String,
}

pub fn settings(dir: &Path) -> Settings {
    Settings { helper: env!("CARGO_BIN_EXE_kiln-sandbox").into(), ..Settings::new(dir.join("state")) }
}

impl World {
    pub fn new(make: impl FnOnce(Settings) -> Result<Box<dyn Runtime>, SandboxError>) -> Self {
        assert!(rustix::process::geteuid().is_root(), "the sandbox's tests need root");
        let dir = tempfile::tempdir().unwrap();
        busybox_root(&dir.path().join("base"));
        let runtime = make(settings(dir.path())).unwrap();
        Self { dir, runtime, next: AtomicU32::new(0) }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A container with a writable root of its own over busybox.
    pub fn container(&self) -> Container {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let id =
            format!("t{}x{}x{number}", std::process::id(), self.dir.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.'));
        Container::new(id, self.overlay(&number.to_string()))
    }

    pub fn upper(&self, container: &Container) -> PathBuf {
        match &container.root {
            MountSpec::Overlay { upper_work: Some((upper, _)), .. } => upper.clone(),
            other => panic!("{other:?}"),
        }
    }

    pub fn overlay(&self, name: &str) -> MountSpec {
        let (upper, work) = (self.path(&format!("upper-{name}")), self.path(&format!("work-{name}")));
        fs::create_dir_all(&upper).unwrap();
        fs::create_dir_all(&work).unwrap();
        MountSpec::Overlay { lowers: vec![self.path("base")], upper_work: Some((upper, work)), userxattr: false }
    }

    pub async fn sh(&self, script: &str) -> Outcome {
        self.run(self.container(), shell(script)).await
    }

    pub async fn run(&self, container: Container, process: Process) -> Outcome {
        self.try_run(container, process).await.unwrap()
    }

    pub async fn try_run(&self, container: Container, process: Process) -> Result<Outcome, SandboxError> {
        let (io, stdout, stderr) = capture();
        let exit = self.runtime.run(container, process, io, &Cancel::new()).await?;
        Ok(Outcome { exit, stdout: text(&stdout), stderr: text(&stderr) })
    }
}

pub type Captured = Arc<Mutex<Vec<u8>>>;

pub fn text(captured: &Captured) -> String {
    String::from_utf8_lossy(&captured.lock().unwrap()).into_owned()
}

fn keep(into: &Captured) -> Output {
    let into = Arc::clone(into);
    Output::Call(Box::new(move |data: Bytes| into.lock().unwrap().extend_from_slice(&data)))
}

pub fn capture() -> (Io, Captured, Captured) {
    let (stdout, stderr) = (Captured::default(), Captured::default());
    (Io { stdin: Input::Empty, stdout: keep(&stdout), stderr: keep(&stderr) }, stdout, stderr)
}

pub fn shell(script: &str) -> Process {
    let mut process = Process::new(["/bin/sh", "-c", script]);
    process.env = vec!["PATH=/usr/local/bin:/bin".to_owned()];
    process
}

fn busybox_root(root: &Path) {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    let busybox = busybox.expect("busybox-static is installed");
    for dir in ["bin", "etc", "tmp", "proc", "sys", "dev", "usr/local/bin"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::copy(busybox, root.join("bin/busybox")).unwrap();
    let list = std::process::Command::new(busybox).arg("--list").output().unwrap();
    for name in String::from_utf8(list.stdout).unwrap().lines().filter(|name| *name != "busybox") {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nbob:x:1000:1001::/home/bob:/bin/sh\n").unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nbob:x:1001:\naudio:x:29:bob\n").unwrap();
}
