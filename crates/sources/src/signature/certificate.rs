//! OpenPGP certificates: a primary key, what it says of itself, and the subkeys that are bound to it.
use super::SignatureError;
use super::packet::{Key, MAY_SIGN, Packet, Signature, kind, packets, tag};
use super::public_key::Hash;

pub(super) struct Certificate {
    /// The primary key comes first.
    keys: Vec<Bound>,
    /// Of the primary key, with its reason.
    revoked: Option<String>,
}

/// A key, and the latest word on what it is for.
struct Bound {
    key: Key,
    binding: Signature,
    revoked: bool,
}

impl Certificate {
    /// The certificates of a keyring; those that do not hold together are left out.
    pub fn parse_all(data: &[u8]) -> Result<Vec<Self>, SignatureError> {
        let packets = packets(data)?;
        let mut certificates = Vec::new();
        let mut rest = packets.as_slice();
        while let Some((first, more)) = rest.split_first() {
            let end = more.iter().position(|packet| is_primary(packet)).unwrap_or(more.len());
            if is_primary(first) {
                match Key::parse(&first.body, first.tag == tag::SECRET_KEY) {
                    Ok(primary) => certificates.extend(Self::new(primary, &more[..end])?),
                    // Another certificate may be one that we can read.
                    Err(SignatureError::Unsupported(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            rest = &more[end..];
        }
        Ok(certificates)
    }

    fn new(primary: Key, packets: &[Packet<'_>]) -> Result<Option<Self>, SignatureError> {
        let mut certificate = Self { keys: Vec::new(), revoked: None };
        let mut rest = packets;
        let (direct, mut after) = signatures(rest);
        for signature in direct.iter().filter(|s| s.kind == kind::KEY_REVOCATION) {
            if holds(&primary, signature, &[&primary.hashed]) {
                certificate.revoked = Some(signature.revocation_reason.clone());
            }
        }
        let mut own: Option<Signature> = None;
        let mut subkeys = Vec::new();
        while let Some((packet, more)) = after.split_first() {
            let found;
            (found, rest) = signatures(more);
            match packet.tag {
                tag::USER_ID | tag::USER_ATTRIBUTE => own = later(own, self_certification(&primary, packet, &found)),
                tag::PUBLIC_SUBKEY | tag::SECRET_SUBKEY => {
                    if let Ok(key) = Key::parse(&packet.body, packet.tag == tag::SECRET_SUBKEY) {
                        subkeys.extend(bound(&primary, key, &found));
                    }
                }
                _ => {}
            }
            after = rest;
        }
        // Nobody knows who a key is that does not say so itself.
        let Some(binding) = own else { return Ok(None) };
        certificate.keys.push(Bound { key: primary, binding, revoked: false });
        certificate.keys.extend(subkeys);
        Ok(Some(certificate))
    }

    /// The keys with this id that may sign.
    pub fn signers(&self, id: u64) -> impl Iterator<Item = Signer<'_>> {
        let signs = move |bound: &&Bound| bound.key.id == id && bound.binding.key_flags.is_some_and(|flags| flags & MAY_SIGN != 0);
        self.keys.iter().filter(signs).map(|bound| Signer { certificate: self, bound })
    }
}

/// A key that may sign, in its certificate.
pub(super) struct Signer<'a> {
    certificate: &'a Certificate,
    bound: &'a Bound,
}

impl Signer<'_> {
    pub fn key(&self) -> &Key {
        &self.bound.key
    }

    /// Whether the key may be relied on at a time, in Unix seconds.
    pub fn check(&self, issuer: u64, time: u64) -> Result<(), SignatureError> {
        let revoked = if self.bound.revoked { Some(String::new()) } else { self.certificate.revoked.clone() };
        if let Some(reason) = revoked {
            return Err(SignatureError::Revoked { reason });
        }
        let primary = &self.certificate.keys[0];
        match [primary, self.bound].iter().any(|bound| is_over(bound.key.created, bound.binding.key_lifetime, time)) {
            true => Err(SignatureError::Expired { issuer, what: "key" }),
            false => Ok(()),
        }
    }
}

/// A lifetime of 0 never ends.
pub(super) fn is_over(created: u64, lifetime: u64, time: u64) -> bool {
    lifetime != 0 && time > created.saturating_add(lifetime)
}

fn is_primary(packet: &Packet<'_>) -> bool {
    matches!(packet.tag, tag::PUBLIC_KEY | tag::SECRET_KEY)
}

/// The signatures that come first, without those that we cannot read, and the packets after them.
fn signatures<'a, 'b>(packets: &'b [Packet<'a>]) -> (Vec<Signature>, &'b [Packet<'a>]) {
    const TRUST: u8 = 12;
    let end = packets.iter().position(|packet| packet.tag != tag::SIGNATURE && packet.tag != TRUST).unwrap_or(packets.len());
    let parsed =
        packets[..end].iter().filter(|packet| packet.tag == tag::SIGNATURE).filter_map(|packet| Signature::parse(&packet.body).ok());
    (parsed.collect(), &packets[end..])
}

