//! Networks of containers: which one a container gets, and the namespaces that are ready before anybody asks.
//!
//! Start at [`Networks`]. [`bridge`] makes namespaces by itself, [`cni`] has plugins make them; [`pool`] keeps them between containers.
//! A namespace lives by a descriptor and not by a mount, so that the kernel takes it away, with its end of every link, when the daemon ends.
mod bridge;
mod cni;
mod enclosure;
mod links;
mod netlink;
mod nft;
mod pool;

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub use bridge::{Bridge, Subnet};
pub use cni::Cni;
pub use enclosure::{Enclosure, WayOut};
pub use pool::Lease;

use crate::{Network, SandboxError};
use pool::{Pool, Source};

/// What containers get that ask for nothing else.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Mode {
    /// The network that the daemon is in.
    #[default]
    Host,
    /// A loopback interface and nothing else.
    None,
    Bridge(Bridge),
    Cni(Cni),
}

/// How networks are set up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Setup {
    pub mode: Mode,
    /// How many namespaces are kept ready.
    pub pool: usize,
    /// A network namespace to make others in, where the daemon's own is not to be touched.
    pub within: Option<PathBuf>,
    /// A file to lock while the first namespace is made, for daemons that share a bridge.
    pub lock: Option<PathBuf>,
}

/// The networks of one daemon.
#[derive(Debug, Clone, Default)]
pub struct Networks(Arc<Kind>);

#[derive(Debug, Default)]
enum Kind {
    #[default]
    Host,
    None,
    Pooled(Arc<Pool>),
}

/// What a container is put in.
#[derive(Debug)]
pub(crate) enum Place {
    Host,
    /// A new namespace with a loopback interface.
    Alone,
    Leased(Box<Lease>),
    Enclosed(Arc<Enclosure>),
}

/// What keeps a namespace for a container.
pub(crate) enum Held {
    Lease(Lease),
    Enclosure(Arc<Enclosure>),
}

impl Held {
    pub fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Lease(lease) => lease.fd(),
            Self::Enclosure(enclosure) => enclosure.fd(),
        }
    }
}

impl Networks {
    /// Sets networks up and makes one namespace, to fail now and not in the first step. `state` is a directory of its own. Must be called within a runtime.
    pub fn open(setup: Setup, state: &Path) -> Result<Self, SandboxError> {
        let Setup { mode, pool, within, lock } = setup;
        let _locked = lock.map(|path| hold(&path).map_err(SandboxError::io(format!("lock {}", path.display())))).transpose()?;
        let base = match within {
            Some(path) => Some(open(&path).map_err(SandboxError::io(format!("open network namespace {}", path.display())))?),
            None => None,
        };
        let source: Arc<dyn Source> = match mode {
            Mode::Host => return Ok(Self(Arc::new(Kind::Host))),
            Mode::None => return Ok(Self(Arc::new(Kind::None))),
            Mode::Bridge(bridge) => Arc::new(bridge.open(base, state)?),
            Mode::Cni(cni) => Arc::new(cni.open(base, state)?),
        };
        Ok(Self(Arc::new(Kind::Pooled(Pool::open(source, pool)?))))
    }

    /// As workers tell it of themselves.
    pub fn label(&self) -> &'static str {
        match *self.0 {
            Kind::Host => "host",
            Kind::None => "none",
            Kind::Pooled(_) => "cni",
        }
    }

    /// What a container gets; `hostname` if it has one of its own.
    pub(crate) async fn place(&self, wanted: &Network, hostname: Option<&str>) -> Result<Place, SandboxError> {
        match (wanted, &*self.0) {
            (Network::Host, _) | (Network::Default, Kind::Host) => Ok(Place::Host),
            (Network::Enclosed(enclosure), _) => Ok(Place::Enclosed(enclosure.clone())),
            (Network::None, _) | (Network::Default, Kind::None) => Ok(Place::Alone),
            (Network::Default, Kind::Pooled(pool)) => Ok(Place::Leased(Box::new(pool.get(hostname).await?))),
        }
    }

    /// A way for the daemon itself to where a container would get.
    pub async fn way_out(&self, network: &Network) -> Result<WayOut, SandboxError> {
        match self.place(network, None).await? {
            Place::Host => Ok(WayOut::new(None)),
            Place::Leased(lease) => Ok(WayOut::new(Some(*lease))),
            Place::Alone | Place::Enclosed(_) => Err(SandboxError::Invalid("there is no way out of this network".to_owned())),
        }
    }

    /// Takes everything away that was set up. Containers that still run keep what they have until they end.
    pub async fn close(&self) {
        if let Kind::Pooled(pool) = &*self.0 {
            pool.close().await;
        }
    }
}

/// A network namespace with what belongs to it.
#[derive(Debug)]
pub(crate) struct Namespace {
    fd: OwnedFd,
    /// Its address on a bridge, or its name for plugins.
    tag: Tag,
}

#[derive(Debug)]
enum Tag {
    Address(Ipv4Addr),
    Attachment(Box<cni::Attachment>),
}

/// As long as the file is open.
fn hold(path: &Path) -> io::Result<std::fs::File> {
    let file = std::fs::File::options().create(true).append(true).open(path)?;
    file.lock()?;
    Ok(file)
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?)
}

/// Does it in a thread of its own, in the given network namespace. The thread ends with it, so nobody else is ever found there.
fn within<T: Send>(namespace: Option<BorrowedFd<'_>>, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let enter_and_work = || {
            if let Some(namespace) = namespace {
                move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?;
            }
            work()
        };
        let thread = std::thread::Builder::new().name("network".to_owned()).spawn_scoped(scope, enter_and_work)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
    })
}

/// A new namespace whose loopback interface is up, and a socket into it.
fn new_namespace() -> io::Result<(OwnedFd, netlink::Socket)> {
    within(None, || {
        crate::sys::new_network_namespace()?;
        let mut socket = netlink::Socket::route()?;
        socket.loopback_up()?;
        Ok((open(Path::new("/proc/thread-self/ns/net"))?, socket))
    })
}
