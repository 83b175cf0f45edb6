//! What systemd wants to know, if it asked.
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Tells the service manager a state such as `READY=1`. Without one nothing happens.
pub fn state(text: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&path, text) {
        tracing::warn!(%error, "failed to notify the service manager");
    }
}

fn send(path: &std::ffi::OsStr, text: &str) -> std::io::Result<()> {
    use std::os::linux::net::SocketAddrExt as _;
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(path)?,
    };
    UnixDatagram::unbound()?.send_to_addr(text.as_bytes(), &address)?;
    Ok(())
}
