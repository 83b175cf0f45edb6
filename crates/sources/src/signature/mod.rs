//! Signatures on what sources hold: OpenPGP on downloads and git objects, ssh on git objects.
//!
//! Formats are read here; the arithmetic is `ring`'s. What is held to follows BuildKit: SHA-2 only, RSA of 2048 bits or more, ECDSA and EdDSA; keys must be
//! meant for signing, bound to their certificate, and not revoked. See `docs/decisions/0012-signatures.md`.
mod armor;
mod certificate;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod git;
mod openpgp;
mod packet;
mod public_key;
mod ssh;
#[cfg(test)]
mod tests;

use fault::{Classified, Kind};

pub(crate) use git::verify as verify_git_object;
pub(crate) use openpgp::verify_detached;

/// Why a signature does not hold.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    #[error("git object is not signed")]
    Unsigned,
    #[error("signed tag required but no signed tag found")]
    NoSignedTag,
    #[error("checksum mismatch: expected {expected}, got {actual}")]
    Checksum { expected: String, actual: String },
    #[error("invalid signature format")]
    Format,
    #[error("failed to decode armored {what}")]
    Armor { what: &'static str },
    #[error("failed to read armored public key: {0}")]
    Keys(&'static str),
    #[error("no signature packet found")]
    NoSignature,
    #[error("malformed {0}")]
    Malformed(&'static str),
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    #[error("rejecting weak/unknown hash: {0}")]
    WeakHash(u8),
    #[error("rejecting unsupported pubkey algorithm: {0}")]
    Algorithm(u8),
    #[error("signature by {issuer:X}: signature made by unknown entity")]
    UnknownIssuer { issuer: u64 },
    #[error("signature by {issuer:X}: invalid signature: verification failure")]
    Invalid { issuer: u64 },
    #[error("signature by {issuer:X}: {what} expired")]
    Expired { issuer: u64, what: &'static str },
    #[error("key revoked{}{reason}", if reason.is_empty() { "" } else { ": " })]
    Revoked { reason: String },
    #[error("signature creation time is in the future")]
    Future,
    #[error("failed to parse ssh public key: no key found")]
    NoSshKey,
    #[error("failed to parse ssh signature")]
    SshFormat,
    #[error("unsupported SSH signature hash algorithm: {0}")]
    SshHash(String),
    #[error("unexpected SSH signature namespace: {0:?}")]
    SshNamespace(String),
    #[error("failed to verify ssh signature: {0}")]
    Ssh(&'static str),
}

impl Classified for SignatureError {
    fn kind(&self) -> Kind {
        match self {
            Self::Unsupported(_) => Kind::Unimplemented,
            Self::Armor { .. } | Self::Keys(_) | Self::Malformed(_) | Self::NoSshKey | Self::SshFormat | Self::Format => Kind::Invalid,
            _ => Kind::Precondition,
        }
    }
}
