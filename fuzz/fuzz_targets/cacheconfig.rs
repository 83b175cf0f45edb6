//! What imported caches serve: the config that says which keys lead where and which layers results have.
#![no_main]
use std::collections::{BTreeMap, BTreeSet};

use cache::remote::document::CacheConfig;
use cache::remote::keys::Keys;
use libfuzzer_sys::fuzz_target;
use oci::{Descriptor, Digest};
use solver::{KeyId, Link};

fuzz_target!(|data: &[u8]| {
    let Ok(config) = CacheConfig::parse(data) else { return };
    let bytes = config.to_bytes();
    assert_eq!(CacheConfig::parse(&bytes).expect("our own config").to_bytes(), bytes);
    let blobs: BTreeSet<&Digest> = config.layers.iter().map(|layer| &layer.blob).collect();
    // All blobs are there; every other one is.
    for step in [1, 2] {
        let descriptors: BTreeMap<Digest, Descriptor> =
            blobs.iter().step_by(step).map(|blob| ((*blob).clone(), Descriptor::new("m", (*blob).clone(), 1))).collect();
        match Keys::new(&config, descriptors.clone()) {
            Ok(keys) => ask(&config, &keys, &descriptors),
            Err(error) => drop(error.to_string()),
        }
    }
});

fn ask(config: &CacheConfig, keys: &Keys, descriptors: &BTreeMap<Digest, Descriptor>) {
    for record in &config.records {
        let key = KeyId::from(record.digest.clone());
        let _ = keys.origins(&key);
        let link = Link { input: 0, output: 0, digest: record.digest.clone(), selector: None };
        let _ = keys.links(&key, &link);
    }
    for result in 0..keys.len() {
        let stack = keys.stack(&result.to_string()).expect("results whose blobs are not all there are left out");
        assert!(!stack.is_empty() && stack.len() <= config.layers.len().max(config.records.iter().flat_map(|r| &r.chains).map(|c| c.layers.len()).max().unwrap_or(0)));
        assert!(stack.iter().all(|blob| descriptors.contains_key(&blob.digest)));
    }
}
