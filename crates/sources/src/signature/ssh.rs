//! ssh signatures as `ssh-keygen -Y sign` makes them (OpenSSH's PROTOCOL.sshsig), by keys as in `authorized_keys`.
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::SignatureError;
use super::packet::take;
use super::public_key::{Hash, PublicKey};

const MAGIC: &[u8] = b"SSHSIG";
/// What git signs for.
const NAMESPACE: &[u8] = b"git";
/// A hardware key says that somebody was there.
const USER_PRESENT: u8 = 1;

/// Checks a signature, without its armor, of `message` by the first key of `keys`.
pub(super) fn verify(message: &[u8], signature: &[u8], keys: &str) -> Result<(), SignatureError> {
    let Parsed { key, namespace, reserved, hash, kind, value } = parse(signature).ok_or(SignatureError::SshFormat)?;
    let algorithm = match hash {
        b"sha256" => Hash::Sha256,
        b"sha512" => Hash::Sha512,
        other => return Err(SignatureError::SshHash(String::from_utf8_lossy(other).into_owned())),
    };
    if namespace != NAMESPACE {
        return Err(SignatureError::SshNamespace(String::from_utf8_lossy(namespace).into_owned()));
    }
    if authorized_key(keys).ok_or(SignatureError::NoSshKey)? != key {
        return Err(SignatureError::Ssh("public key does not match"));
    }
    let mut signed = MAGIC.to_vec();
    for part in [namespace, reserved, hash, algorithm.of(message).as_ref()] {
        signed.extend_from_slice(&(part.len() as u32).to_be_bytes());
        signed.extend_from_slice(part);
    }
    match made_by(key, kind, value, &signed) {
        Some(true) => Ok(()),
        Some(false) => Err(SignatureError::Ssh("signature did not verify")),
        None => Err(SignatureError::Unsupported("an ssh key of this kind")),
    }
}

struct Parsed<'a> {
    key: &'a [u8],
    namespace: &'a [u8],
    reserved: &'a [u8],
    hash: &'a [u8],
    kind: &'a [u8],
    value: &'a [u8],
}

fn parse(mut data: &[u8]) -> Option<Parsed<'_>> {
    (take(&mut data, MAGIC.len())? == MAGIC && take(&mut data, 4)? == [0, 0, 0, 1]).then_some(())?;
    let (key, namespace, reserved, hash) = (string(&mut data)?, string(&mut data)?, string(&mut data)?, string(&mut data)?);
    let mut signature = string(&mut data)?;
    let kind = string(&mut signature)?;
    Some(Parsed { key, namespace, reserved, hash, kind, value: signature })
}

fn string<'a>(data: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = u32::from_be_bytes(take(data, 4)?.try_into().ok()?);
    take(data, usize::try_from(length).ok()?)
}

/// The first key of a file of them; options in front of it and a comment behind it do not matter.
fn authorized_key(text: &str) -> Option<Vec<u8>> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.windows(2).find_map(|pair| {
                let blob = STANDARD.decode(pair[1]).ok()?;
                (string(&mut blob.as_slice())? == pair[0].as_bytes()).then_some(blob)
            })
        })
        .next()
}

/// Whether the key with this encoding made the signature `value` of the sort `kind`; `None` where that cannot be told.
fn made_by(mut key: &[u8], kind: &[u8], mut value: &[u8], signed: &[u8]) -> Option<bool> {
    let key_kind = string(&mut key)?;
    let made = match (key_kind, kind) {
        (b"ssh-ed25519", b"ssh-ed25519") => PublicKey::Ed25519(string(&mut key)?.to_vec()).signed_ed25519(signed, string(&mut value)?),
        (b"ssh-rsa", b"rsa-sha2-256" | b"rsa-sha2-512") => {
            let (e, n) = (number(&mut key)?, number(&mut key)?);
            let hash = if kind.ends_with(b"256") { Hash::Sha256 } else { Hash::Sha512 };
            PublicKey::Rsa { n: n.to_vec(), e: e.to_vec() }.signed_rsa(hash, signed, string(&mut value)?)
        }
        (b"ecdsa-sha2-nistp256" | b"ecdsa-sha2-nistp384", _) if key_kind == kind => {
            let (public, hash) = ecdsa(&mut key)?;
            let mut pair = string(&mut value)?;
            public.signed_ecdsa(hash, signed, number(&mut pair)?, number(&mut pair)?)
        }
        (b"sk-ssh-ed25519@openssh.com", _) if key_kind == kind => {
            let public = PublicKey::Ed25519(string(&mut key)?.to_vec());
            let signature = string(&mut value)?;
            hardware(string(&mut key)?, value, signed).is_some_and(|signed| public.signed_ed25519(&signed, signature))
        }
        (b"sk-ecdsa-sha2-nistp256@openssh.com", _) if key_kind == kind => {
            let (public, hash) = ecdsa(&mut key)?;
            let mut pair = string(&mut value)?;
            let (r, s) = (number(&mut pair)?, number(&mut pair)?);
            hardware(string(&mut key)?, value, signed).is_some_and(|signed| public.signed_ecdsa(hash, &signed, r, s))
        }
        _ => return None,
    };
    Some(made)
}

fn ecdsa(key: &mut &[u8]) -> Option<(PublicKey, Hash)> {
    match (string(key)?, string(key)?) {
        (b"nistp256", point) => Some((PublicKey::P256(point.to_vec()), Hash::Sha256)),
        (b"nistp384", point) => Some((PublicKey::P384(point.to_vec()), Hash::Sha384)),
        _ => None,
    }
}

/// What a hardware key signs of what it was given. `None`: nobody was there.
fn hardware(application: &[u8], flags_and_counter: &[u8], signed: &[u8]) -> Option<Vec<u8>> {
    let (flags, _counter) = flags_and_counter.split_first().filter(|(_, counter)| counter.len() == 4)?;
    (flags & USER_PRESENT != 0)
        .then(|| [Hash::Sha256.of(application).as_ref(), flags_and_counter, Hash::Sha256.of(signed).as_ref()].concat())
}

/// Without the zero that keeps it positive.
fn number<'a>(data: &mut &'a [u8]) -> Option<&'a [u8]> {
    let bytes = string(data)?;
    Some(bytes.strip_prefix(&[0]).unwrap_or(bytes))
}
