//! A network that leads to one listener of the daemon and nowhere else, and the way on from there.
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::net::{TcpSocket, TcpStream};

use super::pool::{Lease, Pool, Source};
use super::{Held, Namespace, Tag, new_namespace, within};
use crate::SandboxError;

/// The same in each, since no two are connected.
const OURS: Ipv4Addr = Ipv4Addr::new(10, 89, 0, 1);
const THEIRS: Ipv4Addr = Ipv4Addr::new(10, 89, 0, 2);
const BROADCAST: Ipv4Addr = Ipv4Addr::new(10, 89, 0, 3);
const PREFIX: u8 = 30;

/// A namespace for containers, connected to one that has nothing but a listener.
#[derive(Debug)]
pub struct Enclosure {
    lease: Lease,
}

impl Enclosure {
    /// The listener's address is what the container connects to.
    pub(super) async fn open(pool: &Arc<Pool>) -> Result<(Self, TcpListener), SandboxError> {
        let lease = pool.get(None).await?;
        let bound = task::blocking(move || {
            let listener = match &lease.namespace().tag {
                // It keeps its namespace.
                Tag::Outside(outside) => within(Some(outside.as_fd()), || TcpListener::bind((OURS, 0))),
                _ => Err(io::ErrorKind::NotFound.into()),
            };
            Ok(listener.map(|listener| (Self { lease }, listener)))
        });
        bound.await.unwrap_or_else(|fault| Err(io::Error::other(fault.to_string()))).map_err(failed)
    }

    pub(crate) fn lease(&self) -> &Lease {
        &self.lease
    }
}

fn failed(error: io::Error) -> SandboxError {
    SandboxError::network("create a network with a proxy".to_owned(), error)
}

/// Makes such pairs of namespaces.
#[derive(Debug)]
pub(super) struct Pairs;

impl Pairs {
    fn connect() -> io::Result<Namespace> {
        let (fd, mut inside) = new_namespace()?;
        let (outer, mut outside) = new_namespace()?;
        outside.add_pair("proxy0", None, "eth0", fd.as_fd())?;
        for (socket, name, address) in [(&mut outside, "proxy0", OURS), (&mut inside, "eth0", THEIRS)] {
            let link = socket.link(name)?.ok_or(io::ErrorKind::NotFound)?;
            socket.ensure_address(link.index, address, PREFIX, BROADCAST)?;
            socket.set_up(link.index)?;
        }
        Ok(Namespace { fd, tag: Tag::Outside(outer) })
    }
}

impl Source for Pairs {
    fn make(&self, _hostname: Option<&str>) -> Result<Namespace, SandboxError> {
        Self::connect().map_err(failed)
    }

    fn release(&self, _namespace: Namespace) -> Result<(), SandboxError> {
        Ok(())
    }
}

/// Connections from where a container would make them.
#[derive(Debug)]
pub struct WayOut(Option<Held>);

impl WayOut {
    pub(super) fn new(held: Option<Held>) -> Self {
        Self(held)
    }

    /// Tries the addresses of the name, which is looked up where the daemon is, in their order.
    pub async fn connect(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let mut outcome = Err(io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address")));
        for address in tokio::net::lookup_host((host, port)).await? {
            outcome = self.connect_to(address).await;
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    async fn connect_to(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let Some(held) = &self.0 else { return TcpStream::connect(address).await };
        let namespace = held.fd().try_clone_to_owned()?;
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let made = task::blocking(move || {
            // A socket stays in the namespace that it was made in.
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            Ok(within(Some(namespace.as_fd()), || Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?)))
        });
        let socket = made.await.unwrap_or_else(|fault| Err(io::Error::other(fault.to_string())))?;
        TcpSocket::from_std_stream(std::net::TcpStream::from(socket)).connect(address).await
    }
}
