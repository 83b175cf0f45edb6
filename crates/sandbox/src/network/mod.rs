//! Networks of containers: which one a container gets, and the namespaces that are ready before anybody asks.
//!
//! Start at [`Networks`]. [`bridge`] makes namespaces by itself, [`cni`] has plugins make them; [`pool`] keeps them between containers.
//! [`uplink`] connects a user's daemon's containers where it may not touch the machine's network.
//! A namespace lives by a descriptor and not by a mount, so that the kernel takes it away, with its end of every link, when the daemon ends.
mod bridge;
mod cni;
mod enclosure;
mod links;
mod netlink;
mod nft;
mod pool;
mod uplink;

use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub use bridge::{Bridge, Subnet};
pub use cni::Cni;
pub use enclosure::{Enclosure, WayOut};
pub use pool::Lease;
pub use uplink::{Carrier, Uplink};

use crate::{Network, SandboxError};
use pool::{Pool, Source};
use uplink::Carried;

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
    /// A network to be made for the daemon's containers, which is then the host's to them, and the one that others are made in.
    pub uplink: Option<Uplink>,
    /// A file to lock while the first namespace is made, for daemons that share a bridge.
    pub lock: Option<PathBuf>,
}

/// The networks of one daemon.
#[derive(Debug, Clone)]
pub struct Networks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    default: Kind,
    uplink: Option<Arc<Carried>>,
    alone: Arc<Pool>,
    enclosed: Arc<Pool>,
}

#[derive(Debug)]
enum Kind {
    Host,
    None,
    Pooled(Arc<Pool>),
}

impl Default for Networks {
    fn default() -> Self {
        Self::of(Kind::Host, None)
    }
}

/// What a container is put in.
#[derive(Debug)]
pub(crate) enum Place {
    Host,
    Given(Held),
}

/// What keeps a namespace for a container.
#[derive(Debug)]
pub(crate) enum Held {
    Lease(Box<Lease>),
    Enclosure(Arc<Enclosure>),
    Shared(Arc<Carried>),
}

impl Held {
    pub fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Lease(lease) => lease.fd(),
            Self::Enclosure(enclosure) => enclosure.lease().fd(),
            Self::Shared(carried) => carried.fd(),
        }
    }

    /// Its container could change it.
    pub fn spoil(&self) {
        match self {
            Self::Lease(lease) => lease.spoil(),
            Self::Enclosure(enclosure) => enclosure.lease().spoil(),
            Self::Shared(_) => {}
        }
    }
}

impl Networks {
    fn of(default: Kind, uplink: Option<Arc<Carried>>) -> Self {
        // Most daemons never need either, so none is made ahead of the first.
        Self(Arc::new(Inner { default, uplink, alone: Pool::new(Arc::new(Alone), 0), enclosed: Pool::new(Arc::new(enclosure::Pairs), 0) }))
    }

    /// Sets networks up and makes one namespace, to fail now and not in the first step. `state` is a directory of its own. Must be called within a runtime.
    pub fn open(setup: Setup, state: &Path) -> Result<Self, SandboxError> {
        let Setup { mode, pool, within, uplink, lock } = setup;
        let _locked = lock.map(|path| hold(&path).map_err(SandboxError::io(format!("lock {}", path.display())))).transpose()?;
        let uplink = uplink.map(|uplink| uplink.open(state)).transpose()?;
        let base = match (&uplink, within) {
            (Some(uplink), _) => Some(uplink.fd().try_clone_to_owned().map_err(SandboxError::io("keep a network namespace"))?),
            (None, Some(path)) => Some(open(&path).map_err(SandboxError::io(format!("open network namespace {}", path.display())))?),
            (None, None) => None,
        };
        let source: Arc<dyn Source> = match mode {
            Mode::Host => return Ok(Self::of(Kind::Host, uplink)),
            Mode::None => return Ok(Self::of(Kind::None, uplink)),
            Mode::Bridge(bridge) => Arc::new(bridge.open(base, state)?),
            Mode::Cni(cni) => Arc::new(cni.open(base, state)?),
        };
        Ok(Self::of(Kind::Pooled(Pool::open(source, pool)?), uplink))
    }

