//! Against what gpg and ssh-keygen made; the files are in `fixtures`, all of `MESSAGE`.
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};
use ring::signature::{Ed25519KeyPair, KeyPair as _};

use super::armor::blocks;
use super::{SignatureError, ssh, verify_detached, verify_git_object};

const MESSAGE: &str = "hello\nworld\n";

macro_rules! fixture {
    ($name:literal) => {
        include_str!(concat!("fixtures/", $name))
    };
}

fn openpgp(message: &str, signature: &str, keys: &str) -> Result<(), String> {
    verify_detached(message.into(), signature, keys, false).map_err(|e| e.to_string())
}

#[test]
fn signatures_of_every_kind_of_key_hold() {
    for (signature, key) in [
        (fixture!("ed.sig"), fixture!("ed.key")),
        (fixture!("p256.sig"), fixture!("p256.key")),
        (fixture!("p384.sig"), fixture!("p384.key")),
        (fixture!("rsa.sig"), fixture!("rsa.key")),
    ] {
        openpgp(MESSAGE, signature, key).unwrap();
        let changed = openpgp("hello\nworld!\n", signature, key).unwrap_err();
        assert!(changed.ends_with("invalid signature: verification failure"), "{changed}");
        // Someone else's signature is refused, and the right key may come second.
        let other = openpgp(MESSAGE, signature, fixture!("old.key")).unwrap_err();
        assert!(other.ends_with("made by unknown entity"), "{other}");
        openpgp(MESSAGE, signature, &format!("{}\n{key}", fixture!("old.key"))).unwrap();
    }
}

#[test]
fn text_is_signed_whatever_its_line_ends() {
    openpgp(MESSAGE, fixture!("ed-text.sig"), fixture!("ed.key")).unwrap();
    openpgp("hello\r\nworld\r\n", fixture!("ed-text.sig"), fixture!("ed.key")).unwrap();
    assert!(openpgp("hello\nworld", fixture!("ed-text.sig"), fixture!("ed.key")).is_err());
}

#[test]
fn weak_revoked_and_odd_ones_are_refused() {
    for (signature, key, expected) in [
        (fixture!("gone.sig"), fixture!("gone.key"), "key revoked"),
        (fixture!("rsa-sha1.sig"), fixture!("rsa.key"), "rejecting weak/unknown hash: 2"),
        (fixture!("small.sig"), fixture!("small.key"), "no usable key"),
        (fixture!("p521.sig"), fixture!("p521.key"), "no usable key"),
        (fixture!("ed.sig"), "", "failed to read armored public key: no armored data found"),
        (fixture!("ed.sig"), fixture!("ed.sig"), "expected public or private key block"),
        ("", fixture!("ed.key"), "failed to decode armored signature"),
    ] {
        let error = openpgp(MESSAGE, signature, key).unwrap_err();
        assert!(error.contains(expected), "{error}, not {expected}");
    }
}

#[test]
fn what_has_expired_was_good_once() {
    let verify = |signature, key, now| verify_detached(MESSAGE.into(), signature, key, now);
    verify(fixture!("old.sig"), fixture!("old.key"), false).unwrap();
    let key = verify(fixture!("old.sig"), fixture!("old.key"), true).unwrap_err();
    assert!(key.to_string().ends_with("key expired"), "{key}");
    verify(fixture!("ed-expired.sig"), fixture!("ed.key"), false).unwrap();
    let signature = verify(fixture!("ed-expired.sig"), fixture!("ed.key"), true).unwrap_err();
    assert!(signature.to_string().ends_with("signature expired"), "{signature}");
    verify(fixture!("rsa.sig"), fixture!("rsa.key"), true).unwrap();
}

#[test]
fn a_subkey_that_does_not_agree_signs_nothing() {
    let mut key = blocks(fixture!("rsa.key")).unwrap().remove(0);
    // The agreement is in the part of the binding that is not hashed: renamed, it is lost, and the binding itself still holds.
    let mark: Vec<usize> =
        key.bytes.windows(4).enumerate().filter(|(_, w)| w[0] == 32 && w[1] == 4 && w[2] == 0x19).map(|(at, _)| at).collect();
    let [at] = mark[..] else { panic!("one embedded signature: {mark:?}") };
    key.bytes[at] = 20;
    let armored = format!("-----BEGIN {0}-----\n\n{1}\n-----END {0}-----\n", key.label, STANDARD.encode(&key.bytes));
    let error = openpgp(MESSAGE, fixture!("rsa.sig"), &armored).unwrap_err();
    assert!(error.ends_with("made by unknown entity"), "{error}");
}

#[test]
fn no_damage_makes_a_panic_or_a_valid_signature() {
    let (signature, key) = (blocks(fixture!("ed.sig")).unwrap().remove(0), blocks(fixture!("ed.key")).unwrap().remove(0));
    let armored = |label: &str, bytes: &[u8]| format!("-----BEGIN {label}-----\n\n{}\n-----END {label}-----\n", STANDARD.encode(bytes));
    let whole = armored(&key.label, &key.bytes);
    for end in 0..signature.bytes.len() {
        assert!(openpgp(MESSAGE, &armored(&signature.label, &signature.bytes[..end]), &whole).is_err(), "{end}");
    }
    for end in 0..key.bytes.len() {
        let cut = armored(&key.label, &key.bytes[..end]);
        assert!(openpgp(MESSAGE, &armored(&signature.label, &signature.bytes), &cut).is_err(), "{end}");
    }
    for at in 0..key.bytes.len() {
        let mut bytes = key.bytes.clone();
        bytes[at] ^= 0xff;
        let _ = openpgp(MESSAGE, &armored(&signature.label, &signature.bytes), &armored(&key.label, &bytes));
    }
}

