//! Netlink, as far as the networks of containers need it: messages of nested attributes, sent and acknowledged.
//!
//! Why not a crate: docs/decisions/0013-netlink.md.
use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const HEADER: usize = 16;
const ERROR: u16 = 2;
const NESTED: u16 = 0x8000;
/// Kernels answer in pieces that are no larger.
const ANSWER: usize = 32 * 1024;

/// Flags of a request that makes something: it must not exist.
pub(super) const CREATE: u16 = 0x400 | 0x200;
/// Flags of a request that makes something unless it is there.
pub(super) const ENSURE: u16 = 0x400;
/// All of a kind.
pub(super) const DUMP: u16 = 0x300;

/// One message. Its attributes follow its fixed header.
pub(super) struct Message(Vec<u8>);

impl Message {
    pub fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(REQUEST | flags).to_ne_bytes());
        Self(bytes).raw(header)
    }

    /// Bytes without a type, such as the header of a nested message.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.pad();
        self
    }

    pub fn put(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.raw(value)
    }

    pub fn number(self, kind: u16, value: u32) -> Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// In the byte order of networks, as netfilter wants it.
    pub fn net_number(self, kind: u16, value: u32) -> Self {
        self.put(kind, &value.to_be_bytes())
    }

    pub fn text(self, kind: u16, value: &str) -> Self {
        self.put(kind, format!("{value}\0").as_bytes())
    }

    pub fn nest(mut self, kind: u16, inside: impl FnOnce(Self) -> Self) -> Self {
        let start = self.0.len();
        self.0.extend_from_slice(&[0, 0]);
        self.0.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        let mut whole = inside(self);
        let length = (whole.0.len() - start) as u16;
        whole.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        whole
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finish(mut self, sequence: u32, acknowledged: bool) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[0..4].copy_from_slice(&length.to_ne_bytes());
        if acknowledged {
            self.0[6] |= ACK as u8;
        }
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

/// An answer: its fixed header and attributes are still bytes.
#[derive(Debug)]
pub(super) struct Answer(Vec<u8>);

impl Answer {
    /// The bytes of the fixed header.
    pub fn header<const N: usize>(&self) -> [u8; N] {
        std::array::from_fn(|at| self.0.get(at).copied().unwrap_or_default())
    }

    /// The value of the first attribute of that kind, behind a fixed header of `skip` bytes.
    pub fn find(&self, skip: usize, kind: u16) -> Option<&[u8]> {
        find(self.0.get(skip..)?, kind)
    }
}

pub(super) fn find(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    while bytes.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([bytes[0], bytes[1]])).max(4);
        let value = bytes.get(4..length)?;
        if u16::from_ne_bytes([bytes[2], bytes[3]]) & !NESTED == kind {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

/// Text of an attribute, without the byte that ends it.
pub(super) fn text(value: &[u8]) -> &str {
    std::str::from_utf8(value).unwrap_or_default().trim_end_matches('\0')
}

/// A socket to the network namespace that its maker was in.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// For links, addresses and routes.
    pub fn route() -> io::Result<Self> {
        Self::open(None)
    }

    pub fn netfilter() -> io::Result<Self> {
        Self::open(Some(netlink::NETFILTER))
    }

    fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        Ok(Self { fd, sequence: 0 })
    }

    /// Has the kernel do what the message says.
    pub fn ask(&mut self, message: Message) -> io::Result<Vec<Answer>> {
        self.ask_all(Vec::new(), vec![message], Vec::new())
    }

    /// One after the other, until one fails. What is `before` and `after` is not acknowledged: it marks a batch.
    pub fn ask_all(&mut self, before: Vec<Message>, messages: Vec<Message>, after: Vec<Message>) -> io::Result<Vec<Answer>> {
        let mut bytes = Vec::new();
        let first = self.sequence.wrapping_add(1);
        let mut last = first;
        for (message, acknowledged) in before
            .into_iter()
            .map(|m| (m, false))
            .chain(messages.into_iter().map(|m| (m, true)))
            .chain(after.into_iter().map(|m| (m, false)))
        {
            self.sequence = self.sequence.wrapping_add(1);
            last = if acknowledged { self.sequence } else { last };
            bytes.extend(message.finish(self.sequence, acknowledged));
        }
        rustix::io::retry_on_intr(|| rustix::net::send(&self.fd, &bytes, SendFlags::empty()))?;
        self.hear(first, last)
    }

    /// Answers up to the end of request number `last`.
    fn hear(&self, first: u32, last: u32) -> io::Result<Vec<Answer>> {
        const DONE: u16 = 3;
        let (mut answers, mut buffer) = (Vec::new(), vec![0; ANSWER]);
        loop {
            let (count, _) = rustix::io::retry_on_intr(|| rustix::net::recv(&self.fd, &mut buffer[..], RecvFlags::empty()))?;
            let mut rest = &buffer[..count];
            while let Some(header) = rest.get(..HEADER) {
                let number = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
                let (length, sequence) = (number(0) as usize, number(8));
                let kind = u16::from_ne_bytes([header[4], header[5]]);
                let body = rest.get(HEADER..length).ok_or(io::ErrorKind::InvalidData)?;
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                // Left from a request that failed half way.
                if sequence.wrapping_sub(first) > last.wrapping_sub(first) {
                    continue;
                }
                match kind {
                    ERROR => {
                        let code = body.get(..4).and_then(|b| b.try_into().ok()).map_or(libc::EINVAL, |b| -i32::from_ne_bytes(b));
                        if code != 0 {
                            return Err(io::Error::from_raw_os_error(code));
                        }
                        if sequence == last {
                            return Ok(answers);
                        }
                    }
                    DONE if sequence == last => return Ok(answers),
                    _ => answers.push(Answer(body.to_vec())),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nested() {
        let message = Message::new(16, CREATE, &[1, 0, 0, 0]).text(3, "br").nest(18, |m| m.text(1, "veth").number(2, 7));
        let bytes = message.finish(9, true);
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(u32::from_ne_bytes(bytes[..4].try_into().unwrap()) as usize, bytes.len());
        assert_eq!(u16::from_ne_bytes(bytes[6..8].try_into().unwrap()), REQUEST | ACK | CREATE);
        let answer = Answer(bytes[HEADER..].to_vec());
        assert_eq!(answer.find(4, 3).map(text), Some("br"));
        let nested = answer.find(4, 18).unwrap();
        assert_eq!(find(nested, 1).map(text), Some("veth"));
        assert_eq!(find(nested, 2), Some(&7u32.to_ne_bytes()[..]));
        assert_eq!(answer.find(4, 99), None);
    }

    #[test]
    fn broken_answers_end_the_search() {
        assert_eq!(find(&[200, 0, 1, 0, 5], 1), None);
        assert_eq!(find(&[0, 0, 2, 0, 4, 0, 1, 0], 1), Some(&[][..]));
        assert_eq!(find(&[1], 1), None);
    }
}
