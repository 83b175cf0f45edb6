//! `dial-stdio`: standard input and output become a connection to the daemon, for clients that reach us through `exec` or ssh.
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use fault::{Context as _, Fault, Result};

use super::Call;
use super::connect;

const CHUNK: usize = 64 << 10;

/// The end of our input half-closes the connection; the end of the connection ends us, whatever the input does.
pub async fn run(call: &Call) -> Result<()> {
    let address = connect::address(call).unwrap_or_default();
    let (scheme, path) = address.split_once("://").ok_or_else(|| Fault::invalid(format!("invalid address {address}")))?;
    if scheme != "unix" {
        return Err(Fault::invalid(format!("invalid address {address} (expected unix://, got {scheme}://)")));
    }
    let socket = UnixStream::connect(path).with_context(|| format!("failed to connect to {address}"))?;
    let upstream = socket.try_clone().context("failed to share the connection")?;
    // Copies end with their streams; plain threads' work, without a poll in between.
    task::spawn(
        "dial input",
        task::blocking(move || {
            let copied = copy(&mut std::io::stdin().lock(), &mut &upstream);
            let _ = upstream.shutdown(Shutdown::Write);
            copied
        }),
    );
    task::blocking(move || copy(&mut &socket, &mut std::io::stdout().lock())).await
}

/// Hands on every piece at once: the peer waits for it.
fn copy(from: &mut dyn std::io::Read, to: &mut dyn std::io::Write) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => to.write_all(&buffer[..length]).and_then(|()| to.flush()).context("failed to write")?,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Fault::from(e).context("failed to read")),
        }
    }
}
