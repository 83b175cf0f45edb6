//! `buildctl-daemonless.sh`, the script of upstream's images: one command of buildctl with a daemon of its own, which ends with it.
//!
//! `BUILDKITD_FLAGS` are the daemon's flags. What the daemon keeps stays in its root for the next time.
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use fault::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};

use super::environment::Environment;
use super::one_shot::Listeners;
use super::{Mode, build, one_shot, runtime};

/// Runs the command that `args` (without the program's name) ask for.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let outcome = tempfile::Builder::new().prefix("buildctl-daemonless.").tempdir().context("no room for the daemon's socket");
    outcome.and_then(|dir| run(dir.path(), args)).unwrap_or_else(|fault| {
        build::print_failure(&fault);
        ExitCode::FAILURE
    })
}

fn run(dir: &Path, args: Vec<OsString>) -> Result<ExitCode> {
    let environment = Environment::read();
    let (socket, log) = (dir.join("buildkitd.sock"), dir.join("buildkitd.log"));
    let flags = environment.get("BUILDKITD_FLAGS").unwrap_or_default().split_whitespace();
    let mut daemon = one_shot::spawn(&socket, &log, flags)?;
    let answer = runtime()?.block_on(one_shot::first_answer(&socket, Listeners::Own, &mut daemon, &log));
    let code = answer.map(|_| {
        let address = OsString::from(format!("--addr=unix://{}", socket.display()));
        super::main([address].into_iter().chain(args).collect(), Mode::Buildctl)
    });
    // One that has ended is not signalled: its number may be another process's by now.
    if daemon.try_wait()?.is_none() {
        let _ = kill_process(Pid::from_child(&daemon), Signal::TERM);
        daemon.wait()?;
    }
    code
}
