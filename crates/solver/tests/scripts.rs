//! One behaviour a test, on graphs small enough to follow by hand.
#![allow(clippy::unwrap_used)]
mod common;

use common::*;
use solver::*;

fn node(name: &str, inputs: &[usize]) -> (Spec, Op) {
    let edges: Vec<(usize, u32)> = inputs.iter().map(|i| (*i, 0)).collect();
    (spec(name, &edges), Op::new(name, inputs.len()))
}

fn by_content(mut node: (Spec, Op), input: usize) -> (Spec, Op) {
    node.1.content[input] = true;
    node.1.selectors[input] = Some("/".into());
    node
}

fn build(store: &MemoryStore, graph: &[(Spec, Op)]) -> World {
    let mut world = World::new(store, Limits::default());
    let ids = world.load(1, graph);
    let request = world.want(1, *ids.last().unwrap(), Want::Result);
    world.finish();
    world.value(request);
    world
}

#[test]
fn a_second_build_loads_only_the_result() {
    let store = MemoryStore::default();
    let graph = [node("image", &[]), node("a", &[0]), node("b", &[1]), node("c", &[2])];
    let first = build(&store, &graph);
    assert_eq!(first.ran, ["image", "a", "b", "c"]);
    let writes = store.0.borrow().writes;

    let second = build(&store, &graph);
    assert!(second.ran.is_empty(), "{:?}", second.ran);
    assert_eq!(second.loaded, ["c"]);
    assert_eq!(store.0.borrow().writes, writes, "a hit writes nothing");
}

#[test]
fn a_pruned_result_runs_again_from_the_last_one_there() {
    let store = MemoryStore::default();
    let graph = [node("image", &[]), node("a", &[0]), node("b", &[1])];
    build(&store, &graph);
    let newest = format!("r{}", store.0.borrow().clock);
    store.0.borrow_mut().records.values_mut().for_each(|r| _ = r.remove(&newest));
    let second = build(&store, &graph);
    assert_eq!((second.ran, second.loaded), (vec!["b".to_owned()], vec!["a".to_owned()]));
}

#[test]
fn a_record_that_cannot_be_loaded_falls_back_to_a_run() {
    let store = MemoryStore::default();
    let graph = [node("image", &[]), node("a", &[0])];
    build(&store, &graph);
    let mut world = World::new(&store, Limits::default());
    world.lose_records = true;
    let ids = world.load(1, &graph);
    let request = world.want(1, ids[1], Want::Result);
    world.finish();
    world.value(request);
    assert_eq!(world.ran, ["image", "a"]);
}

#[test]
fn equal_content_from_another_session_hits_and_is_hashed_again() {
    let store = MemoryStore::default();
    let graph = |session: &str| {
        let mut source = node(&format!("local {session}"), &[]);
        source.1.name = "local files".into();
        source.1.maps = vec![digest(session).into_random()];
        [node("image", &[]), source, by_content(node("copy", &[0, 1]), 1), node("make", &[2])]
    };
    // Both sessions send the same files: make the local's value independent of its key.
    let same_value = |world: &mut World| {
        for p in &mut world.pending {
            if p.name.starts_with("local")
                && let Outcome::Ran(results) = &mut p.outcome
            {
                *results = vec![Value(digest("the same files"))];
            }
        }
    };
    let run = |session: &str| {
        let mut world = World::new(&store, Limits::default());
        let ids = world.load(1, &graph(session));
        let request = world.want(1, ids[3], Want::Result);
        while !world.pending.is_empty() {
            same_value(&mut world);
            world.end(0, false);
        }
        (world.value(request), world)
    };
    let (first, world) = run("one");
    assert_eq!(world.ran.len(), 4);
    let writes = store.0.borrow().writes;
    let (second, world) = run("two");
    assert_eq!(first, second);
    assert_eq!(world.ran, ["local files"], "only the files are sent again");
    assert_eq!(world.loaded, ["make"], "nothing but the result is loaded");
    assert_eq!(store.0.borrow().writes, writes, "keys of a session are not stored");
}

