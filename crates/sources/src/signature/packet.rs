//! OpenPGP packets (RFC 9580, sections 3 to 5): framing, signatures, public keys.
use std::borrow::Cow;

use super::SignatureError;
use super::public_key::PublicKey;

/// Packet types that matter here.
pub(super) mod tag {
    pub const SIGNATURE: u8 = 2;
    pub const SECRET_KEY: u8 = 5;
    pub const PUBLIC_KEY: u8 = 6;
    pub const SECRET_SUBKEY: u8 = 7;
    pub const USER_ID: u8 = 13;
    pub const PUBLIC_SUBKEY: u8 = 14;
    pub const USER_ATTRIBUTE: u8 = 17;
}

#[derive(Debug)]
pub(super) struct Packet<'a> {
    pub tag: u8,
    pub body: Cow<'a, [u8]>,
}

pub(super) fn packets(mut data: &[u8]) -> Result<Vec<Packet<'_>>, SignatureError> {
    let mut packets = Vec::new();
    while !data.is_empty() {
        packets.push(next(&mut data).ok_or(SignatureError::Malformed("OpenPGP packet"))?);
    }
    Ok(packets)
}

fn next<'a>(data: &mut &'a [u8]) -> Option<Packet<'a>> {
    let head = take(data, 1)?[0];
    if head & 0x80 == 0 {
        return None;
    }
    if head & 0x40 == 0 {
        let body = match head & 3 {
            3 => std::mem::take(data),
            kind => {
                let length = take(data, 1 << kind)?.iter().fold(0usize, |n, b| n << 8 | usize::from(*b));
                take(data, length)?
            }
        };
        return Some(Packet { tag: head >> 2 & 0xf, body: body.into() });
    }
    let mut body = Cow::Borrowed(&[][..]);
    loop {
        let first = take(data, 1)?[0];
        let (length, last) = match first {
            224..=254 => (1 << (first & 0x1f), false),
            _ => (long_length(first, data)?, true),
        };
        let part = take(data, length)?;
        if body.is_empty() {
            body = part.into()
        } else {
            body.to_mut().extend_from_slice(part)
        }
        if last {
            return Some(Packet { tag: head & 0x3f, body });
        }
    }
}

/// The length that begins with `first`, as packets and subpackets have it.
fn long_length(first: u8, data: &mut &[u8]) -> Option<usize> {
    Some(match first {
        0..=191 => usize::from(first),
        255 => u32::from_be_bytes(take(data, 4)?.try_into().ok()?) as usize,
        _ => ((usize::from(first) - 192) << 8) + usize::from(take(data, 1)?[0]) + 192,
    })
}

pub(super) fn take<'a>(data: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (head, rest) = data.split_at_checked(length)?;
    *data = rest;
    Some(head)
}

/// A multiprecision integer, without leading zeros.
pub(super) fn integer<'a>(data: &mut &'a [u8]) -> Option<&'a [u8]> {
    let bits = u16::from_be_bytes(take(data, 2)?.try_into().ok()?);
    let bytes = take(data, usize::from(bits).div_ceil(8))?;
    Some(&bytes[bytes.iter().take_while(|b| **b == 0).count()..])
}

/// A signature of version 4.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Signature {
    pub kind: u8,
    pub algorithm: u8,
    pub hash: u8,
    /// Unix seconds.
    pub created: u64,
    /// Seconds after its creation; 0 for never.
    pub lifetime: u64,
    /// Seconds after the creation of the key that it is about; 0 for never.
    pub key_lifetime: u64,
    pub issuer: Option<u64>,
    pub key_flags: Option<u8>,
    pub revocation_reason: String,
    /// A signing subkey's own word that it belongs to the certificate.
    pub embedded: Option<Box<Signature>>,
    /// What is hashed after what is signed.
    pub suffix: Vec<u8>,
    /// The integers, one after the other.
    pub value: Vec<u8>,
}

/// Bit of the key flags: may sign data.
pub(super) const MAY_SIGN: u8 = 2;

impl Signature {
    pub fn parse(body: &[u8]) -> Result<Self, SignatureError> {
        match body.first() {
            Some(4) => Self::parse_v4(body)?.ok_or(SignatureError::Malformed("OpenPGP signature")),
            _ => Err(SignatureError::Unsupported("an OpenPGP signature of another version than 4")),
        }
    }

    fn parse_v4(body: &[u8]) -> Result<Option<Self>, SignatureError> {
        let mut data = body;
        let Some([_, kind, algorithm, hash, high, low]) = take(&mut data, 6) else { return Ok(None) };
        let hashed_length = usize::from(u16::from_be_bytes([*high, *low]));
        let Some(hashed) = take(&mut data, hashed_length) else { return Ok(None) };
        let Some(unhashed) = take(&mut data, 2).and_then(|n| take(&mut data, usize::from(u16::from_be_bytes([n[0], n[1]])))) else {
            return Ok(None);
        };
        // The hash's first bytes, which prove nothing.
        if take(&mut data, 2).is_none() {
            return Ok(None);
        }
        let covered = 6 + hashed_length;
        let mut suffix = body[..covered].to_vec();
        suffix.extend_from_slice(&[4, 0xff]);
        suffix.extend_from_slice(&(covered as u32).to_be_bytes());
        let mut signature = Self {
            kind: *kind,
            algorithm: *algorithm,
            hash: *hash,
            created: 0,
            lifetime: 0,
            key_lifetime: 0,
            issuer: None,
            key_flags: None,
            revocation_reason: String::new(),
            embedded: None,
            suffix,
            value: data.to_vec(),
        };
        let read = signature.subpackets(hashed, true)?.and(signature.subpackets(unhashed, false)?);
        Ok(read.filter(|()| signature.created != 0).map(|()| signature))
    }

