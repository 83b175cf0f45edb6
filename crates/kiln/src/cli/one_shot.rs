//! A daemon of our own for who does not run one: started by the first build, used by those that follow, gone when it was idle for a while.
use std::ffi::OsStr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use client::{Client, Endpoint};
use fault::{Context as _, Fault, Kind, Result};

use super::Call;
use crate::daemon::lock;

/// Seconds without a client after which such a daemon ends.
const IDLE: u64 = 30;
/// How long it may take to answer for the first time.
const START: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(5);

/// Connects to it; the builds' cache stays in its root between runs.
pub async fn connect(call: &Call) -> Result<Client> {
    let (root, socket) = places(call)?;
    let endpoint = Endpoint::Unix(socket.clone());
    if let Ok(client) = Client::connect(&endpoint, START).await {
        return Ok(client);
    }
    let log = root.join("daemon.log");
    let mut daemon = start(&root, &socket, &log)?;
    first_answer(&socket, Listeners::Any, &mut daemon, &log).await
}

/// Who may listen on the socket of a daemon that was started.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Listeners {
    /// Nobody else.
    Own,
    /// One that was started at the same time, too.
    Any,
}

/// Connects to a daemon that was just started, or says what it ended with.
pub async fn first_answer(socket: &Path, listeners: Listeners, daemon: &mut Child, log: &Path) -> Result<Client> {
    let endpoint = &Endpoint::Unix(socket.to_owned());
    let begun = Instant::now();
    loop {
        match Client::connect(endpoint, START).await {
            Ok(client) => return Ok(client),
            Err(error) if begun.elapsed() > START => return Err(Fault::from(error).context("the daemon that was started does not answer")),
            Err(_) => {}
        }
        if let Some(status) = daemon.try_wait()? {
            let said = text(log);
            // Another one may have been faster, and is about to listen.
            if listeners == Listeners::Own || !is_faster(&said, socket) {
                let line = last_line(&said);
                let advice = if line.contains(lock::IN_USE) { ": use that daemon (--addr) or another --root" } else { "" };
                return Err(Fault::new(Kind::Unknown, format!("the daemon could not be started ({status}): {line}{advice}")));
            }
            if begun.elapsed() > START {
                return Err(Fault::new(Kind::Unavailable, format!("another daemon does not answer: {}", last_line(&said))));
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn places(call: &Call) -> Result<(PathBuf, PathBuf)> {
    let is_root = rustix::process::geteuid().is_root();
    let root = match call.args.get("root").or_else(|| call.environment.filled("KILN_ROOT")) {
        Some(root) => std::path::absolute(root).context("cannot tell where the root is")?,
        None if is_root => "/var/lib/kiln".into(),
        None => call
            .environment
            .data_home()
            .ok_or_else(|| Fault::invalid("no daemon is named and there is no home directory: use --addr or --root"))?
            .join("kiln"),
    };
    // Beside the store, unless that path is too long for a socket.
    let socket = root.join("kiln.sock");
    if socket.as_os_str().len() < 100 {
        return Ok((root, socket));
    }
    let runtime = call.environment.runtime_dir().unwrap_or_else(|| "/run".into());
    let name = oci::Digest::of(root.as_os_str().as_encoded_bytes());
    Ok((root, runtime.join(format!("kiln-{}.sock", &name.hex()[..16]))))
}

fn start(root: &Path, socket: &Path, log: &Path) -> Result<Child> {
    std::fs::create_dir_all(root).with_context(|| format!("failed to create {}", root.display()))?;
    let grants = ["--allow-insecure-entitlement=network.host", "--allow-insecure-entitlement=security.insecure"];
    spawn(socket, log, ["--root".as_ref(), root.as_os_str()].into_iter().chain(grants.map(OsStr::new)))
}

/// Whether what a daemon said that could not be started lets one hope that another will listen on the socket.
fn is_faster(said: &str, socket: &Path) -> bool {
    let Some((_, holder)) = last_line(said).split_once(lock::IN_USE) else { return false };
    let own = address(socket);
    holder.split_once(lock::LISTENS_ON).is_none_or(|(_, addresses)| addresses.split(' ').any(|other| other == own))
}

fn address(socket: &Path) -> String {
    format!("unix://{}", socket.display())
}

/// A daemon in a process group of its own, so that a signal to ours does not end what others build with it.
pub fn spawn(socket: &Path, log: &Path, flags: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Child> {
    let output = std::fs::File::create(log).with_context(|| format!("failed to create {}", log.display()))?;
    let program = std::env::current_exe().context("cannot tell where our own program is")?;
    let mut command = Command::new(program);
    command
        .arg("daemon")
        .args(flags)
        .arg(format!("--addr={}", address(socket)))
        .arg(format!("--idle-exit={IDLE}"))
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .process_group(0);
    command.spawn().context("failed to start the daemon")
}

fn text(log: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned()
}

fn last_line(text: &str) -> &str {
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_daemon_that_may_listen_there_is_waited_for() {
        let socket = Path::new("/var/lib/kiln/kiln.sock");
        let waits = |line: &str| is_faster(&format!("{line}\n"), socket);
        let refused = "kiln: could not lock /var/lib/kiln/buildkitd.lock, another instance running?";
        assert!(waits(refused), "it may have been started at the same time");
        assert!(waits(&format!("{refused} It is process 7 on h, which listens on tcp://[::1]:1 unix:///var/lib/kiln/kiln.sock")));
        assert!(!waits(&format!("{refused} It is process 7 on h, which listens on unix:///var/lib/kiln/kiln.sock2")));
        assert!(!waits("kiln: failed to listen on unix:///var/lib/kiln/kiln.sock"));
    }
}