    /// As workers tell it of themselves.
    pub fn label(&self) -> &'static str {
        match self.0.default {
            Kind::Host => "host",
            Kind::None => "none",
            Kind::Pooled(_) => "cni",
        }
    }

    /// What a container gets; `hostname` if it has one of its own.
    pub(crate) async fn place(&self, wanted: &Network, hostname: Option<&str>) -> Result<Place, SandboxError> {
        let pool = match (wanted, &self.0.default) {
            (Network::Host, _) | (Network::Default, Kind::Host) => {
                return Ok(self.uplink().await?.map_or(Place::Host, |uplink| Place::Given(Held::Shared(uplink))));
            }
            (Network::Enclosed(enclosure), _) => return Ok(Place::Given(Held::Enclosure(enclosure.clone()))),
            (Network::None, _) | (Network::Default, Kind::None) => &self.0.alone,
            (Network::Default, Kind::Pooled(pool)) => {
                self.uplink().await?;
                pool
            }
        };
        Ok(Place::Given(Held::Lease(Box::new(pool.get(hostname).await?))))
    }

    /// What containers have for the host's network, if that is not the daemon's own.
    async fn uplink(&self) -> Result<Option<Arc<Carried>>, SandboxError> {
        let Some(uplink) = self.0.uplink.clone() else { return Ok(None) };
        let ensured = task::blocking(move || Ok(uplink.ensure().map(|()| uplink)));
        ensured.await.unwrap_or_else(|fault| Err(SandboxError::Helper(fault.to_string()))).map(Some)
    }

    /// The only name server that containers reach, if there is one of that kind.
    pub(crate) fn nameserver(&self) -> Option<IpAddr> {
        self.0.uplink.as_ref().map(|_| uplink::NAMESERVER)
    }

    /// A network for one container, and the listener that it leads to.
    pub async fn enclosure(&self) -> Result<(Enclosure, TcpListener), SandboxError> {
        Enclosure::open(&self.0.enclosed).await
    }

    /// A way for the daemon itself to where a container would get.
    pub async fn way_out(&self, network: &Network) -> Result<WayOut, SandboxError> {
        match (network, &self.0.default) {
            (Network::None | Network::Enclosed(_), _) | (Network::Default, Kind::None) => {
                Err(SandboxError::Invalid("there is no way out of this network".to_owned()))
            }
            _ => match self.place(network, None).await? {
                Place::Host => Ok(WayOut::new(None)),
                Place::Given(held) => Ok(WayOut::new(Some(held))),
            },
        }
    }

    /// Takes everything away that was set up. Containers that still run keep what they have until they end.
    pub async fn close(&self) {
        let Inner { default, uplink, alone, enclosed } = &*self.0;
        let pooled = if let Kind::Pooled(pool) = default { Some(pool) } else { None };
        for pool in [alone, enclosed].into_iter().chain(pooled) {
            pool.close().await;
        }
        if let Some(uplink) = uplink {
            uplink.close();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(uplink) = &self.uplink {
            uplink.close();
        }
    }
}

/// A network namespace with what belongs to it.
#[derive(Debug)]
pub(crate) struct Namespace {
    fd: OwnedFd,
    tag: Tag,
}

impl Namespace {
    /// Whether nothing of a container is left in there: no socket, whoever may have been handed it, and no connection that lingers. With
    /// its processes gone and without CAP_NET_ADMIN there is nothing else that the next container could meet.
    fn is_unused(&self) -> bool {
        let outside = if let Tag::Outside(fd) = &self.tag { Some(fd) } else { None };
        let unused = |fd: &OwnedFd| {
            let statistics = within(Some(fd.as_fd()), || std::fs::read_to_string("/proc/thread-self/net/sockstat"));
            statistics.is_ok_and(|text| counts_no_socket(&text))
        };
        unused(&self.fd) && outside.is_none_or(unused)
    }
}

/// Reads proc(5)'s `net/sockstat`, whose figures for sockets in use and for TIME_WAIT are the namespace's own.
fn counts_no_socket(statistics: &str) -> bool {
    let figure = |line: &str, name: &str| {
        let words = statistics.lines().find_map(|text| text.strip_prefix(line))?;
        words.split_whitespace().skip_while(|word| *word != name).nth(1)?.parse::<u64>().ok()
    };
    figure("sockets:", "used") == Some(0) && figure("TCP:", "tw") == Some(0)
}

#[derive(Debug)]
enum Tag {
    Nothing,
    /// Its address on a bridge.
    Address(Ipv4Addr),
    /// Its name for plugins.
    Attachment(Box<cni::Attachment>),
    /// The namespace that it is connected to.
    Outside(OwnedFd),
}

/// Makes namespaces with a loopback interface and nothing else.
#[derive(Debug)]
struct Alone;

impl Source for Alone {
    fn make(&self, _hostname: Option<&str>) -> Result<Namespace, SandboxError> {
        let made = new_namespace().map_err(|error| SandboxError::network("create a network namespace".to_owned(), error));
        made.map(|(fd, _)| Namespace { fd, tag: Tag::Nothing })
    }

    fn release(&self, _namespace: Namespace) -> Result<(), SandboxError> {
        Ok(())
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_and_lingering_connections_are_counted() {
        let statistics = |used: u32, lingering: u32| {
            format!("sockets: used {used}\nTCP: inuse 0 orphan 3 tw {lingering} alloc 9 mem 1\nUDP: inuse 0 mem 0\n")
        };
        assert!(counts_no_socket(&statistics(0, 0)));
        assert!(!counts_no_socket(&statistics(1, 0)));
        assert!(!counts_no_socket(&statistics(0, 1)));
        assert!(!counts_no_socket("sockets: used 0\n"));
    }
}
