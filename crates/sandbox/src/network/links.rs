//! Links, addresses and routes, each by one request to the kernel.
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use super::netlink::{CREATE, DUMP, ENSURE, Message, Socket, find, text};

const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const GETLINK: u16 = 18;
const NEWADDR: u16 = 20;
const NEWROUTE: u16 = 24;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFINFO: usize = 16;
const UP: u32 = libc::IFF_UP as u32;
const LOOPBACK: u32 = 1;

/// A link that is there.
#[derive(Debug)]
pub(super) struct Link {
    pub index: u32,
    pub kind: String,
    pub alias: String,
    address: Vec<u8>,
    master: u32,
}

fn info(index: u32, flags: u32) -> [u8; IFINFO] {
    let mut bytes = [0; IFINFO];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..16].copy_from_slice(&flags.to_ne_bytes());
    bytes
}

impl Socket {
    pub fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        let answers = match self.ask(Message::new(GETLINK, 0, &info(0, 0)).text(IFLA_IFNAME, name)) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
            answers => answers?,
        };
        Ok(answers.first().map(Link::read))
    }

    /// Whether the bridge has a port.
    pub fn has_ports(&mut self, bridge: u32) -> io::Result<bool> {
        let links = self.ask(Message::new(GETLINK, DUMP, &info(0, 0)))?;
        Ok(links.iter().any(|link| Link::read(link).master == bridge))
    }

    /// A new bridge that says in its alias who made it.
    pub fn add_bridge(&mut self, name: &str, alias: &str) -> io::Result<()> {
        let bridge =
            Message::new(NEWLINK, CREATE, &info(0, 0)).text(IFLA_IFNAME, name).nest(IFLA_LINKINFO, |m| m.text(IFLA_INFO_KIND, "bridge"));
        self.ask(bridge)?;
        let made = self.link(name)?.ok_or(io::ErrorKind::NotFound)?;
        // An address that was set stays when ports come and go; one that was found is that of a port.
        self.ask(Message::new(NEWLINK, 0, &info(made.index, 0)).put(IFLA_IFALIAS, alias.as_bytes()).put(IFLA_ADDRESS, &made.address))?;
        Ok(())
    }

    /// A pair: `name` here, a port of the bridge `master` if one is given, and `peer` in another namespace, where it is still down.
    pub fn add_pair(&mut self, name: &str, master: Option<u32>, peer: &str, namespace: BorrowedFd<'_>) -> io::Result<()> {
        let mut message = Message::new(NEWLINK, CREATE, &info(0, UP)).text(IFLA_IFNAME, name);
        if let Some(master) = master {
            message = message.number(IFLA_MASTER, master);
        }
        let message = message.nest(IFLA_LINKINFO, |m| {
            m.text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |m| {
                m.nest(VETH_INFO_PEER, |m| m.raw(&info(0, 0)).text(IFLA_IFNAME, peer).number(IFLA_NET_NS_FD, namespace.as_raw_fd() as u32))
            })
        });
        self.ask(message).map(drop)
    }

    pub fn set_up(&mut self, index: u32) -> io::Result<()> {
        self.ask(Message::new(NEWLINK, 0, &info(index, UP))).map(drop)
    }

    pub fn loopback_up(&mut self) -> io::Result<()> {
        self.set_up(LOOPBACK)
    }

    pub fn delete(&mut self, index: u32) -> io::Result<()> {
        self.ask(Message::new(DELLINK, 0, &info(index, 0))).map(drop)
    }

    /// Gives a link an address, unless it has it.
    pub fn ensure_address(&mut self, index: u32, address: Ipv4Addr, prefix: u8, broadcast: Ipv4Addr) -> io::Result<()> {
        const LOCAL: u16 = 2;
        const ADDRESS: u16 = 1;
        const BROADCAST: u16 = 4;
        let mut header = [libc::AF_INET as u8, prefix, 0, 0, 0, 0, 0, 0];
        header[4..].copy_from_slice(&index.to_ne_bytes());
        let message = Message::new(NEWADDR, CREATE, &header).put(LOCAL, &address.octets()).put(ADDRESS, &address.octets());
        match self.ask(message.put(BROADCAST, &broadcast.octets())) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    pub fn add_default_route(&mut self, gateway: Ipv4Addr) -> io::Result<()> {
        const GATEWAY: u16 = 5;
        const MAIN: u8 = 254;
        const BOOT: u8 = 3;
        const UNICAST: u8 = 1;
        let header = [libc::AF_INET as u8, 0, 0, 0, MAIN, BOOT, 0, UNICAST, 0, 0, 0, 0];
        self.ask(Message::new(NEWROUTE, ENSURE, &header).put(GATEWAY, &gateway.octets())).map(drop)
    }
}

impl Link {
    fn read(answer: &super::netlink::Answer) -> Self {
        let header: [u8; IFINFO] = answer.header();
        let number = |kind| answer.find(IFINFO, kind).and_then(|v| v.try_into().ok()).map_or(0, u32::from_ne_bytes);
        let kind = answer.find(IFINFO, IFLA_LINKINFO).and_then(|inside| find(inside, IFLA_INFO_KIND));
        Self {
            index: u32::from_ne_bytes([header[4], header[5], header[6], header[7]]),
            kind: kind.map(text).unwrap_or_default().to_owned(),
            alias: answer.find(IFINFO, IFLA_IFALIAS).map(text).unwrap_or_default().to_owned(),
            address: answer.find(IFINFO, IFLA_ADDRESS).unwrap_or_default().to_vec(),
            master: number(IFLA_MASTER),
        }
    }
}
