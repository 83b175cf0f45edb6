//! Signed commits and tags.
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};

use super::armor::blocks;
use super::{SignatureError, openpgp, ssh};

const PGP: &str = "-----BEGIN PGP SIGNATURE-----";
const SSH: &str = "-----BEGIN SSH SIGNATURE-----";

/// Checks that an object is the one of this name, and is signed by one of the keys.
pub(crate) fn verify(object: &[u8], name: &str, keys: &str, reject_expired: bool) -> Result<(), SignatureError> {
    let is_tag = object.starts_with(b"object ");
    check_name(object, is_tag, name)?;
    let Parts { signature, signed } = if is_tag { split_tag(object) } else { split_commit(object) };
    if signature.is_empty() {
        return Err(SignatureError::Unsigned);
    }
    if signature.starts_with(PGP) {
        return openpgp::verify_detached(signed, &signature, keys, reject_expired);
    }
    if !signature.starts_with(SSH) {
        return Err(SignatureError::Format);
    }
    let block = blocks(&signature).and_then(|blocks| blocks.into_iter().next()).ok_or(SignatureError::SshFormat)?;
    ssh::verify(&signed, &block.bytes, keys)
}

/// Both ways to take a signature out of an object.
#[cfg(feature = "fuzzing")]
pub(super) fn split(object: &[u8]) {
    let tag = split_tag(object);
    assert!(object.starts_with(&tag.signed));
    assert!(split_commit(object).signed.len() <= object.len());
}

fn check_name(object: &[u8], is_tag: bool, name: &str) -> Result<(), SignatureError> {
    let algorithm = if name.len() == 64 { &SHA256 } else { &SHA1_FOR_LEGACY_USE_ONLY };
    let head = format!("{} {}\0", if is_tag { "tag" } else { "commit" }, object.len());
    let sum = digest(algorithm, &[head.as_bytes(), object].concat());
    let actual: String = sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    if actual == name { Ok(()) } else { Err(SignatureError::Checksum { expected: name.to_owned(), actual }) }
}

/// An object's signature, and what it signs.
#[derive(Debug, PartialEq, Eq)]
struct Parts {
    signature: String,
    signed: Vec<u8>,
}

/// A commit's signature is a header of several lines.
fn split_commit(object: &[u8]) -> Parts {
    let (mut signature, mut signed) = (String::new(), Vec::new());
    let (mut in_headers, mut in_signature) = (true, false);
    for line in object.split_inclusive(|byte| *byte == b'\n') {
        in_headers &= line != b"\n";
        let first = [&b"gpgsig "[..], b"gpgsig-sha256 "].iter().find_map(|head| line.strip_prefix(*head));
        let more = line.strip_prefix(b" ").filter(|_| in_signature);
        match first.or(more).filter(|_| in_headers) {
            Some(text) => {
                in_signature = true;
                signature.push_str(&String::from_utf8_lossy(text));
            }
            None => {
                in_signature = false;
                signed.extend_from_slice(line);
            }
        }
    }
    Parts { signature, signed }
}

/// A tag's signature follows its message.
fn split_tag(object: &[u8]) -> Parts {
    let mut at = 0;
    let mut in_headers = true;
    for line in object.split_inclusive(|byte| *byte == b'\n') {
        in_headers &= line != b"\n";
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        if !in_headers && (text == PGP.as_bytes() || text == SSH.as_bytes()) {
            break;
        }
        at += line.len();
    }
    let (signed, signature) = object.split_at(at);
    Parts { signature: String::from_utf8_lossy(signature).into_owned(), signed: signed.to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_taken_out_of_commits() {
        let object = b"tree t\nauthor a\ngpgsig -----BEGIN X-----\n \n abc\n -----END X-----\nencoding u\n\ngpgsig no\n header\n";
        let parts = split_commit(object);
        assert_eq!(parts.signature, "-----BEGIN X-----\n\nabc\n-----END X-----\n");
        assert_eq!(parts.signed, b"tree t\nauthor a\nencoding u\n\ngpgsig no\n header\n");
    }

    #[test]
    fn signatures_follow_the_messages_of_tags() {
        let object = format!("object o\ntype commit\n\nmessage\n{SSH}\nabc\n");
        assert_eq!(
            split_tag(object.as_bytes()),
            Parts { signature: format!("{SSH}\nabc\n"), signed: b"object o\ntype commit\n\nmessage\n".to_vec() }
        );
        assert_eq!(split_tag(b"object o\n\nm\n").signature, "");
    }

    #[test]
    fn an_object_of_another_name_is_refused() {
        let empty = "tree 4b825dc642cb6eb9a060e54bf8d69288fbee4904\n\nx\n";
        let error = verify(empty.as_bytes(), &"0".repeat(40), "", false).unwrap_err();
        assert!(matches!(error, SignatureError::Checksum { .. }), "{error}");
    }
}
