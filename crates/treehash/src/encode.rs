//! The durable form of [`Records`]: only what has a digest, or is needed to know that a directory is complete.
//!
//! One byte of version, the number of records (LEB128), then records in the order of keys: how many bytes the key shares with the one before and how many follow (LEB128),
//! those bytes, a byte of kind and flags, the digest's 32 bytes if there is one, a link's target with its length.
use oci::Digest;

use crate::records::{Record, RecordKind, Records};

const VERSION: u8 = 1;
const HAS_DIGEST: u8 = 0x80;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("unknown version {0} of content digests")]
    Version(u8),
    #[error("content digests end too early or contradict themselves")]
    Damaged,
}

impl Records {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        number(&mut out, self.map.len());
        let mut last: &[u8] = b"";
        for (key, record) in &self.map {
            let shared = last.iter().zip(key).take_while(|(a, b)| a == b).count();
            number(&mut out, shared);
            number(&mut out, key.len() - shared);
            out.extend_from_slice(&key[shared..]);
            let kind = match record.kind {
                RecordKind::File => 0,
                RecordKind::DirHeader => 1,
                RecordKind::Dir { listed: false } => 2,
                RecordKind::Dir { listed: true } => 3,
                RecordKind::Symlink(_) => 4,
            };
            let raw = record.digest.as_ref().and_then(raw);
            out.push(kind | if raw.is_some() { HAS_DIGEST } else { 0 });
            out.extend(raw.into_iter().flatten());
            if let RecordKind::Symlink(target) = &record.kind {
                number(&mut out, target.len());
                out.extend_from_slice(target);
            }
            last = key;
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (version, mut rest) = bytes.split_first().ok_or(DecodeError::Damaged)?;
        if *version != VERSION {
            return Err(DecodeError::Version(*version));
        }
        let count = take_number(&mut rest)?;
        let mut records = Self::default();
        let mut key: Vec<u8> = Vec::new();
        while !rest.is_empty() {
            let shared = take_number(&mut rest)?;
            let length = take_number(&mut rest)?;
            if shared > key.len() {
                return Err(DecodeError::Damaged);
            }
            key.truncate(shared);
            key.extend_from_slice(take(&mut rest, length)?);
            let flags = take(&mut rest, 1)?[0];
            let digest = if flags & HAS_DIGEST == 0 { None } else { Some(take(&mut rest, 32)?.try_into().expect("took 32 bytes")) };
            let kind = match flags & !HAS_DIGEST {
                0 => RecordKind::File,
                1 => RecordKind::DirHeader,
                2 => RecordKind::Dir { listed: false },
                3 => RecordKind::Dir { listed: true },
                4 => {
                    let length = take_number(&mut rest)?;
                    RecordKind::Symlink(take(&mut rest, length)?.to_vec())
                }
                _ => return Err(DecodeError::Damaged),
            };
            records.map.insert(key.clone(), Record { kind, digest: digest.map(Digest::from_sha256), stat: None });
        }
        if records.map.len() == count { Ok(records) } else { Err(DecodeError::Damaged) }
    }
}

fn raw(digest: &Digest) -> Option<[u8; 32]> {
    let hex = digest.hex().as_bytes();
    let mut raw = [0; 32];
    for (byte, pair) in raw.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    (digest.algorithm() == "sha256").then_some(raw)
}

fn number(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_number(rest: &mut &[u8]) -> Result<usize, DecodeError> {
    let mut value = 0_usize;
    for shift in (0..35).step_by(7) {
        let byte = take(rest, 1)?[0];
        value |= usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(DecodeError::Damaged)
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], DecodeError> {
    let (taken, left) = rest.split_at_checked(length).ok_or(DecodeError::Damaged)?;
    *rest = left;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::Put;

    #[test]
    fn survives_the_trip_and_damage() {
        let mut records = Records::received();
        records.put(Path::new("/dir"), Put::Dir, Digest::of("h"));
        records.put(Path::new("/dir/file"), Put::File, Digest::of("f"));
        records.put(Path::new("/dir/link"), Put::Symlink { target: b"file".to_vec() }, Digest::of("l"));
        records.take_changed();
        let bytes = records.encode();
        assert_eq!(Records::decode(&bytes).unwrap(), records);
        for end in 0..bytes.len() {
            assert_eq!(Records::decode(&bytes[..end]), Err(DecodeError::Damaged), "{end}");
        }
        assert_eq!(Records::decode(&[9]), Err(DecodeError::Version(9)));
        assert_eq!(Records::decode(&[1, 1, 5, 1, b'x', 0]), Err(DecodeError::Damaged));
    }
}