#[test]
fn content_connects_the_definition_for_next_time() {
    let store = MemoryStore::default();
    let graph = |version: &str| {
        let mut compile = node(&format!("compile {version}"), &[0]);
        compile.1.constant = true; // gives the same binary whatever the version
        compile.1.maps = vec![digest("map compile")];
        let mut source = node(&format!("source {version}"), &[]);
        source.1.maps = vec![digest(format!("source {version}"))];
        [source, compile, by_content(node("copy", &[1]), 0)]
    };
    build(&store, &graph("1"));
    let second = build(&store, &graph("2"));
    assert_eq!(second.ran, ["source 2", "compile 2"], "the copy is found by content");
    let third = build(&store, &graph("2"));
    assert!(third.ran.is_empty());
    assert_eq!(third.loaded, ["copy"], "and by definition the next time");
}

#[test]
fn an_image_is_found_by_its_second_map_when_its_tag_moved() {
    let store = MemoryStore::default();
    let graph = |manifest: &str| {
        let mut image = node(&format!("image {manifest}"), &[]);
        image.1.maps = vec![digest(manifest), digest("layers")];
        [image, node("run", &[0])]
    };
    build(&store, &graph("old"));
    let second = build(&store, &graph("old"));
    let maps = second.log.iter().filter(|l| l.starts_with("Map") && l.contains("index: 1")).count();
    assert_eq!(maps, 0, "the first map was enough");
    let moved = build(&store, &graph("new"));
    assert!(moved.ran.is_empty(), "{:?}", moved.ran);
    assert_eq!(moved.loaded, ["run"]);
}

#[test]
fn ignoring_the_cache_runs_that_vertex_only() {
    let store = MemoryStore::default();
    let mut graph = [node("image", &[]), node("a", &[0]), by_content(node("b", &[1]), 0), node("c", &[2])];
    build(&store, &graph);
    graph[1].0.ignore_cache = true;
    let second = build(&store, &graph);
    assert_eq!(second.ran, ["a"], "the users' content keys are unchanged");
    graph[2].1.content[0] = false;
    let third = build(&store, &graph);
    assert_eq!(third.ran, ["a", "b", "c"], "without content, what is built on a forced result is new");
    graph[1].0.ignore_cache = false;
    assert!(build(&store, &graph).ran.is_empty(), "and is what the next build finds");
}

/// As BuildKit v0.32 does, seen with a chain of file ops.
#[test]
fn what_is_made_on_a_forced_vertex_runs_too_and_leads_to_old_results() {
    let store = MemoryStore::default();
    let mut graph = [node("a", &[]), node("b", &[0]), node("c", &[1]), node("d", &[2])];
    build(&store, &graph);
    graph[0].0.ignore_cache = true;
    let second = build(&store, &graph);
    assert_eq!(second.ran, ["a", "b"]);
    assert_eq!(second.loaded.last().unwrap(), "d");
}

#[test]
fn keys_without_results() {
    let store = MemoryStore::default();
    let graph = [node("image", &[]), node("a", &[0]), node("b", &[1])];
    let mut world = World::new(&store, Limits::default());
    let ids = world.load(1, &graph);
    let request = world.want(1, ids[2], Want::Keys);
    world.finish();
    assert!(world.ran.is_empty() && world.answers[&request].as_ref().unwrap().keys.is_empty());

    build(&store, &graph);
    let mut world = World::new(&store, Limits::default());
    let ids = world.load(1, &graph);
    let request = world.want(1, ids[2], Want::Keys);
    world.finish();
    let answer = world.answers[&request].as_ref().unwrap();
    assert!(answer.result.is_none() && answer.keys.len() == 1 && world.loaded.is_empty());
    let request = world.want(1, ids[2], Want::Result);
    world.finish();
    world.value(request);
    assert_eq!(world.loaded, ["b"]);
}

