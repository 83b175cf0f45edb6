//! Caches that are on their way when a graph is loaded.
#![allow(clippy::unwrap_used)]
mod common;

use std::collections::BTreeSet;

use common::*;
use solver::*;

const AWAITED: CacheId = CacheId(7);
const FOUND: CacheId = CacheId(8);

fn graph(caches: &[CacheId]) -> Vec<(Spec, Op)> {
    let node = |name: &str, inputs: &[(usize, u32)]| {
        let mut spec = spec(name, inputs);
        spec.caches = caches.iter().copied().collect();
        (spec, Op::new(name, inputs.len()))
    };
    vec![node("image", &[]), node("a", &[(0, 0)]), node("b", &[(1, 0)])]
}

fn arrive(world: &mut World, found: &[CacheId]) {
    world.apply(Event::Arrived { cache: AWAITED, found: found.iter().copied().collect() });
    world.finish();
}

fn asked(store: &MemoryStore) -> BTreeSet<BTreeSet<CacheId>> {
    store.0.borrow().asked.iter().cloned().collect()
}

#[test]
fn maps_are_made_meanwhile_and_nothing_is_looked_up_or_run() {
    for found in [&[FOUND][..], &[]] {
        let store = MemoryStore::default();
        let mut world = World::new(&store, Limits::default());
        world.solver.expect(AWAITED);
        let ids = world.load(1, &graph(&[AWAITED]));
        let request = world.want(1, ids[2], Want::Result);
        world.finish();
        assert_eq!(world.log.iter().filter(|line| line.starts_with("Map")).count(), 3, "{:?}", world.log);
        assert!(world.ran.is_empty() && asked(&store).is_empty() && !world.answers.contains_key(&request));
        arrive(&mut world, found);
        world.value(request);
        assert_eq!(world.ran, ["image", "a", "b"]);
        assert_eq!(
            asked(&store),
            BTreeSet::from([found.iter().copied().collect()]),
            "what came is looked into, and its announcement is not"
        );
    }
}

#[test]
fn what_has_results_is_loaded_after_the_arrival() {
    let store = MemoryStore::default();
    for (round, ran) in [(1, 3), (2, 0)] {
        let mut world = World::new(&store, Limits::default());
        world.solver.expect(AWAITED);
        let ids = world.load(1, &graph(&[AWAITED]));
        let request = world.want(1, ids[2], Want::Result);
        world.finish();
        arrive(&mut world, &[FOUND]);
        world.value(request);
        assert_eq!((world.ran.len(), world.loaded.len()), (ran, round - 1), "round {round}");
    }
}

#[test]
fn a_cache_that_is_here_when_it_is_named_is_not_waited_for() {
    let store = MemoryStore::default();
    let mut world = World::new(&store, Limits::default());
    world.solver.expect(AWAITED);
    arrive(&mut world, &[FOUND]);
    let ids = world.load(1, &graph(&[AWAITED]));
    let request = world.want(1, ids[2], Want::Result);
    world.finish();
    world.value(request);
    assert_eq!(asked(&store), BTreeSet::from([BTreeSet::from([FOUND])]));
    world.solver.dismiss(AWAITED);
}

#[test]
fn another_build_of_the_same_does_not_wait() {
    let store = MemoryStore::default();
    let mut world = World::new(&store, Limits::default());
    let ids = world.load(1, &graph(&[]));
    let first = world.want(1, ids[2], Want::Result);
    world.solver.expect(AWAITED);
    let ids = world.load(2, &graph(&[AWAITED]));
    let second = world.want(2, ids[2], Want::Result);
    world.finish();
    assert_eq!(world.value(first), world.value(second));
    arrive(&mut world, &[FOUND]);
}

#[test]
fn who_leaves_while_waiting_leaves_nothing() {
    let store = MemoryStore::default();
    let mut world = World::new(&store, Limits::default());
    world.solver.expect(AWAITED);
    let ids = world.load(1, &graph(&[AWAITED]));
    world.want(1, ids[2], Want::Result);
    world.finish();
    world.apply(Event::Leave(JobId(1)));
    world.finish();
    assert!(world.solver.is_empty());
    arrive(&mut world, &[FOUND]);
}