    /// Only the issuer and the embedded signature, which are hints or prove themselves, are taken from the part that is not hashed.
    fn subpackets(&mut self, mut data: &[u8], hashed: bool) -> Result<Option<()>, SignatureError> {
        while !data.is_empty() {
            let Some((kind, critical, body)) = subpacket(&mut data) else { return Ok(None) };
            let number = || <[u8; 4]>::try_from(body).ok().map(|bytes| u64::from(u32::from_be_bytes(bytes)));
            match (kind, hashed) {
                (2, true) => self.created = number().unwrap_or(0),
                (3, true) => self.lifetime = number().unwrap_or(0),
                (9, true) => self.key_lifetime = number().unwrap_or(0),
                (16, _) => self.issuer = body.try_into().ok().map(u64::from_be_bytes).or(self.issuer),
                // Version 4 and the fingerprint, whose end is the id.
                (33, _) if body.len() == 21 && body[0] == 4 => self.issuer = body[13..].try_into().ok().map(u64::from_be_bytes),
                (27, true) => self.key_flags = Some(body.first().copied().unwrap_or(0)),
                (29, true) => self.revocation_reason = String::from_utf8_lossy(body.get(1..).unwrap_or_default()).into_owned(),
                // One within another is not looked for.
                (32, _) if self.kind == kind::SUBKEY_BINDING => self.embedded = Self::parse(body).ok().map(Box::new),
                (2..=34, _) => {}
                _ if critical && hashed => return Err(SignatureError::Unsupported("a critical part of an OpenPGP signature")),
                _ => {}
            }
        }
        Ok(Some(()))
    }
}

fn subpacket<'a>(data: &mut &'a [u8]) -> Option<(u8, bool, &'a [u8])> {
    let first = take(data, 1)?[0];
    let length = long_length(first, data)?;
    let (kind, body) = take(data, length)?.split_first()?;
    Some((kind & 0x7f, kind & 0x80 != 0, body))
}

/// What a signature says.
pub(super) mod kind {
    pub const BINARY: u8 = 0x00;
    pub const TEXT: u8 = 0x01;
    pub const CERTIFICATIONS: std::ops::RangeInclusive<u8> = 0x10..=0x13;
    pub const SUBKEY_BINDING: u8 = 0x18;
    pub const PRIMARY_BINDING: u8 = 0x19;
    pub const KEY_REVOCATION: u8 = 0x20;
    pub const SUBKEY_REVOCATION: u8 = 0x28;
    pub const CERTIFICATION_REVOCATION: u8 = 0x30;
}

/// A public key of version 4.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    /// Unix seconds.
    pub created: u64,
    pub algorithm: u8,
    /// `None`: of a kind that signs nothing we can check.
    pub public: Option<PublicKey>,
    /// As certificates hash it.
    pub hashed: Vec<u8>,
    pub id: u64,
}

impl Key {
    /// Of a public key's or a secret key's packet.
    pub fn parse(body: &[u8], secret: bool) -> Result<Self, SignatureError> {
        if body.first() != Some(&4) {
            return Err(SignatureError::Unsupported("an OpenPGP key of another version than 4"));
        }
        Self::parse_v4(body, secret).ok_or(SignatureError::Malformed("OpenPGP key"))
    }

    fn parse_v4(body: &[u8], secret: bool) -> Option<Self> {
        let mut data = body.get(1..)?;
        let created = u64::from(u32::from_be_bytes(take(&mut data, 4)?.try_into().ok()?));
        let algorithm = take(&mut data, 1)?[0];
        let public = PublicKey::parse(algorithm, &mut data)?;
        if secret && public.is_none() {
            return None;
        }
        let public_part = if secret { &body[..body.len() - data.len()] } else { body };
        let mut hashed = vec![0x99];
        hashed.extend_from_slice(&u16::try_from(public_part.len()).ok()?.to_be_bytes());
        hashed.extend_from_slice(public_part);
        let fingerprint = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, &hashed);
        let id = u64::from_be_bytes(fingerprint.as_ref()[12..].try_into().expect("8 of 20 bytes"));
        Some(Self { created, algorithm, public, hashed, id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_framings_are_read() {
        let mut partial = vec![0xc0 | 13, 224 + 1, b'a', b'b', 1, b'c'];
        partial.extend([0x80 | 13 << 2, 2, b'd', b'e']);
        partial.extend([0x80 | 13 << 2 | 3, b'f']);
        let bodies: Vec<_> = packets(&partial).unwrap().into_iter().map(|packet| (packet.tag, packet.body.into_owned())).collect();
        assert_eq!(bodies, [(13, b"abc".to_vec()), (13, b"de".to_vec()), (13, b"f".to_vec())]);
        let long = [&[0xc0 | 13, 192, 8][..], &[7; 200]].concat();
        assert_eq!(packets(&long).unwrap()[0].body.len(), 200);
    }

    #[test]
    fn what_is_cut_short_is_no_packet() {
        let long = [&[0xc0 | 2, 192, 8][..], &[4; 200]].concat();
        for end in 1..long.len() {
            assert!(packets(&long[..end]).is_err(), "{end}");
        }
        assert!(packets(b"text").is_err());
        assert!(Signature::parse(&[4; 9]).is_err());
        assert!(Key::parse(&[4, 0, 0, 0, 1, 1, 0, 9, 1], false).is_err());
    }
}
