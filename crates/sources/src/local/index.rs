//! What a synced directory holds: its entries in the order of the wire, in memory and as bytes.
//!
//! Format: a version byte, the digest of the metadata file (32 bytes, zero if there is none), then each entry as varints and length-prefixed strings, its path
//! sharing a prefix with the entry before. Bytes that do not read are no index; the next sync then transfers everything.
use std::cmp::Ordering;
use std::collections::BTreeMap;

use bytes::Bytes;
use session::Stat;

const VERSION: u8 = 1;

/// The entries of a directory, sorted by [`compare`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Index {
    pub entries: Vec<Stat>,
    /// Of the metadata file, in metadata transfers.
    pub metadata: [u8; 32],
}

/// Paths compare by component: `a/b` comes before `a.b`, as `/` sorts before everything.
pub(crate) fn compare(a: &str, b: &str) -> Ordering {
    let key = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    a.bytes().map(|c| key(&c)).cmp(b.bytes().map(|c| key(&c)))
}

/// Whether what is there needs no change to become `new`. Sizes and times of directories do not count.
pub(crate) fn same(old: &Stat, new: &Stat) -> bool {
    let directory = new.mode & session::go_mode::DIR != 0;
    let time = directory || (old.size == new.size && old.mod_time == new.mod_time);
    time && old.mode == new.mode
        && old.uid == new.uid
        && old.gid == new.gid
        && old.devmajor == new.devmajor
        && old.devminor == new.devminor
        && old.linkname == new.linkname
        && old.xattrs == new.xattrs
}

impl Index {
    /// Whether nothing but content may differ; see [`same`].
    pub fn is_like(&self, other: &Self) -> bool {
        let pairs = || self.entries.iter().zip(&other.entries);
        self.metadata == other.metadata && self.entries.len() == other.entries.len() && pairs().all(|(a, b)| a.path == b.path && same(a, b))
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend_from_slice(&self.metadata);
        let mut last = "";
        for stat in &self.entries {
            let shared = last.bytes().zip(stat.path.bytes()).take_while(|(a, b)| a == b).count();
            // Whole characters, so that both halves are text.
            let shared = (0..=shared).rev().find(|n| stat.path.is_char_boundary(*n)).unwrap_or(0);
            number(&mut out, shared as u64);
            string(&mut out, &stat.path.as_bytes()[shared..]);
            for value in [stat.mode, stat.uid, stat.gid] {
                number(&mut out, value.into());
            }
            number(&mut out, stat.size as u64);
            number(&mut out, zigzag(stat.mod_time));
            string(&mut out, stat.linkname.as_bytes());
            number(&mut out, zigzag(stat.devmajor));
            number(&mut out, zigzag(stat.devminor));
            number(&mut out, stat.xattrs.len() as u64);
            for (key, value) in &stat.xattrs {
                string(&mut out, key.as_bytes());
                string(&mut out, value);
            }
            last = &stat.path;
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (version, rest) = bytes.split_first()?;
        let (metadata, mut rest) = rest.split_at_checked(32)?;
        if *version != VERSION {
            return None;
        }
        let mut entries: Vec<Stat> = Vec::new();
        while !rest.is_empty() {
            let shared = usize::try_from(read_number(&mut rest)?).ok()?;
            let last = entries.last().map_or("", |s| s.path.as_str());
            let path = format!("{}{}", last.get(..shared)?, read_text(&mut rest)?);
            let mut small = || u32::try_from(read_number(&mut rest)?).ok();
            let (mode, uid, gid) = (small()?, small()?, small()?);
            let size = read_number(&mut rest)? as i64;
            let mod_time = unzigzag(read_number(&mut rest)?);
            let linkname = read_text(&mut rest)?.to_owned();
            let (devmajor, devminor) = (unzigzag(read_number(&mut rest)?), unzigzag(read_number(&mut rest)?));
            let mut xattrs = BTreeMap::new();
            for _ in 0..read_number(&mut rest)? {
                let key = read_text(&mut rest)?.to_owned();
                xattrs.insert(key, Bytes::copy_from_slice(read_string(&mut rest)?));
            }
            entries.push(Stat { path, mode, uid, gid, size, mod_time, linkname, devmajor, devminor, xattrs });
        }
        Some(Self { entries, metadata: metadata.try_into().ok()? })
    }
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// A protobuf-style varint.
pub(super) fn number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn read_number(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, tail) = rest.split_first()?;
        *rest = tail;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn read_string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(read_number(rest)?).ok()?;
    let (bytes, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(bytes)
}

fn read_text<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    std::str::from_utf8(read_string(rest)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_by_component() {
        let mut paths = ["a.b", "a/b", "a", "a/b/c", "a-b", "b"];
        paths.sort_by(|a, b| compare(a, b));
        assert_eq!(paths, ["a", "a/b", "a/b/c", "a-b", "a.b", "b"]);
    }

    #[test]
    fn reads_back_what_it_wrote() {
        let xattrs = BTreeMap::from([("user.x".to_owned(), Bytes::from_static(b"\0\xff"))]);
        let file = |path: &str| Stat { path: path.into(), mode: 0o644, size: 7, mod_time: -5, xattrs: xattrs.clone(), ..Stat::default() };
        let link = Stat { path: "dé/y".into(), linkname: "dé/x".into(), devmajor: -1, uid: u32::MAX, size: i64::MAX, ..Stat::default() };
        let index = Index { entries: vec![file("dé"), file("dé/x"), link, file("dè")], metadata: [7; 32] };
        let bytes = index.encode();
        assert_eq!(Index::decode(&bytes).unwrap(), index);
        for cut in 1..bytes.len() {
            // Never a panic, and never more than a prefix.
            if let Some(less) = Index::decode(&bytes[..cut]) {
                assert!(index.entries.starts_with(&less.entries));
            }
        }
        assert_eq!(Index::decode(b"\x02"), None);
        assert_eq!(Index::decode(b""), None);
    }
}
