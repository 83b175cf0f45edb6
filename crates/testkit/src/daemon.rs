use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

use crate::{PATIENCE, User, wait_until};

/// The kiln daemon as a process, on a root and a socket of its own.
pub struct Daemon {
    child: Option<Child>,
    home: TempDir,
    flags: Vec<String>,
    /// Where it finds programs, if not where this process does.
    path: Option<String>,
    /// Who runs it, if not root.
    user: Option<User>,
}

impl Daemon {
    /// Starts a daemon with extra `flags` and waits until it answers.
    pub fn start(flags: &[&str]) -> Self {
        Self::start_as(None, flags)
    }

    /// The same, with `PATH` set to this.
    pub fn start_with_path(path: &str, flags: &[&str]) -> Self {
        let mut daemon = Self::new(None, flags);
        daemon.set_path(path);
        daemon.restart();
        daemon
    }

    /// For the next [`Daemon::restart`].
    pub fn set_path(&mut self, path: &str) {
        self.path = Some(path.to_owned());
    }

    /// The same, started by an ordinary user with subordinate ids.
    pub fn start_rootless(flags: &[&str]) -> Self {
        Self::start_as(Some(User::new()), flags)
    }

    fn start_as(user: Option<User>, flags: &[&str]) -> Self {
        let mut daemon = Self::new(user, flags);
        daemon.restart();
        daemon
    }

    fn new(user: Option<User>, flags: &[&str]) -> Self {
        let home = tempfile::Builder::new().prefix("kiln-test-").tempdir().unwrap();
        if let Some(user) = &user {
            user.own(home.path());
        }
        Self { child: None, home, flags: flags.iter().map(|&f| f.to_owned()).collect(), path: None, user }
    }

    /// Starts the daemon on the same root; it must not be running.
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "the daemon is still running");
        let log = std::fs::File::options().create(true).append(true).open(self.log_path()).unwrap();
        let mut command = match &self.user {
            None => Command::new(kiln_binary()),
            Some(user) => {
                let mut command = user.command(true);
                command.arg(user.path("kiln"));
                command
            }
        };
        command.envs(self.path.iter().map(|path| ("PATH", path)));
        let child = command
            .arg("daemon")
            .args(["--root".as_ref(), self.root().as_os_str()])
            .args(["--addr", &self.address()])
            .args(&self.flags)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        let socket = self.socket();
        wait_until("the daemon's socket", PATIENCE, || {
            let ended = self.child.as_mut().and_then(|c| c.try_wait().unwrap());
            assert!(ended.is_none(), "the daemon ended with {ended:?}:\n{}", std::fs::read_to_string(self.log_path()).unwrap());
            UnixStream::connect(&socket).ok()
        });
    }

    pub fn home(&self) -> &Path {
        self.home.path()
    }

    pub fn root(&self) -> PathBuf {
        self.home.path().join("root")
    }

    pub fn socket(&self) -> PathBuf {
        self.home.path().join("kiln.sock")
    }

    pub fn log_path(&self) -> PathBuf {
        self.home.path().join("daemon.log")
    }

    /// `unix://…`
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the daemon runs").id()
    }

    /// kill -9, and waits for the end.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("the daemon runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self) -> std::process::ExitStatus {
        let mut child = self.child.take().expect("the daemon runs");
        Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
        wait_until("the daemon to stop", PATIENCE, || child.try_wait().unwrap())
    }

    /// A kiln command against this daemon.
    pub fn kiln(&self, args: &[&str]) -> Command {
        let mut command = Command::new(kiln_binary());
        command.args(args).env("BUILDKIT_HOST", self.address()).env("DOCKER_CONFIG", self.home.path()).stdin(Stdio::null());
        command
    }

    /// Runs a kiln command against this daemon; it must succeed.
    pub fn ok(&self, args: &[&str]) -> Output {
        let output = self.kiln(args).output().unwrap();
        assert!(
            output.status.success(),
            "kiln {args:?}: {}\n{}\n{}\ndaemon log:\n{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            std::fs::read_to_string(self.log_path()).unwrap_or_default()
        );
        output
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The kiln binary that was built beside the running test.
///
/// # Panics
/// If it has not been built: `cargo xtask test` does, and so does `cargo build -p kiln`.
pub fn kiln_binary() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let binary = test.ancestors().skip(1).map(|dir| dir.join("kiln")).find(|path| path.is_file());
    binary.unwrap_or_else(|| panic!("no kiln binary beside {}: run `cargo build -p kiln`", test.display()))
}
