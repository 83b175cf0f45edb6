//! Detached OpenPGP signatures.
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::SignatureError;
use super::armor::blocks;
use super::certificate::{Certificate, is_over};
use super::packet::{Signature, kind, packets, tag};
use super::public_key::{Hash, algorithm};

/// How far clocks may differ.
const SKEW: Duration = Duration::from_secs(5 * 60);

/// Checks an armored signature of `message` by one of the armored keys. Whether keys have expired by now counts only where that is asked for; else they must
/// have been good when they signed.
pub(crate) fn verify_detached(message: Vec<u8>, signature: &str, keys: &str, reject_expired: bool) -> Result<(), SignatureError> {
    let signature = first_signature(signature)?;
    let certificates = keyring(keys)?;
    let hash = Hash::new(signature.hash).filter(|hash| *hash != Hash::Sha1).ok_or(SignatureError::WeakHash(signature.hash))?;
    if !algorithm::RSA.contains(&signature.algorithm) && ![algorithm::ECDSA, algorithm::EDDSA].contains(&signature.algorithm) {
        return Err(SignatureError::Algorithm(signature.algorithm));
    }
    let mut message = match signature.kind {
        kind::BINARY => message,
        kind::TEXT => network_lines(&message),
        _ => return Err(SignatureError::Unsupported("a signature of another kind than of a document")),
    };
    message.extend_from_slice(&signature.suffix);
    let issuer = signature.issuer.unwrap_or(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let time = if reject_expired { now } else { signature.created };
    let mut outcome = Err(SignatureError::UnknownIssuer { issuer });
    for signer in certificates.iter().flat_map(|certificate| certificate.signers(issuer)) {
        let public = signer.key().public.as_ref().filter(|_| same_algorithm(signer.key().algorithm, signature.algorithm));
        if !public.is_some_and(|public| public.signed_openpgp(hash, &message, &signature.value)) {
            outcome = Err(SignatureError::Invalid { issuer });
            continue;
        }
        signer.check(issuer, time)?;
        if is_over(signature.created, signature.lifetime, time) {
            return Err(SignatureError::Expired { issuer, what: "signature" });
        }
        if signature.created > now + SKEW.as_secs() {
            return Err(SignatureError::Future);
        }
        return Ok(());
    }
    outcome
}

fn first_signature(text: &str) -> Result<Signature, SignatureError> {
    let blocks = blocks(text).ok_or(SignatureError::Armor { what: "signature" })?;
    let block = blocks.first().ok_or(SignatureError::Armor { what: "signature" })?;
    let packets = packets(&block.bytes)?;
    let packet = packets.iter().find(|packet| packet.tag == tag::SIGNATURE).ok_or(SignatureError::NoSignature)?;
    Signature::parse(&packet.body)
}

fn keyring(text: &str) -> Result<Vec<Certificate>, SignatureError> {
    let blocks = blocks(text).ok_or(SignatureError::Armor { what: "public key" })?;
    if blocks.is_empty() {
        return Err(SignatureError::Keys("no armored data found"));
    }
    let mut certificates = Vec::new();
    for block in blocks {
        if !matches!(block.label.as_str(), "PGP PUBLIC KEY BLOCK" | "PGP PRIVATE KEY BLOCK") {
            return Err(SignatureError::Keys("expected public or private key block"));
        }
        certificates.extend(Certificate::parse_all(&block.bytes)?);
    }
    if certificates.is_empty() { Err(SignatureError::Keys("no usable key found")) } else { Ok(certificates) }
}

/// The two numbers of RSA mean the same key.
fn same_algorithm(key: u8, signature: u8) -> bool {
    key == signature || (algorithm::RSA.contains(&key) && algorithm::RSA.contains(&signature))
}

/// As text signatures see it: lines end with CR LF.
fn network_lines(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + text.len() / 16);
    let mut last = 0;
    for byte in text {
        if *byte == b'\n' && last != b'\r' {
            out.push(b'\r');
        }
        out.push(*byte);
        last = *byte;
    }
    out
}
