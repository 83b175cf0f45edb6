//! What runs where a vertex ignores the cache and earlier builds left results. The expectations were recorded from BuildKit v0.32 with file ops.
#![allow(clippy::unwrap_used)]
mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::*;
use solver::*;

/// `name input input; …` in the order of the graph; `!` in front of a name: it ignores the cache. A name with `k` in front looks at the content of
/// all inputs but its first, as a copy does.
fn parse(text: &str) -> Vec<(Spec, Op)> {
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    let mut graph = Vec::new();
    for part in text.split(';') {
        let mut words = part.split_whitespace();
        let first = words.next().unwrap();
        let name = first.trim_start_matches('!');
        let inputs: Vec<(usize, u32)> = words.map(|word| (places[word], 0)).collect();
        let mut op = Op::new(name, inputs.len());
        for input in 1..inputs.len() {
            op.content[input] = name.starts_with('k');
            op.selectors[input] = name.starts_with('k').then(|| "/".into());
        }
        let mut spec = spec(name, &inputs);
        spec.ignore_cache = first.starts_with('!');
        places.insert(name, graph.len());
        graph.push((spec, op));
    }
    graph
}

/// One letter for each vertex that ran.
fn build(store: &MemoryStore, graph: &str) -> String {
    let graph = parse(graph);
    let mut world = World::new(store, Limits::default());
    let ids = world.load(1, &graph);
    let request = world.want(1, *ids.last().unwrap(), Want::Result);
    world.finish();
    world.value(request);
    world.ran.iter().map(String::as_str).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Each build with what it runs, on the results of those before it.
fn runs(builds: &[(&str, &str)]) {
    let store = MemoryStore::default();
    for (n, (graph, expected)) in builds.iter().enumerate() {
        assert_eq!(build(&store, graph), *expected, "build {n}: {graph}");
    }
}

#[test]
fn in_a_chain_the_next_vertex_runs_too_and_leads_to_old_results() {
    let (plain, source, second) = ("a; b a; c b; d c", "!a; b a; c b; d c", "a; !b a; c b; d c");
    runs(&[(plain, "abcd"), (source, "ab"), (plain, ""), (source, "ab"), (plain, "")]);
    runs(&[(plain, "abcd"), (second, "bc"), (plain, ""), (second, "bc"), (source, "ab")]);
    runs(&[(plain, "abcd"), ("a; b a; !c b; d c", "cd"), (plain, "")]);
    runs(&[(plain, "abcd"), ("a; b a; c b; !d c", "d"), (plain, "")]);
    runs(&[("!a; b a; c b; d c", "abcd"), (plain, ""), ("!a; !b a; !c b; !d c", "abcd"), (plain, "")]);
}

#[test]
fn two_forced_vertices_in_a_long_chain() {
    let plain = "a; b a; c b; d c; e d; f e";
    runs(&[(plain, "abcdef"), ("a; !b a; c b; d c; !e d; f e", "bcef"), (plain, "")]);
}

#[test]
fn in_a_diamond_all_users_of_a_forced_vertex_run() {
    let plain = "a; b a; c a; m b c";
    runs(&[(plain, "abcm"), ("!a; b a; c a; m b c", "abc"), (plain, "")]);
    runs(&[(plain, "abcm"), ("a; !b a; c a; m b c", "bm"), (plain, ""), ("a; b a; c a; !m b c", "m")]);
    let plain = "a; b a; c a; m b c; d m; e d";
    let one_side = "a; b a; !c a; m b c; d m; e d";
    runs(&[(plain, "abcdem"), (one_side, "cm"), ("!a; b a; c a; m b c; d m; e d", "abc"), (plain, "")]);
}

#[test]
fn equal_content_of_a_forced_vertex_is_found() {
    let plain = "a; b; k a b; d k";
    runs(&[(plain, "abdk"), ("!a; b; k a b; d k", "ak"), (plain, "")]);
    runs(&[(plain, "abdk"), ("a; !b; k a b; d k", "b"), (plain, ""), ("a; !b; k a b; d k", "b")]);
    let plain = "a; b a; k a b; d k";
    runs(&[(plain, "abdk"), ("!a; b a; k a b; d k", "abk"), (plain, "")]);
    let plain = "a; b a; c; k c b; d k; e d";
    runs(&[(plain, "abcdek"), ("!a; b a; c; k c b; d k; e d", "ab"), (plain, "")]);
    runs(&[(plain, "abcdek"), ("a; !b a; c; k c b; d k; e d", "b"), (plain, "")]);
    let both = "a; !b a; !c; k c b; d k; e d";
    let three = "a; !b a; !c; !k c b; d k; e d";
    runs(&[(plain, "abcdek"), (both, "bck"), (plain, ""), (three, "bcdk"), (plain, "")]);
}
