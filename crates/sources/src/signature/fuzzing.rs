//! Keys and signatures without their armor, so that what changes at random gets past it.
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::armor::blocks;
use super::{git, openpgp, ssh};

const MESSAGE: &[u8] = b"hello\nworld\n";

/// Reads `key` and `signature` as OpenPGP's, as ssh's, and as parts of git objects. What comes out does not matter.
pub fn verify(key: &[u8], signature: &[u8]) {
    let armored = |label: &str, bytes: &[u8]| format!("-----BEGIN {label}-----\n\n{}\n-----END {label}-----\n", STANDARD.encode(bytes));
    let (keys, signed) = (armored("PGP PUBLIC KEY BLOCK", key), armored("PGP SIGNATURE", signature));
    assert_eq!(blocks(&signed).expect("our own armor")[0].bytes, signature);
    for reject_expired in [false, true] {
        drop(openpgp::verify_detached(MESSAGE.to_vec(), &signed, &keys, reject_expired).map_err(|e| e.to_string()));
    }
    let kind = key.get(4..).and_then(|rest| rest.get(..key[..4].try_into().map(u32::from_be_bytes).ok()? as usize));
    let line = format!("{} {}", String::from_utf8_lossy(kind.unwrap_or_default()), STANDARD.encode(key));
    drop(ssh::verify(MESSAGE, signature, &line).map_err(|e| e.to_string()));
    git::split(key);
    git::split(signature);
    drop(blocks(&String::from_utf8_lossy(signature)));
}
