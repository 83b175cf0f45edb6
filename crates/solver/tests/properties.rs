//! Random graphs, random orders of events, random cancellation, a cache that forgets: results are right, nothing is left, nothing runs twice.
#![allow(clippy::unwrap_used)]
mod common;

use std::collections::{BTreeMap, HashMap};

use common::*;
use solver::*;

/// A small generator of our own: a failing seed can be run again.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// A graph whose vertices depend on earlier ones, with everything that the solver tells apart.
fn graph(random: &mut Random, size: usize, session: u64) -> Vec<(Spec, Op)> {
    let mut all = Vec::new();
    for at in 0..size {
        let count = if at == 0 { 0 } else { random.below(4) };
        let inputs: Vec<(usize, u32)> = (0..count).map(|_| (random.below(at), random.below(2) as u32)).collect();
        // Few names, so that equal vertices and equal ops of different vertices come up.
        let name = format!("{} {:?}", random.below(size), inputs);
        let mut op = Op::new(&name, count);
        for i in 0..count {
            op.content[i] = random.chance(40);
            op.selectors[i] = random.chance(50).then(|| format!("/{}", random.below(2)));
        }
        op.constant = random.chance(20);
        op.fails = random.chance(2).then(|| [Stage::Map, Stage::Inspect, Stage::Run][random.below(3)]);
        op.maps = vec![digest(format!("{} {:?} {:?} {}", random.below(size), op.content, op.selectors, op.constant))];
        let mut identity = format!("{name} {op:?}");
        if count == 0 {
            match random.below(4) {
                0 => op.maps = vec![digest(format!("{} {session}", op.maps[0])).into_random()],
                1 => {
                    // Two manifests may have the same layers; a manifest has only one set of them.
                    let manifest = random.below(size);
                    op.maps = vec![digest(format!("manifest {manifest}")), digest(format!("layers {}", manifest / 2))];
                }
                _ => {}
            }
            identity = format!("{name} {op:?}");
        }
        for (input, output) in &inputs {
            let (spec, _): &(Spec, Op) = &all[*input];
            identity.push_str(&format!(" {} {output}", spec.digest));
        }
        let mut spec = spec(&identity, &inputs);
        spec.ignore_cache = random.chance(10);
        spec.limited = random.chance(70);
        all.push((spec, op));
    }
    all
}

/// What every output's value must be, whatever came from a cache.
fn expected(graph: &[(Spec, Op)]) -> Vec<[Value; 2]> {
    let mut values: Vec<[Value; 2]> = Vec::new();
    for (spec, op) in graph {
        let inputs: Vec<Value> = spec.inputs.iter().map(|(at, output)| values[*at][*output as usize].clone()).collect();
        values.push([op.value(0, &inputs), op.value(1, &inputs)]);
    }
    values
}

fn forget_some(store: &MemoryStore, random: &mut Random) {
    let mut memory = store.0.borrow_mut();
    let all: Vec<String> = memory.values.keys().cloned().collect::<std::collections::BTreeSet<_>>().into_iter().collect();
    for id in all {
        if random.chance(30) {
            memory.values.remove(&id);
            if random.chance(80) {
                memory.records.values_mut().for_each(|r| _ = r.remove(&id)); // else the record is there and cannot be loaded
            }
        }
    }
}

/// Several jobs over one solver, some of which leave early. Returns the log of all commands.
fn play(seed: u64, store: &MemoryStore) -> Vec<String> {
    let random = &mut Random(seed);
    let runs = if random.chance(50) { Some(1 + random.below(3)) } else { None };
    let mut world = World::new(store, Limits { runs });
    world.outputs = 2;
    let mut wanted: BTreeMap<RequestId, (u64, Value)> = BTreeMap::new();
    let mut log = Vec::new();
    let base = 4 + random.below(12);
    let shared_seed = seed | 1;
    for job in 0..4u64 {
        // Half of the jobs bring the same graph.
        let source = &mut Random(if random.chance(50) { shared_seed } else { shared_seed.wrapping_mul(2 * job + 3) });
        let graph = graph(source, base, job % 2);
        let values = expected(&graph);
        let ids = world.load(job, &graph);
        for _ in 0..1 + random.below(3) {
            let (at, output) = (random.below(graph.len()), random.below(2) as u32);
            let want = [Want::Definition, Want::Keys, Want::Result][random.below(3)];
            let request = world.want_output(job, ids[at], output, want);
            if want == Want::Result {
                wanted.insert(request, (job, values[at][output as usize].clone()));
            }
        }
        for _ in 0..random.below(20) {
            if !world.pending.is_empty() {
                world.end(random.below(world.pending.len()), random.chance(50));
            }
        }
        if random.chance(30) {
            let gone = random.below(job as usize + 1) as u64;
            world.apply(Event::Leave(JobId(gone)));
            wanted.retain(|request, (job, _)| *job != gone || world.answers.contains_key(request));
        }
    }
    while !world.pending.is_empty() {
        world.end(random.below(world.pending.len()), random.chance(50));
    }
    for (request, (_, value)) in &wanted {
        let answer = world.answers.get(request).unwrap_or_else(|| panic!("seed {seed}: no answer"));
        match answer {
            Ok(answer) => assert_eq!(answer.result.as_ref(), Some(value), "seed {seed}"),
            Err(failure) => assert!(failure.0.ends_with(" failed"), "seed {seed}: {failure:?}"),
        }
    }
    for job in 0..4 {
        world.apply(Event::Leave(JobId(job)));
    }
    assert!(world.solver.is_empty() && world.ops.is_empty(), "seed {seed} leaves something behind");
    log.append(&mut world.log);
    let mut open: HashMap<String, i64> = HashMap::new();
    for (name, progress) in &world.progress {
        *open.entry(name.clone()).or_default() += if *progress == Progress::Started { 1 } else { -1 };
    }
    assert!(open.values().all(|n| *n == 0), "seed {seed}: an interval stays open");
    log
}