#[test]
fn builds_share_what_runs() {
    let store = MemoryStore::default();
    let mut world = World::new(&store, Limits::default());
    let graph = [node("image", &[]), node("a", &[0])];
    let first = world.load(1, &graph);
    let one = world.want(1, first[1], Want::Result);
    world.finish_but_runs();
    let second = world.load(2, &graph);
    assert_eq!(first, second);
    let two = world.want(2, second[1], Want::Result);
    world.finish();
    assert_eq!(world.value(one), world.value(two));
    assert_eq!(world.ran, ["image", "a"]);
}

#[test]
fn leaving_cancels_only_what_nobody_else_wants() {
    let store = MemoryStore::default();
    let mut world = World::new(&store, Limits::default());
    let shared = [node("image", &[]), node("a", &[0])];
    let mut own = shared.to_vec();
    own.push(node("b", &[0]));
    let ids = world.load(1, &own);
    world.want(1, ids[1], Want::Result);
    world.want(1, ids[2], Want::Result);
    let other = world.load(2, &shared);
    let kept = world.want(2, other[1], Want::Result);
    while world.pending.iter().filter(|p| p.is_run).count() < 2 {
        world.end(0, false);
    }
    world.apply(Event::Leave(JobId(1)));
    let cancelled: Vec<&str> = world.pending.iter().filter(|p| p.cancelled).map(|p| p.name.as_str()).collect();
    assert_eq!(cancelled, ["b"]);
    world.finish();
    world.value(kept);
    world.apply(Event::Leave(JobId(2)));
    assert!(world.solver.is_empty());
}

#[test]
fn wanted_again_while_it_stops_it_starts_once_it_has_stopped() {
    let store = MemoryStore::default();
    let mut world = World::new(&store, Limits::default());
    let graph = [node("image", &[])];
    let ids = world.load(1, &graph);
    world.want(1, ids[0], Want::Result);
    world.finish_but_runs();
    world.apply(Event::Leave(JobId(1)));
    assert!(world.pending[0].cancelled);
    let ids = world.load(2, &graph);
    let request = world.want(2, ids[0], Want::Result);
    assert_eq!(world.pending.len(), 1, "the second run waits for the end of the first");
    world.finish();
    world.value(request);
    assert_eq!(world.ran, ["image"]);
}

#[test]
fn failures_reach_all_and_do_not_outlive_their_jobs() {
    let store = MemoryStore::default();
    let mut world = World::new(&store, Limits::default());
    let mut graph = [node("image", &[]), node("bad", &[0]), node("top", &[1])];
    graph[1].1.fails = Some(Stage::Run);
    let ids = world.load(1, &graph);
    let one = world.want(1, ids[2], Want::Result);
    world.finish();
    let failure = Failure("bad failed".into());
    assert_eq!(world.answers[&one].as_ref().unwrap_err(), &failure);
    assert!(world.progress.contains(&("bad".into(), Progress::Failed(failure.clone()))));
    assert!(!world.progress.iter().any(|(n, _)| n == "top"), "what never started is not shown as failed");

    let ids = world.load(2, &graph);
    let two = world.want(2, ids[2], Want::Result);
    assert_eq!(world.answers[&two].as_ref().unwrap_err(), &failure, "at once, from the shared vertex");
    world.apply(Event::Leave(JobId(1)));
    world.apply(Event::Leave(JobId(2)));
    assert!(world.solver.is_empty());
    let ids = world.load(3, &graph);
    world.ops.get_mut(&ids[1]).unwrap().fails = None;
    let three = world.want(3, ids[2], Want::Result);
    world.finish();
    world.value(three);
}

#[test]
fn a_failing_checksum_fails_its_vertex() {
    let store = MemoryStore::default();
    let mut world = World::new(&store, Limits::default());
    let mut graph = [node("image", &[]), by_content(node("copy", &[0]), 0)];
    graph[1].1.fails = Some(Stage::Inspect);
    let ids = world.load(1, &graph);
    let request = world.want(1, ids[1], Want::Result);
    world.finish();
    assert!(world.answers[&request].is_err());
    let shown: Vec<_> = world.progress.iter().filter(|(n, _)| n == "copy").map(|(_, p)| p.clone()).collect();
    assert_eq!(shown, [Progress::Started, Progress::Failed(Failure("copy failed".into()))]);
}

