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