#[test]
fn every_wanted_result_comes_and_is_right() {
    for seed in 1..120 {
        let store = MemoryStore::default();
        for round in 0..4 {
            play(seed * 7919 + round, &store);
            play(seed * 7919, &store);
            forget_some(&store, &mut Random(seed + round + 1));
        }
    }
}

#[test]
fn the_same_events_give_the_same_commands() {
    for seed in 1..60 {
        let run = || {
            let store = MemoryStore::default();
            [play(seed, &store), play(seed + 1, &store), play(seed, &store)]
        };
        assert_eq!(run(), run(), "seed {seed}");
    }
}

#[test]
fn nothing_that_is_held_runs_twice_and_the_next_build_runs_nothing() {
    for seed in 1..200 {
        let store = MemoryStore::default();
        let mut graph = graph(&mut Random(seed), 25, 0);
        graph.iter_mut().for_each(|(s, op)| {
            (s.ignore_cache, op.fails) = (false, None);
            op.maps.retain(|m| !m.is_random());
            if op.maps.is_empty() {
                op.maps.push(digest(&op.name));
            }
        });
        let build = |random: &mut Random| {
            let mut world = World::new(&store, Limits::default());
            world.outputs = 2;
            let ids = world.load(1, &graph);
            let request = world.want(1, *ids.last().unwrap(), Want::Result);
            while !world.pending.is_empty() {
                world.end(random.below(world.pending.len()), false);
            }
            assert_eq!(world.value(request), expected(&graph).last().unwrap()[0], "seed {seed}");
            let mut names: Vec<_> = world.ran.clone();
            names.sort();
            let ran = names.len();
            names.dedup();
            // Vertices of different digests may have one name here, so only as many runs as vertices can be asked for.
            assert!(ran <= world.solver.len(), "seed {seed}: {ran} runs");
            world
        };
        build(&mut Random(seed));
        let second = build(&mut Random(seed + 1));
        assert!(second.ran.is_empty(), "seed {seed}: {:?}", second.ran);
        assert_eq!(second.loaded.len(), 1, "seed {seed}: {:?}", second.loaded);
    }
}

#[test]
fn five_thousand_vertices_take_well_under_a_second() {
    let mut chain = vec![(spec("base", &[]), Op::new("base", 0))];
    for i in 0..5000usize {
        let mut op = Op::new(&format!("step {i}"), 2);
        op.content[1] = i % 10 == 0;
        chain.push((spec(&format!("step {i}"), &[(i, 0), (0, 0)]), op));
    }
    let mut wide = vec![(spec("base", &[]), Op::new("base", 0))];
    wide.extend((0..5000).map(|i| (spec(&format!("leaf {i}"), &[(0, 0)]), Op::new(&format!("leaf {i}"), 1))));
    let all: Vec<(usize, u32)> = (1..=5000).map(|i| (i, 0)).collect();
    wide.push((spec("merge", &all), Op::new("merge", 5000)));
    for (name, graph) in [("chain", chain), ("wide", wide)] {
        let store = MemoryStore::default();
        for round in ["cold", "cached"] {
            let start = std::time::Instant::now();
            let mut world = World::new(&store, Limits { runs: Some(4) });
            let ids = world.load(1, &graph);
            let request = world.want(1, *ids.last().unwrap(), Want::Result);
            while let Some(last) = world.pending.len().checked_sub(1) {
                world.end(last, false);
            }
            world.value(request);
            world.apply(Event::Leave(JobId(1)));
            let took = start.elapsed();
            println!("{name}, {round}: {took:?}, {} runs", world.ran.len());
            // Unoptimised, on a machine that may be busy with much else; quadratic work would take minutes when it is not.
            assert!(took.as_secs() < 90, "{name}, {round}: {took:?}");
        }
    }
}