#[test]
fn what_watchers_see() {
    let store = MemoryStore::default();
    let graph = [node("image", &[]), node("a", &[0])];
    let first = build(&store, &graph);
    let names = |w: &World| w.progress.iter().map(|(n, p)| format!("{n} {p:?}")).collect::<Vec<_>>();
    assert_eq!(
        names(&first),
        ["image Started", "image Completed", "image Started", "image Completed", "a Started", "a Completed"],
        "a vertex without inputs has one interval for its cache map and one for its run"
    );
    let second = build(&store, &graph);
    assert_eq!(names(&second), ["image Started", "image Completed", "a Started", "a Cached"]);
}

#[test]
fn no_more_runs_than_the_limit() {
    let store = MemoryStore::default();
    let mut world = World::new(&store, Limits { runs: Some(2) });
    let mut graph: Vec<_> = (0..6).map(|i| node(&format!("n{i}"), &[])).collect();
    graph.push(node("top", &[0, 1, 2, 3, 4, 5]));
    graph[5].0.limited = false;
    let ids = world.load(1, &graph);
    let request = world.want(1, ids[6], Want::Result);
    world.finish_but_runs();
    while !world.pending.is_empty() {
        assert!(world.pending.iter().filter(|p| p.is_run && p.name != "n5").count() <= 2);
        assert!(world.ran.len() >= 4 || world.pending.len() >= 2, "no place stays empty");
        world.end(0, false);
    }
    world.value(request);
}

#[test]
fn different_vertices_with_one_key_run_once() {
    let store = MemoryStore::default();
    let mut world = World::new(&store, Limits::default());
    let image = |name: &str| {
        let mut image = node(name, &[]);
        image.1.maps = vec![digest("one manifest")];
        image
    };
    let run = |name: &str, input| {
        let mut run = node(name, &[input]);
        run.1.maps = vec![digest("one command")];
        run
    };
    let ids = world.load(1, &[image("x"), image("y"), run("run x", 0), run("run y", 1)]);
    let one = world.want(1, ids[2], Want::Result);
    let two = world.want(1, ids[3], Want::Result);
    world.finish();
    assert_eq!(world.value(one), world.value(two));
    assert_eq!(world.ran.len(), 2, "{:?}", world.ran);
}

#[test]
fn outputs_of_one_run() {
    let store = MemoryStore::default();
    let mut world = World::new(&store, Limits::default());
    world.outputs = 2;
    let ids = world.load(1, &[node("image", &[])]);
    let one = world.want_output(1, ids[0], 0, Want::Result);
    let two = world.want_output(1, ids[0], 1, Want::Result);
    let three = world.want_output(1, ids[0], 2, Want::Result);
    world.finish();
    assert_ne!(world.value(one), world.value(two));
    assert_eq!(world.ran, ["image"]);
    let failure = world.answers[&three].as_ref().unwrap_err();
    assert_eq!(failure.0, "invalid response from exec need 2 index but 2 results received");
}

#[test]
fn a_vertex_that_ignores_the_cache_serves_others_but_not_the_other_way_round() {
    let store = MemoryStore::default();
    let mut world = World::new(&store, Limits::default());
    let plain = node("a", &[]);
    let mut ignoring = plain.clone();
    ignoring.0.ignore_cache = true;
    let first = world.load(1, &[ignoring.clone()]);
    assert_eq!(world.load(2, std::slice::from_ref(&plain)), first);
    world.apply(Event::Leave(JobId(1)));
    world.apply(Event::Leave(JobId(2)));
    let first = world.load(3, &[plain]);
    assert_ne!(world.load(4, &[ignoring]), first);
}
