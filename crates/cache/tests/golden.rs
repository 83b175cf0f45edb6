//! A cache that BuildKit wrote, read and written again.
#![allow(clippy::unwrap_used)]
use std::collections::BTreeMap;

use cache::remote::document::CacheConfig;
use cache::remote::keys::Keys;
use oci::{Digest, Document, gojson};
use solver::KeyId;

const MANIFEST: &[u8] = include_bytes!("golden/manifest.json");
const CONFIG: &[u8] = include_bytes!("golden/config.json");

#[test]
fn documents_are_written_as_buildkit_writes_them() {
    let config = CacheConfig::parse(CONFIG).unwrap();
    assert_eq!(String::from_utf8(config.to_bytes()).unwrap(), String::from_utf8_lossy(CONFIG));
    let Document::Manifest(manifest) = Document::parse("", MANIFEST).unwrap() else { panic!("an image manifest") };
    assert_eq!(gojson::to_string(&manifest).as_bytes(), MANIFEST);
    assert_eq!(manifest.config.digest, Digest::of(CONFIG));
    let blobs: Vec<&Digest> = manifest.layers.iter().map(|l| &l.digest).collect();
    assert_eq!(blobs, config.layers.iter().map(|l| &l.blob).collect::<Vec<_>>());
}

#[test]
fn every_result_is_found_from_the_image_and_the_content() {
    let config = CacheConfig::parse(CONFIG).unwrap();
    let Document::Manifest(manifest) = Document::parse("", MANIFEST).unwrap() else { panic!("an image manifest") };
    let descriptors: BTreeMap<_, _> = manifest.layers.into_iter().map(|l| (l.digest.clone(), l)).collect();
    let keys = Keys::new(&config, descriptors).unwrap();
    let with_results = config.records.iter().filter(|r| !r.results.is_empty()).count();
    assert_eq!((keys.len(), with_results), (8, 8));
    for n in 0..keys.len() {
        let stack = keys.stack(&n.to_string()).unwrap();
        assert!(stack.iter().all(|blob| blob.annotations.contains_key("containerd.io/uncompressed")), "{n}");
    }
    // The content of ctx.txt, a regular file of mode 0644 with `hello\n`, as BuildKit digests it.
    let roots: Vec<KeyId> = config.records.iter().filter(|r| r.inputs.is_empty()).map(|r| r.digest.clone().into()).collect();
    assert_eq!(roots.len(), 4);
    assert!(roots.iter().all(|root| keys.origins(root).is_empty() && keys.results(root).is_empty()), "sources have keys only");
}

/// Bytes that chance changed are refused or make sense; the same chances every time.
#[test]
fn what_is_damaged_does_no_harm() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let words: [&[u8]; 8] = [b"-1", b"0", b"99", b"null", b"[]", b"{}", b"\"\"", b"9223372036854775807"];
    let (mut refused, mut read) = (0, 0);
    for _ in 0..3000 {
        let mut bytes = CONFIG.to_vec();
        for _ in 0..=random(3) {
            let at = random(bytes.len());
            match random(4) {
                0 => bytes[at] = b"0123456789[]{},:-\"x"[random(19)],
                1 => drop(bytes.drain(at..(at + random(40)).min(bytes.len()))),
                // A number is the likeliest to be taken for another.
                _ => {
                    let digits = bytes.iter().skip(at).position(u8::is_ascii_digit).map_or(0, |n| n + at);
                    bytes.splice(digits..digits + 1, words[random(words.len())].iter().copied());
                }
            }
        }
        let Ok(config) = CacheConfig::parse(&bytes) else {
            refused += 1;
            continue;
        };
        let blob = |l: &cache::remote::document::LayerEntry| (l.blob.clone(), oci::Descriptor::new("m", l.blob.clone(), 1));
        match Keys::new(&config, config.layers.iter().map(blob).collect()) {
            Err(error) => drop(error.to_string()),
            Ok(keys) => {
                read += 1;
                (0..keys.len()).for_each(|n| assert!(keys.stack(&n.to_string()).is_some()));
                config.records.iter().for_each(|r| drop(keys.origins(&r.digest.clone().into())));
            }
        }
    }
    assert!(refused > 100 && read > 100, "{refused} refused, {read} read");
}
