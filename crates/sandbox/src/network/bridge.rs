//! The built-in bridge: each namespace has a pair of interfaces, of which one is a port of a bridge in the daemon's network. The bridge
//! is the gateway; what leaves for elsewhere gets the machine's address.
use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use super::netlink::Socket;
use super::nft::Table;
use super::pool::Source;
use super::{Namespace, Tag, new_namespace, within};
use crate::SandboxError;

/// Says of a bridge that it goes when its last port does.
const ALIAS: &str = "kiln";
const INTERFACE: &str = "eth0";

/// Which bridge, and which addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// Made if it is not there.
    pub name: String,
    pub subnet: Subnet,
}

impl Default for Bridge {
    fn default() -> Self {
        Self { name: "buildkit0".to_owned(), subnet: Subnet { network: Ipv4Addr::new(10, 10, 0, 0), prefix: 16 } }
    }
}

/// An IPv4 network, written `10.10.0.0/16`. Its first address is the gateway's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    network: Ipv4Addr,
    prefix: u8,
}

impl FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("invalid bridge subnet {text:?}: an IPv4 network such as 10.10.0.0/16 is wanted");
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let (address, prefix): (Ipv4Addr, u8) = (address.parse().map_err(|_| wrong())?, prefix.parse().map_err(|_| wrong())?);
        if !(8..=29).contains(&prefix) {
            return Err(format!("invalid bridge subnet {text:?}: its prefix is between 8 and 29"));
        }
        let whole = Self { network: address, prefix };
        Ok(Self { network: (address.to_bits() & whole.mask().to_bits()).into(), prefix })
    }
}

impl Subnet {
    pub(super) fn network(self) -> Ipv4Addr {
        self.network
    }

    pub(super) fn mask(self) -> Ipv4Addr {
        (u32::MAX << (32 - self.prefix)).into()
    }

    fn at(self, number: u32) -> Ipv4Addr {
        (self.network.to_bits() + number).into()
    }

    fn gateway(self) -> Ipv4Addr {
        self.at(1)
    }

    fn broadcast(self) -> Ipv4Addr {
        (self.network.to_bits() | !self.mask().to_bits()).into()
    }

    /// How many addresses containers can have.
    fn room(self) -> u32 {
        !self.mask().to_bits() - 2
    }
}

impl Bridge {
    pub(super) fn open(self, base: Option<OwnedFd>, state: &Path) -> Result<Open, SandboxError> {
        let failed = |action: &'static str| {
            let name = self.name.clone();
            move |error: io::Error| SandboxError::network(format!("{action} {name:?}"), error)
        };
        if self.name.is_empty() || self.name.len() > 15 || self.name.contains(['/', ' ']) {
            return Err(SandboxError::Invalid(format!("bridge name {:?}: at most 15 letters and digits are wanted", self.name)));
        }
        let socket = within(base.as_ref().map(|fd| fd.as_fd()), Socket::route).map_err(failed("set up bridge"))?;
        let mut open = Open { bridge: self.clone(), base, socket: Mutex::new(socket), index: 0, table: None, taken: Mutex::default() };
        open.index = open.ensure_bridge().map_err(failed("set up bridge"))?;
        let table = format!("kiln-{:016x}", fingerprint(state.as_os_str().as_encoded_bytes()));
        let make = || {
            // As every router has it. It stays so: others may rely on it by now.
            if std::fs::read_to_string(FORWARD)?.trim() != "1" {
                std::fs::write(FORWARD, "1")?;
            }
            Table::make(&table, &self.name, self.subnet)
        };
        let table =
            within(open.base.as_ref().map(|fd| fd.as_fd()), make).map_err(failed("set up forwarding and address translation for bridge"));
        open.table = Some(Mutex::new(table?));
        Ok(open)
    }
}

const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// FNV-1a: the same for the same state directory, whatever runs there.
fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A bridge that is set up.
#[derive(Debug)]
pub(super) struct Open {
    bridge: Bridge,
    base: Option<OwnedFd>,
    /// Into the namespace that the bridge is in.
    socket: Mutex<Socket>,
    index: u32,
    table: Option<Mutex<Table>>,
    taken: Mutex<Addresses>,
}

impl Open {
    /// Its index. One that is there is used as it is, but for its address: somebody may have set it up with care, or another daemon uses it.
    fn ensure_bridge(&self) -> io::Result<u32> {
        let Bridge { name, subnet } = &self.bridge;
        let mut socket = self.socket();
        match socket.link(name)? {
            None => match socket.add_bridge(name, ALIAS) {
                Err(error) if error.raw_os_error() != Some(libc::EEXIST) => return Err(error),
                _ => {}
            },
            Some(link) if link.kind != "bridge" => return Err(io::Error::other("an interface of that name exists and is not a bridge")),
            Some(_) => {}
        }
        let link = socket.link(name)?.ok_or(io::ErrorKind::NotFound)?;
        socket.ensure_address(link.index, subnet.gateway(), subnet.prefix, subnet.broadcast())?;
        socket.set_up(link.index)?;
        Ok(link.index)
    }

