//! The public keys that OpenPGP and ssh have in common, and what they sign.
use ring::digest;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey,
};

use super::packet::{integer, take};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PublicKey {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// The point, not compressed.
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

/// Numbers of OpenPGP's key algorithms.
pub(super) mod algorithm {
    pub const RSA: [u8; 2] = [1, 3];
    pub const ECDSA: u8 = 19;
    pub const EDDSA: u8 = 22;
}

/// Hashes, by OpenPGP's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hash {
    /// Good only for what a key says of itself.
    Sha1,
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    pub fn new(number: u8) -> Option<Self> {
        Some(match number {
            2 => Self::Sha1,
            8 => Self::Sha256,
            9 => Self::Sha384,
            10 => Self::Sha512,
            _ => return None,
        })
    }

    pub fn of(self, data: &[u8]) -> digest::Digest {
        let algorithm = match self {
            Self::Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => &digest::SHA256,
            Self::Sha384 => &digest::SHA384,
            Self::Sha512 => &digest::SHA512,
        };
        digest::digest(algorithm, data)
    }
}

const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
const P384: &[u8] = &[0x2b, 0x81, 4, 0, 0x22];
const ED25519_LEGACY: &[u8] = &[0x2b, 6, 1, 4, 1, 0xda, 0x47, 0x0f, 1];

impl PublicKey {
    /// Reads the key material of an OpenPGP packet. The outer `None` is a malformed key, the inner one a kind that is not known.
    pub fn parse(number: u8, data: &mut &[u8]) -> Option<Option<Self>> {
        if algorithm::RSA.contains(&number) {
            return Some(Some(Self::Rsa { n: integer(data)?.to_vec(), e: integer(data)?.to_vec() }));
        }
        if number != algorithm::ECDSA && number != algorithm::EDDSA {
            return Some(None);
        }
        let length = take(data, 1)?[0];
        let (curve, point) = (take(data, usize::from(length))?, integer(data)?);
        Some(match (number, curve) {
            (algorithm::ECDSA, P256) => Some(Self::P256(point.to_vec())),
            (algorithm::ECDSA, P384) => Some(Self::P384(point.to_vec())),
            (algorithm::EDDSA, ED25519_LEGACY) => Some(Self::Ed25519(point.strip_prefix(&[0x40])?.to_vec())),
            _ => None,
        })
    }

    /// Whether this key made the OpenPGP signature with these integers of `message`.
    pub fn signed_openpgp(&self, hash: Hash, message: &[u8], mut value: &[u8]) -> bool {
        let Some(first) = integer(&mut value) else { return false };
        match self {
            Self::Rsa { .. } => self.signed_rsa(hash, message, first),
            Self::Ed25519(_) => pair(first, integer(&mut value), 32).is_some_and(|rs| self.signed_ed25519(hash.of(message).as_ref(), &rs)),
            Self::P256(_) | Self::P384(_) => integer(&mut value).is_some_and(|s| self.signed_ecdsa(hash, message, first, s)),
        }
    }

    pub fn signed_rsa(&self, hash: Hash, message: &[u8], signature: &[u8]) -> bool {
        let Self::Rsa { n, e } = self else { return false };
        let parameters: &RsaParameters = match hash {
            Hash::Sha1 => &RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY,
            Hash::Sha256 => &RSA_PKCS1_2048_8192_SHA256,
            Hash::Sha384 => &RSA_PKCS1_2048_8192_SHA384,
            Hash::Sha512 => &RSA_PKCS1_2048_8192_SHA512,
        };
        padded(signature, n.len()).is_some_and(|signature| RsaPublicKeyComponents { n, e }.verify(parameters, message, &signature).is_ok())
    }

    pub fn signed_ed25519(&self, message: &[u8], signature: &[u8]) -> bool {
        matches!(self, Self::Ed25519(key) if UnparsedPublicKey::new(&ED25519, key).verify(message, signature).is_ok())
    }

    /// A curve goes with the hash of its size.
    pub fn signed_ecdsa(&self, hash: Hash, message: &[u8], r: &[u8], s: &[u8]) -> bool {
        let (algorithm, key, size) = match (self, hash) {
            (Self::P256(key), Hash::Sha256) => (&ECDSA_P256_SHA256_FIXED, key, 32),
            (Self::P384(key), Hash::Sha384) => (&ECDSA_P384_SHA384_FIXED, key, 48),
            _ => return false,
        };
        pair(r, Some(s), size).is_some_and(|signature| UnparsedPublicKey::new(algorithm, key).verify(message, &signature).is_ok())
    }
}

/// Two numbers of a fixed size, one after the other.
fn pair(r: &[u8], s: Option<&[u8]>, size: usize) -> Option<Vec<u8>> {
    let mut both = padded(r, size)?;
    both.extend(padded(s?, size)?);
    Some(both)
}

/// A number with so many bytes; leading zeros count for nothing.
fn padded(number: &[u8], size: usize) -> Option<Vec<u8>> {
    let number = &number[number.iter().take_while(|b| **b == 0).count()..];
    let mut out = vec![0; size.checked_sub(number.len())?];
    out.extend_from_slice(number);
    Some(out)
}
