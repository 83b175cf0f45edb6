//! Metadata transfers: the whole tree as a list of stats in one file, beside the few files that are really sent.
use oci::Digest;
use session::{Stat, go_mode};

use super::index::number;

/// Where the list lands, at the root of the directory.
pub(crate) const FILE: &str = ".fsutil-metadata";

/// The list: each entry as a little-endian length of 32 bits and a `fsutil.types.Stat` message.
#[derive(Default)]
pub(crate) struct Listing {
    bytes: Vec<u8>,
    /// Directories above the current entry that have not been placed yet.
    parents: Vec<Stat>,
}

impl Listing {
    pub fn add(&mut self, stat: &Stat) {
        let message = encode(stat);
        self.bytes.extend_from_slice(&(message.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(&message);
    }

    /// Which directories the entry needs that were not placed yet, itself included if it is one. They are taken as placed if it is `matched`.
    pub fn parents_to_place(&mut self, stat: &Stat, matched: bool) -> Vec<Stat> {
        let above = |dir: &Stat| stat.path.strip_prefix(dir.path.as_str()).is_some_and(|rest| rest.starts_with('/'));
        self.parents.retain(above);
        if stat.mode & go_mode::DIR != 0 {
            self.parents.push(stat.clone());
        }
        if matched { std::mem::take(&mut self.parents) } else { Vec::new() }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn digest(&self) -> [u8; 32] {
        let mut raw = [0; 32];
        let hex = Digest::of(&self.bytes);
        for (at, byte) in raw.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex.hex()[at * 2..at * 2 + 2], 16).expect("a digest is hex");
        }
        raw
    }
}

fn encode(stat: &Stat) -> Vec<u8> {
    let mut out = Vec::with_capacity(stat.path.len() + 32);
    text(&mut out, 1, stat.path.as_bytes());
    let numbers = [u64::from(stat.mode), u64::from(stat.uid), u64::from(stat.gid), stat.size as u64, stat.mod_time as u64];
    for (field, value) in (2..).zip(numbers) {
        varint(&mut out, field, value);
    }
    text(&mut out, 7, stat.linkname.as_bytes());
    varint(&mut out, 8, stat.devmajor as u64);
    varint(&mut out, 9, stat.devminor as u64);
    for (name, value) in &stat.xattrs {
        let mut entry = Vec::new();
        for (field, bytes) in [(1, name.as_bytes()), (2, value)] {
            number(&mut entry, field << 3 | 2);
            number(&mut entry, bytes.len() as u64);
            entry.extend_from_slice(bytes);
        }
        text(&mut out, 10, &entry);
    }
    out
}

fn varint(out: &mut Vec<u8>, field: u64, value: u64) {
    if value != 0 {
        number(out, field << 3);
        number(out, value);
    }
}

fn text(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    if !bytes.is_empty() {
        number(out, field << 3 | 2);
        number(out, bytes.len() as u64);
        out.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_stats_as_protobuf() {
        let mut stat = Stat { path: "ab".into(), mode: 0o644, size: 300, mod_time: -1, ..Stat::default() };
        stat.xattrs.insert("k".into(), "v".into());
        let want = [
            &[0x0a, 2, b'a', b'b', 0x10, 0xa4, 0x03, 0x28, 0xac, 0x02, 0x30][..],
            &[0xff; 9],
            &[0x01, 0x52, 6, 0x0a, 1, b'k', 0x12, 1, b'v'],
        ]
        .concat();
        assert_eq!(encode(&stat), want);
    }

    #[test]
    fn places_parents_once() {
        let dir = |path: &str| Stat { path: path.into(), mode: go_mode::DIR | 0o755, ..Stat::default() };
        let file = |path: &str| Stat { path: path.into(), mode: 0o644, ..Stat::default() };
        let mut listing = Listing::default();
        let mut step = |stat: Stat, matched| listing.parents_to_place(&stat, matched).into_iter().map(|s| s.path).collect::<Vec<_>>();
        assert!(step(dir("a"), false).is_empty());
        assert!(step(dir("a/b"), false).is_empty());
        assert_eq!(step(file("a/b/c"), true), ["a", "a/b"]);
        assert!(step(file("a/b/d"), true).is_empty());
        assert!(step(dir("b"), false).is_empty());
        assert_eq!(step(dir("c"), true), ["c"]);
        assert!(step(file("c/x"), true).is_empty());
    }
}