    fn socket(&self) -> std::sync::MutexGuard<'_, Socket> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn addresses(&self) -> std::sync::MutexGuard<'_, Addresses> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(&self, address: Ipv4Addr) -> io::Result<OwnedFd> {
        let subnet = self.bridge.subnet;
        let (fd, mut inside) = new_namespace()?;
        // Unique in the namespace of the bridge as long as addresses are.
        let name = format!("kiln{:08x}", address.to_bits());
        let pair = |index| self.socket().add_pair(&name, Some(index), INTERFACE, fd.as_fd());
        match pair(self.index) {
            // Somebody else removed the bridge.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => pair(self.ensure_bridge()?)?,
            outcome => outcome?,
        }
        let link = inside.link(INTERFACE)?.ok_or(io::ErrorKind::NotFound)?;
        inside.ensure_address(link.index, address, subnet.prefix, subnet.broadcast())?;
        inside.set_up(link.index)?;
        inside.add_default_route(subnet.gateway())?;
        Ok(fd)
    }
}

impl Source for Open {
    fn make(&self, _hostname: Option<&str>) -> Result<Namespace, SandboxError> {
        let tries = 16;
        for _ in 0..tries {
            let address = self.addresses().take(self.bridge.subnet).ok_or_else(|| {
                SandboxError::Invalid(format!(
                    "no address is left in the subnet of bridge {}: give it a larger bridgeSubnet",
                    self.bridge.name
                ))
            })?;
            match self.connect(address) {
                Ok(fd) => return Ok(Namespace { fd, tag: Tag::Address(address) }),
                // Another daemon on this bridge has it. It stays taken here.
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                Err(error) => {
                    self.addresses().give_back(address);
                    return Err(SandboxError::network(format!("connect a container to bridge {:?}", self.bridge.name), error));
                }
            }
        }
        Err(SandboxError::Invalid(format!("other daemons have the addresses of bridge {}", self.bridge.name)))
    }

    fn release(&self, namespace: Namespace) -> Result<(), SandboxError> {
        if let Tag::Address(address) = namespace.tag {
            // Now, and not when the kernel gets to it: the address may be wanted again at once.
            let mut socket = self.socket();
            if let Ok(Some(link)) = socket.link(&format!("kiln{:08x}", address.to_bits())) {
                let _ = socket.delete(link.index);
            }
            self.addresses().give_back(address);
        }
        Ok(())
    }

    /// The last daemon on a bridge of ours takes it away.
    fn close(&self) {
        let mut socket = self.socket();
        let Ok(Some(link)) = socket.link(&self.bridge.name) else { return };
        if link.alias == ALIAS && matches!(socket.has_ports(link.index), Ok(false)) {
            let _ = socket.delete(link.index);
        }
    }
}

/// Which addresses are in use. The search begins anywhere, so that daemons that share a bridge seldom meet.
#[derive(Debug, Default)]
struct Addresses {
    taken: BTreeSet<Ipv4Addr>,
    next: Option<u32>,
}

impl Addresses {
    fn take(&mut self, subnet: Subnet) -> Option<Ipv4Addr> {
        use std::hash::BuildHasher as _;
        let room = subnet.room();
        let start = self.next.unwrap_or_else(|| std::hash::RandomState::new().hash_one(0) as u32) % room;
        let address = (0..room).map(|offset| subnet.at(2 + (start + offset) % room)).find(|address| !self.taken.contains(address))?;
        self.next = Some(address.to_bits() - subnet.network.to_bits() - 1);
        self.taken.insert(address);
        Some(address)
    }

    fn give_back(&mut self, address: Ipv4Addr) {
        self.taken.remove(&address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_are_networks() {
        let subnet: Subnet = "10.20.30.40/24".parse().unwrap();
        assert_eq!((subnet.network(), subnet.mask()), ([10, 20, 30, 0].into(), [255, 255, 255, 0].into()));
        assert_eq!((subnet.gateway(), subnet.broadcast(), subnet.room()), ([10, 20, 30, 1].into(), [10, 20, 30, 255].into(), 253));
        for wrong in ["10.0.0.0", "10.0.0.0/30", "10.0.0.0/x", "fd00::/64", ""] {
            assert!(wrong.parse::<Subnet>().unwrap_err().contains("bridge subnet"), "{wrong}");
        }
    }

    #[test]
    fn every_address_is_given_once() {
        let subnet: Subnet = "192.168.7.0/29".parse().unwrap();
        let mut addresses = Addresses::default();
        let all: BTreeSet<Ipv4Addr> = (0..5).map(|_| addresses.take(subnet).unwrap()).collect();
        assert_eq!(all, (2..7).map(|last| Ipv4Addr::new(192, 168, 7, last)).collect());
        assert_eq!(addresses.take(subnet), None);
        addresses.give_back([192, 168, 7, 4].into());
        assert_eq!(addresses.take(subnet), Some([192, 168, 7, 4].into()));
    }
}
