//! Against constants that BuildKit v0.32 printed: `def` is a marshalled definition made with its client library, `ops` are its entries with their
//! digests and, as the daemon's ops compute them, cache keys and selectors.
#![allow(clippy::unwrap_used)]
use base64::Engine as _;
use llb::{Builder, Edge, Graph, Op, cache_key};
use serde_json::Value;

fn cases() -> Vec<Value> {
    serde_json::from_str::<Value>(include_str!("data/golden.json")).unwrap().as_array().unwrap().clone()
}

fn unbase64(value: &Value) -> Vec<u8> {
    base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap()).unwrap()
}

#[test]
fn definitions_load_and_encode_to_the_same_ops() {
    for case in cases() {
        let name = case["name"].as_str().unwrap();
        let graph = Graph::decode(unbase64(&case["def"])).unwrap_or_else(|e| panic!("{name}: {e}"));
        let encoded = graph.encode();
        let want: Vec<Vec<u8>> = case["ops"].as_array().unwrap().iter().map(|o| unbase64(&o["bytes"])).collect();
        assert_eq!(encoded.def, want, "{name}");
        // Vertices without a place in a file are not told of.
        let mut told = graph;
        told.sources.locations.retain(|_, locations| !locations.is_empty());
        assert_eq!(Graph::load(&encoded).unwrap(), told, "{name}");
    }
}

#[test]
fn the_builder_gives_the_client_librarys_bytes() {
    for case in cases() {
        let name = case["name"].as_str().unwrap();
        if ["raw", "empty-attr"].contains(&name) {
            continue; // not made by the client library: these ops have no constraints message
        }
        let graph = Graph::decode(unbase64(&case["def"])).unwrap();
        let mut builder = Builder::new();
        for info in &graph.sources.infos {
            builder.source(info.clone());
        }
        for v in &graph.vertices {
            let edge = builder.add(v.op.clone(), v.inputs.clone(), v.platform.clone(), v.constraints.clone(), v.metadata.clone());
            assert_eq!(edge, Edge::new(v.digest.clone(), 0), "{name}: {}", v.name);
            for location in graph.locations(&v.digest) {
                builder.location(&v.digest, location.source, location.ranges.clone());
            }
        }
        let built = builder.finish(graph.result.clone());
        assert_eq!(built, graph, "{name}");
    }
}

#[test]
fn cache_keys_are_the_daemons() {
    let mut keys = 0;
    for case in cases() {
        let name = case["name"].as_str().unwrap();
        let graph = Graph::decode(unbase64(&case["def"])).unwrap();
        for (vertex, want) in graph.vertices.iter().zip(case["ops"].as_array().unwrap()) {
            assert_eq!(vertex.digest.as_str(), want["digest"].as_str().unwrap(), "{name}");
            if matches!(vertex.op, Op::Source(_)) {
                continue;
            }
            keys += 1;
            let platform = vertex.platform.clone().unwrap_or_default();
            let key = match (cache_key::of(vertex, &platform), want["err"].as_str()) {
                (Ok(key), None) => key,
                (Err(_), Some(_)) => continue,
                (got, want) => panic!("{name}: {}: got {got:?}, want {want:?}", vertex.name),
            };
            assert_eq!(key.digest.as_str(), want["key"].as_str().unwrap(), "{name}: {}", vertex.name);
            let deps: Vec<(String, bool)> =
                key.deps.iter().map(|d| (d.selector.as_ref().map_or(String::new(), |s| s.to_string()), d.content.is_some())).collect();
            let no_deps = Vec::new();
            let want: Vec<(String, bool)> = want["deps"]
                .as_array()
                .unwrap_or(&no_deps)
                .iter()
                .map(|d| (d["selector"].as_str().unwrap().to_owned(), d["content"].as_bool().unwrap()))
                .collect();
            assert_eq!(deps, want, "{name}: {}", vertex.name);
        }
    }
    assert!(keys > 25, "only {keys} keys were compared");
}