fn later(known: Option<Signature>, found: Option<Signature>) -> Option<Signature> {
    match (known, found) {
        (Some(known), Some(found)) => Some(if found.created >= known.created { found } else { known }),
        (known, found) => known.or(found),
    }
}

/// The latest word of the primary key on one of its names, unless it took the name back.
fn self_certification(primary: &Key, name: &Packet<'_>, found: &[Signature]) -> Option<Signature> {
    let mark = if name.tag == tag::USER_ID { 0xb4 } else { 0xd1 };
    let mut framed = vec![mark];
    framed.extend_from_slice(&u32::try_from(name.body.len()).ok()?.to_be_bytes());
    framed.extend_from_slice(&name.body);
    let valid = |signature: &&Signature| holds(primary, signature, &[&primary.hashed, &framed]);
    let of = |wanted: fn(u8) -> bool| found.iter().filter(move |s| wanted(s.kind)).filter(valid).max_by_key(|s| s.created);
    let certified = of(|kind| kind::CERTIFICATIONS.contains(&kind))?;
    let taken_back = of(|kind| kind == kind::CERTIFICATION_REVOCATION).is_some_and(|r| r.created >= certified.created);
    (!taken_back).then(|| certified.clone())
}

/// A subkey with its binding, if it has one. One that signs must agree, else anybody could claim it.
fn bound(primary: &Key, key: Key, found: &[Signature]) -> Option<Bound> {
    let valid = |signature: &&Signature| holds(primary, signature, &[&primary.hashed, &key.hashed]);
    let of = |wanted: u8| found.iter().filter(move |s| s.kind == wanted).filter(valid).max_by_key(|s| s.created);
    let binding = of(kind::SUBKEY_BINDING)?.clone();
    let revoked = of(kind::SUBKEY_REVOCATION).is_some();
    if binding.key_flags.is_some_and(|flags| flags & MAY_SIGN != 0) {
        let back = binding.embedded.as_ref().filter(|back| back.kind == kind::PRIMARY_BINDING)?;
        if !made_by(&key, back, &[&primary.hashed, &key.hashed]) {
            return None;
        }
    }
    Some(Bound { key, binding, revoked })
}

/// Whether a key signed these parts, and names itself or nobody as the issuer.
fn holds(key: &Key, signature: &Signature, parts: &[&[u8]]) -> bool {
    signature.issuer.is_none_or(|issuer| issuer == key.id) && made_by(key, signature, parts)
}

fn made_by(key: &Key, signature: &Signature, parts: &[&[u8]]) -> bool {
    let (Some(public), Some(hash)) = (&key.public, Hash::new(signature.hash)) else { return false };
    let message = [&parts.concat(), signature.suffix.as_slice()].concat();
    key.algorithm == signature.algorithm && public.signed_openpgp(hash, &message, &signature.value)
}
