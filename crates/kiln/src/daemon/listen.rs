//! Listeners: unix sockets, tcp, and sockets that systemd opened.
use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// A socket that accepts.
pub enum Listener {
    Unix { listener: UnixListener, path: Option<PathBuf>, tls: Option<TlsAcceptor> },
    Tcp { listener: TcpListener, tls: Option<TlsAcceptor> },
}

/// Opens the listener of the debug endpoint; without a scheme it is tcp's.
pub fn open_debug(address: &str) -> Result<Listener, String> {
    let address = if address.contains("://") { address.to_owned() } else { format!("tcp://{address}") };
    let failed = |e: std::io::Error| format!("failed to listen on {address} for debugging: {e}");
    let (listener, place) = match address.split_once("://") {
        Some(("unix", path)) => {
            let (path, listener) = (PathBuf::from(path), unix(Path::new(path), (None, None)).map_err(failed)?);
            (Listener::Unix { listener, path: Some(path.clone()), tls: None }, path.display().to_string())
        }
        Some(("tcp", place)) => {
            let listener = tcp(place).map_err(failed)?;
            let place = listener.local_addr().map_err(failed)?.to_string();
            (Listener::Tcp { listener, tls: None }, place)
        }
        _ => return Err(format!("debug address {address} not supported: unix or tcp is")),
    };
    tracing::info!("debug and metrics endpoint on {place}");
    Ok(listener)
}

/// Opens the listener for one address.
pub fn open(address: &str, owner: (Option<u32>, Option<u32>), tls: Option<&TlsAcceptor>) -> Result<Listener, String> {
    let Some((scheme, rest)) = address.split_once("://") else {
        return Err(format!("address {address} does not contain proto, you meant unix://{address} ?"));
    };
    match scheme {
        "unix" => {
            if tls.is_some() {
                tracing::warn!("TLS is disabled for {address}");
            }
            let path = PathBuf::from(rest);
            let listener = unix(&path, owner).map_err(|e| format!("failed to listen on {address}: {e}"))?;
            tracing::info!("running server on {}", path.display());
            Ok(Listener::Unix { listener, path: Some(path), tls: None })
        }
        "tcp" => {
            if tls.is_none() {
                tracing::warn!("TLS is not enabled for {address}. enabling mutual TLS authentication is highly recommended");
            }
            let listener = tcp(rest).map_err(|e| format!("failed to listen on {address}: {e}"))?;
            if let Ok(local) = listener.local_addr() {
                tracing::info!("running server on {local}");
            }
            Ok(Listener::Tcp { listener, tls: tls.cloned() })
        }
        "fd" => activated(tls.cloned()),
        _ => Err(format!("addr {address} not supported")),
    }
}

fn unix(path: &Path, (uid, gid): (Option<u32>, Option<u32>)) -> std::io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    // Left over from a daemon that was killed: the lock on the root says that it is gone, and nobody else answers.
    if path.exists() && std::os::unix::net::UnixStream::connect(path).is_err() {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    if uid.is_some() || gid.is_some() {
        chown(path, uid, gid)?;
    }
    Ok(listener)
}

fn tcp(address: &str) -> std::io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// systemd's protocol: `LISTEN_PID` is ours, descriptors start at 3.
fn activated(tls: Option<TlsAcceptor>) -> Result<Listener, String> {
    let none = "no sockets found via socket activation: make sure the service was started by systemd";
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u32>().ok());
    if number("LISTEN_PID") != Some(std::process::id()) || number("LISTEN_FDS").unwrap_or(0) == 0 {
        return Err(none.into());
    }
    // Through /proc, so that no descriptor has to be conjured up from a number.
    let fd: OwnedFd = reopen(3).map_err(|e| format!("{none}: {e}"))?;
    let is_unix = rustix::net::getsockname(fd.as_fd()).is_ok_and(|a| a.address_family() == rustix::net::AddressFamily::UNIX);
    let failed = |e: std::io::Error| format!("failed to use the socket from systemd: {e}");
    if is_unix {
        let listener = std::os::unix::net::UnixListener::from(fd);
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Listener::Unix { listener: UnixListener::from_std(listener).map_err(failed)?, path: None, tls })
    } else {
        let listener = std::net::TcpListener::from(fd);
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Listener::Tcp { listener: TcpListener::from_std(listener).map_err(failed)?, tls })
    }
}

/// A descriptor of this process, duplicated by a system call that takes it from the process itself.
fn reopen(number: i32) -> std::io::Result<OwnedFd> {
    let pid = rustix::process::getpid();
    let own = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    Ok(rustix::process::pidfd_getfd(own, number, rustix::process::PidfdGetfdFlags::empty())?)
}

/// A connection from a client, counted as long as it lives.
pub struct Connection {
    io: Pin<Box<dyn Io>>,
    _count: Count,
}

trait Io: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Io for T {}

/// How many connections are open.
#[derive(Clone, Default)]
pub struct Counter(watch::Sender<usize>);

struct Count(watch::Sender<usize>);

impl Counter {
    /// The number, now and after each change.
    pub fn count(&self) -> watch::Receiver<usize> {
        self.0.subscribe()
    }

    fn add(&self) -> Count {
        self.0.send_modify(|count| *count += 1);
        Count(self.0.clone())
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Listener {
    /// The next connection, with its TLS handshake still to do.
    pub async fn accept(&self) -> std::io::Result<Incoming> {
        match self {
            Self::Unix { listener, tls, .. } => {
                let (stream, _) = listener.accept().await?;
                Ok(Incoming { io: Box::pin(stream), tls: tls.clone() })
            }
            Self::Tcp { listener, tls } => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Incoming { io: Box::pin(stream), tls: tls.clone() })
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix { path: Some(path), .. } = self {
            let _ = fs::remove_file(path);
        }
    }
}

/// A connection before its handshake.
pub struct Incoming {
    io: Pin<Box<dyn Io>>,
    tls: Option<TlsAcceptor>,
}

impl Incoming {
    pub async fn establish(self, counter: &Counter) -> std::io::Result<Connection> {
        let count = counter.add();
        let io = match self.tls {
            None => self.io,
            Some(tls) => Box::pin(tls.accept(self.io).await?),
        };
        Ok(Connection { io, _count: count })
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        self.io.as_mut().poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<std::io::Result<usize>> {
        self.io.as_mut().poll_write(cx, data)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[std::io::IoSlice<'_>]) -> Poll<std::io::Result<usize>> {
        self.io.as_mut().poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.io.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.io.as_mut().poll_shutdown(cx)
    }
}
