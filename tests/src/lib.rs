//! Ring four: the house as its users meet it. The daemon runs as a process, clients are real ones, the registry is Debian's; see `tests/`.
//!
//! All of them need root (steps run in real containers) and the packages that `cargo xtask test` installs.
#![allow(clippy::unwrap_used)]
pub mod session;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use testkit::Daemon;

/// Debian's static busybox for an architecture, as Debian names it.
pub fn foreign_busybox(architecture: &str) -> PathBuf {
    let all = std::env::var_os("KILN_TEST_BUSYBOXES").expect("KILN_TEST_BUSYBOXES is a directory of Debian's: `cargo xtask test` sets it");
    Path::new(&all).join(architecture).join("usr/bin/busybox")
}

/// Docker's buildx, unmodified, with a builder `kiln` that is the daemon.
pub struct Buildx<'a> {
    daemon: &'a Daemon,
}

impl<'a> Buildx<'a> {
    pub fn new(daemon: &'a Daemon) -> Self {
        let buildx = Self { daemon };
        buildx.ok(&["create", "--name", "kiln", "--driver", "remote", &daemon.address()]);
        buildx
    }

    pub fn ok(&self, args: &[&str]) -> Output {
        self.succeeds(self.command("KILN_TEST_BUILDX").args(args))
    }

    /// A program of Docker's that a variable names, with the builder's configuration.
    pub fn command(&self, variable: &str) -> Command {
        let program =
            std::env::var_os(variable).unwrap_or_else(|| panic!("{variable} names a program of Debian's: `cargo xtask test` sets it"));
        let home = self.daemon.home();
        let mut command = Command::new(program);
        command.env("DOCKER_CONFIG", home.join("docker")).env("BUILDX_CONFIG", home.join("buildx")).env("HOME", home);
        command
    }

    pub fn succeeds(&self, command: &mut Command) -> Output {
        let output = command.output().unwrap();
        assert!(
            output.status.success(),
            "{command:?}: {}\n{}\ndaemon log:\n{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            std::fs::read_to_string(self.daemon.log_path()).unwrap()
        );
        output
    }
}
