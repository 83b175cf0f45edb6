//! One daemon process on a fresh root, and client commands against it.
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use tempfile::TempDir;

use crate::START_BOUND;

/// Why a row has no figure. Not a panic: release builds abort on those, and what a row has started and written would stay behind.
#[derive(Debug)]
pub struct Failed(pub String);

pub struct Bench {
    command: Vec<String>,
    client: Vec<String>,
    home: TempDir,
    child: Option<Child>,
}

impl Bench {
    pub fn new(command: &str, client: &str) -> Self {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let home = tempfile::Builder::new().prefix("kiln-bench-").tempdir().unwrap();
        Self { command: words(command), client: words(client), home, child: None }
    }

    fn socket(&self) -> PathBuf {
        self.home.path().join("d.sock")
    }

    pub fn scratch(&self) -> &Path {
        self.home.path()
    }

    /// Starts the daemon and returns the seconds until a client got its first answer.
    pub fn start(&mut self) -> Result<f64, Failed> {
        let begun = Instant::now();
        let log = std::fs::File::options().create(true).append(true).open(self.home.path().join("log")).unwrap();
        let child = Command::new(&self.command[0])
            .args(&self.command[1..])
            .args(["--root".as_ref(), self.home.path().join("root").as_os_str()])
            .args(["--addr", &format!("unix://{}", self.socket().display())])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("{:?}: {e}", self.command));
        self.child = Some(child);
        testkit::wait_until("the daemon's socket", START_BOUND, || std::os::unix::net::UnixStream::connect(self.socket()).ok());
        self.client(&["debug", "workers"])?;
        Ok(begun.elapsed().as_secs_f64())
    }

    /// Another daemon of the same kind, on a root of its own.
    pub fn sibling(&self) -> Self {
        Self::new(&self.command.join(" "), &self.client.join(" "))
    }

    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
            let _ = child.wait();
        }
    }

    /// Resident memory in MB.
    pub fn memory(&self) -> f64 {
        self.status("VmRSS:")
    }

    /// The most that was ever resident, in MB.
    pub fn peak_memory(&self) -> f64 {
        self.status("VmHWM:")
    }

    fn status(&self, field: &str) -> f64 {
        let pid = self.child.as_ref().expect("the daemon runs").id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix(field)).expect("the field is in status");
        line.trim().trim_end_matches(" kB").trim().parse::<f64>().unwrap() / 1024.0
    }

    /// Runs a client command and returns its seconds.
    pub fn client(&self, args: &[&str]) -> Result<f64, Failed> {
        self.client_with(args, &[])
    }

    /// Builds a marshalled definition.
    pub fn solve(&self, definition: &[u8]) -> Result<f64, Failed> {
        self.client_with(&["build", "--progress", "plain"], definition)
    }

    fn client_with(&self, args: &[&str], stdin: &[u8]) -> Result<f64, Failed> {
        let begun = Instant::now();
        let mut child = Command::new(&self.client[0])
            .args(&self.client[1..])
            .args(["--addr", &format!("unix://{}", self.socket().display())])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Clients read all of it before they say anything; what one that has ended did not read shows in how it ended.
        let _ = child.stdin.take().expect("asked for a pipe").write_all(stdin);
        let output = child.wait_with_output().unwrap();
        let took = begun.elapsed().as_secs_f64();
        if output.status.success() {
            return Ok(took);
        }
        let (told, log) =
            (String::from_utf8_lossy(&output.stderr), std::fs::read_to_string(self.home.path().join("log")).unwrap_or_default());
        Err(Failed(format!("{args:?} against {:?}: {told}\n{log}", self.command)))
    }

    /// Builds a directory that holds a Dockerfile.
    pub fn build(&self, context: &Path, extra: &[&str]) -> Result<f64, Failed> {
        let (context_arg, file_arg) = (format!("context={}", context.display()), format!("dockerfile={}", context.display()));
        let mut args = vec!["build", "--progress", "plain", "--frontend", "dockerfile.v0", "--local", &context_arg, "--local", &file_arg];
        args.extend_from_slice(extra);
        self.client(&args)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop();
    }
}
