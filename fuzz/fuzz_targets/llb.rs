//! LLB definitions: as they are, and with digests mended so that mutations get past the first check.
#![no_main]
use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use llb::{Graph, Rewrite, cache_key};
use oci::{Digest, Platform};
use prost::Message as _;
use proto::pb;

fuzz_target!(|data: &[u8]| {
    if let Err(error) = Graph::decode(data.to_vec()).map(check) {
        drop(error.to_string());
    }
    if let Ok(definition) = pb::Definition::decode(data) {
        let _ = Graph::load(&mend(definition)).map(check);
    }
});

/// Makes every input name a vertex that comes before it.
fn mend(mut definition: pb::Definition) -> pb::Definition {
    let mut new_names: HashMap<String, String> = HashMap::new();
    let mut made: Vec<String> = Vec::new();
    for encoded in &mut definition.def {
        let old = Digest::of(&*encoded).to_string();
        if let Ok(mut op) = pb::Op::decode(encoded.clone()) {
            for input in &mut op.inputs {
                let pick = input.digest.bytes().map(usize::from).sum::<usize>();
                let any = || made.get(pick.checked_rem(made.len())?).cloned();
                if let Some(digest) = new_names.get(&input.digest).cloned().or_else(any) {
                    input.digest = digest;
                }
            }
            *encoded = op.encode_to_vec().into();
        }
        let new = Digest::of(&*encoded).to_string();
        made.push(new.clone());
        if let Some(metadata) = definition.metadata.remove(&old) {
            definition.metadata.insert(new.clone(), metadata);
        }
        new_names.insert(old, new);
    }
    definition
}

fn check(graph: Graph) {
    let index = graph.index().len();
    assert_eq!(index, graph.vertices.len(), "each vertex is there once");
    for vertex in &graph.vertices {
        assert_eq!(vertex.digest, Digest::of(&vertex.encoded));
        let _ = cache_key::of(vertex, &Platform::host());
        let _ = graph.locations(&vertex.digest);
    }
    let again = Graph::decode(graph.to_bytes()).expect("what was accepted is accepted again");
    assert_eq!(again.vertices.len(), graph.vertices.len());
    let changed = graph.rewrite(&Rewrite { proxy_network: true, ..Rewrite::default() });
    assert_eq!(changed.vertices.len(), index);
}