fn ssh_signature(armored: &str) -> Vec<u8> {
    blocks(armored).unwrap().remove(0).bytes
}

#[test]
fn ssh_signatures_of_every_kind_of_key_hold() {
    for (signature, key) in [
        (fixture!("ssh-ed25519-256.sig"), fixture!("ssh-ed25519-256.pub")),
        (fixture!("ssh-ecdsa-256.sig"), fixture!("ssh-ecdsa-256.pub")),
        (fixture!("ssh-ecdsa-384.sig"), fixture!("ssh-ecdsa-384.pub")),
        (fixture!("ssh-rsa-2048.sig"), fixture!("ssh-rsa-2048.pub")),
    ] {
        let signature = ssh_signature(signature);
        ssh::verify(MESSAGE.as_bytes(), &signature, &format!("# keys\n\nno-pty {key}")).unwrap();
        assert!(matches!(ssh::verify(b"hello", &signature, key), Err(SignatureError::Ssh("signature did not verify"))));
        assert!((0..signature.len()).all(|end| ssh::verify(MESSAGE.as_bytes(), &signature[..end], key).is_err()));
    }
}

#[test]
fn ssh_signatures_for_other_ends_and_by_others_are_refused() {
    let (other, key) = (ssh_signature(fixture!("ssh-other-namespace.sig")), fixture!("ssh-ed25519-256.pub"));
    assert!(matches!(ssh::verify(MESSAGE.as_bytes(), &other, key), Err(SignatureError::SshNamespace(name)) if name == "file"));
    let signature = ssh_signature(fixture!("ssh-ed25519-256.sig"));
    let by_other = ssh::verify(MESSAGE.as_bytes(), &signature, fixture!("ssh-ecdsa-256.pub"));
    assert!(matches!(by_other, Err(SignatureError::Ssh("public key does not match"))));
    assert!(matches!(ssh::verify(MESSAGE.as_bytes(), &signature, fixture!("ed.key")), Err(SignatureError::NoSshKey)));
}

#[test]
fn a_hardware_key_must_have_been_touched() {
    let string = |bytes: &[u8]| [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat();
    let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
    let kind = b"sk-ssh-ed25519@openssh.com";
    let key = [string(kind), string(pair.public_key().as_ref()), string(b"ssh:")].concat();
    let line = format!("sk-ssh-ed25519@openssh.com {} me", STANDARD.encode(&key));
    let sum = digest(&SHA256, MESSAGE.as_bytes());
    let signed = [b"SSHSIG".to_vec(), string(b"git"), string(b""), string(b"sha256"), string(sum.as_ref())].concat();
    let signature = |flags: u8| {
        let counter = [flags, 0, 0, 0, 9];
        let to_sign = [digest(&SHA256, b"ssh:").as_ref(), &counter, digest(&SHA256, &signed).as_ref()].concat();
        let value = [string(kind), string(pair.sign(&to_sign).as_ref()), counter.to_vec()].concat();
        [b"SSHSIG\0\0\0\x01".to_vec(), string(&key), string(b"git"), string(b""), string(b"sha256"), string(&value)].concat()
    };
    ssh::verify(MESSAGE.as_bytes(), &signature(1), &line).unwrap();
    assert!(ssh::verify(MESSAGE.as_bytes(), &signature(0), &line).is_err());
}

#[test]
fn signed_commits_and_tags_hold() {
    let (commit, tag) = (fixture!("commit"), fixture!("tag"));
    let (commit_name, tag_name) = ("a23cd098f8602e03411a573c71de33cd59016d07", "b7bf72ef14492a96c9e3ada0144fd9d063731c97");
    verify_git_object(commit.as_bytes(), commit_name, fixture!("rsa.key"), true).unwrap();
    verify_git_object(tag.as_bytes(), tag_name, fixture!("ssh-ed25519-256.pub"), true).unwrap();
    assert!(matches!(verify_git_object(commit.as_bytes(), tag_name, fixture!("rsa.key"), true), Err(SignatureError::Checksum { .. })));
    assert!(matches!(verify_git_object(tag.as_bytes(), tag_name, fixture!("rsa.key"), true), Err(SignatureError::NoSshKey)));
    let unsigned =
        "tree 4b825dc642cb6eb9a060e54bf8d69288fbee4904\nauthor n <e@x> 1704067200 +0000\ncommitter n <e@x> 1704067200 +0000\n\nx\n";
    let head = format!("commit {}\0{unsigned}", unsigned.len());
    let name: String =
        digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, head.as_bytes()).as_ref().iter().map(|b| format!("{b:02x}")).collect();
    assert!(matches!(verify_git_object(unsigned.as_bytes(), &name, "", false), Err(SignatureError::Unsigned)));
}
