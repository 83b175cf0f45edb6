//! The packet filter of a bridge: address translation on the way out, and nothing new on the way in.
use std::io;

use super::bridge::Subnet;
use super::netlink::{CREATE, ENSURE, Message, Socket};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEWTABLE: u16 = SUBSYSTEM << 8;
const DELTABLE: u16 = SUBSYSTEM << 8 | 2;
const NEWCHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEWRULE: u16 = SUBSYSTEM << 8 | 6;
/// Rules are added behind those that are there.
const APPEND: u16 = 0x800;
/// The kernel takes the table away when the socket goes that made it (Linux 5.12).
const OWNER: u32 = 2;
const EQUAL: u32 = 0;
const UNEQUAL: u32 = 1;
const REGISTER: u32 = 1;

/// A table of rules. It is there as long as this is.
#[derive(Debug)]
pub(super) struct Table {
    socket: Socket,
    name: String,
}

impl Table {
    /// In the network namespace of the calling thread. A table of that name is replaced.
    pub fn make(name: &str, bridge: &str, subnet: Subnet) -> io::Result<Self> {
        let mut table = Self { socket: Socket::netfilter()?, name: name.to_owned() };
        match table.fill(OWNER, bridge, subnet) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => table.fill(0, bridge, subnet)?,
            outcome => outcome?,
        }
        Ok(table)
    }

    fn fill(&mut self, flags: u32, bridge: &str, subnet: Subnet) -> io::Result<()> {
        let name = self.name.clone();
        let name = name.as_str();
        let table = |flags| message(NEWTABLE, ENSURE).text(1, name).net_number(2, flags);
        let chain = |title: &str, kind: &str, hook: u32, priority: u32| {
            let hooked = |m: Message| m.net_number(1, hook).net_number(2, priority);
            message(NEWCHAIN, CREATE).text(1, name).text(3, title).nest(4, hooked).text(7, kind)
        };
        let rule = |chain: &str, what: fn(Message, &str, Subnet) -> Message| {
            message(NEWRULE, ENSURE | APPEND).text(1, name).text(2, chain).nest(4, |m| what(m, bridge, subnet))
        };
        // What an earlier daemon left where tables have no owner.
        self.batch(vec![table(0), message(DELTABLE, 0).text(1, name)])?;
        self.batch(vec![
            table(flags),
            chain("postrouting", "nat", 4, 100),
            chain("forward", "filter", 2, 0),
            rule("postrouting", translate_outgoing),
            rule("forward", drop_incoming),
        ])
    }

    fn batch(&mut self, messages: Vec<Message>) -> io::Result<()> {
        let mark = |kind| Message::new(kind, 0, &[0, 0, 0, SUBSYSTEM as u8]);
        self.socket.ask_all(vec![mark(BATCH_BEGIN)], messages, vec![mark(BATCH_END)]).map(drop)
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        let _ = self.batch(vec![message(DELTABLE, 0).text(1, &self.name)]);
    }
}

fn message(kind: u16, flags: u16) -> Message {
    Message::new(kind, flags, &[libc::AF_INET as u8, 0, 0, 0])
}

/// `ip saddr SUBNET ip daddr != SUBNET ip daddr != 224.0.0.0/4 masquerade`
fn translate_outgoing(m: Message, _: &str, subnet: Subnet) -> Message {
    let (source, destination) = (12, 16);
    let m = address(m, source, subnet.network().octets(), subnet.mask().octets(), EQUAL);
    let m = address(m, destination, subnet.network().octets(), subnet.mask().octets(), UNEQUAL);
    let m = address(m, destination, [224, 0, 0, 0], [240, 0, 0, 0], UNEQUAL);
    expression(m, "masq", |m| m)
}

/// `oifname BRIDGE iifname != BRIDGE ct state != established,related drop`
fn drop_incoming(m: Message, bridge: &str, _: Subnet) -> Message {
    const IN: u32 = 6;
    const OUT: u32 = 7;
    const STATE: u32 = 0;
    const KNOWN: u32 = 2 | 4;
    const DROP: u32 = 0;
    let mut name = [0; 16];
    name[..bridge.len()].copy_from_slice(bridge.as_bytes());
    let m = expression(m, "meta", |m| m.net_number(1, REGISTER).net_number(2, OUT));
    let m = compare(m, EQUAL, &name);
    let m = expression(m, "meta", |m| m.net_number(1, REGISTER).net_number(2, IN));
    let m = compare(m, UNEQUAL, &name);
    let m = expression(m, "ct", |m| m.net_number(1, REGISTER).net_number(2, STATE));
    let m = masked(m, &KNOWN.to_ne_bytes());
    let m = compare(m, EQUAL, &[0; 4]);
    expression(m, "immediate", |m| m.net_number(1, 0).nest(2, |m| m.nest(2, |m| m.net_number(1, DROP))))
}

/// Compares the network of the address at `offset` of the IP header.
fn address(m: Message, offset: u32, network: [u8; 4], mask: [u8; 4], operator: u32) -> Message {
    const NETWORK_HEADER: u32 = 1;
    let m = expression(m, "payload", |m| m.net_number(1, REGISTER).net_number(2, NETWORK_HEADER).net_number(3, offset).net_number(4, 4));
    compare(masked(m, &mask), operator, &network)
}

fn masked(m: Message, mask: &[u8; 4]) -> Message {
    expression(m, "bitwise", |m| {
        m.net_number(1, REGISTER).net_number(2, REGISTER).net_number(3, 4).nest(4, |m| m.put(1, mask)).nest(5, |m| m.put(1, &[0; 4]))
    })
}

fn compare(m: Message, operator: u32, value: &[u8]) -> Message {
    expression(m, "cmp", |m| m.net_number(1, REGISTER).net_number(2, operator).nest(3, |m| m.put(1, value)))
}

fn expression(m: Message, name: &str, data: impl FnOnce(Message) -> Message) -> Message {
    m.nest(1, |m| m.text(1, name).nest(2, data))
}
