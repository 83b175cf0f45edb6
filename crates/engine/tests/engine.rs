//! The engine over a place where steps only pretend to run.
#![allow(clippy::unwrap_used)]
mod common;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use engine::{Job, Options};
use fault::{Detail, Kind};
use llb::{Builder, Metadata, Rewrite, SourceInfo, SourceOp};
use progress::{Nowhere, Sink};
use session::Group;
use task::Cancel;

fn job(house: &House) -> Job {
    job_with(house, Arc::new(Nowhere))
}

fn job_with(house: &House, sink: Arc<dyn Sink>) -> Job {
    house.engine.job("test", sink, Group::default(), Cancel::new())
}

/// What takes longer has been lost, on the slowest machine.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(120), what).await.expect("an end within two minutes")
}

/// As one process would: when this returns, nothing of it is left open.
fn process<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(work)
}

#[test]
fn a_second_build_is_cached_even_by_the_next_process() {
    let home = Home::new();
    let graph = chain(&["image", "a", "b"]);
    let first = process(async {
        let house = home.open(Options::default());
        let first = soon(job(&house).build(graph.clone())).await.unwrap().layer.unwrap();
        assert_eq!(house.fake.ran(), ["image", "a", "b"]);
        let again = soon(job(&house).build(graph.clone())).await.unwrap();
        assert_eq!(house.fake.ran().len(), 3);
        assert_eq!(again.layer.unwrap().id(), first.id());
        first.id()
    });
    process(async {
        let house = home.open(Options::default());
        let notes = Arc::new(Notes::default());
        let built = soon(job_with(&house, notes.clone()).build(graph.clone())).await.unwrap();
        assert_eq!(built.layer.unwrap().id(), first);
        assert!(house.fake.ran().is_empty() && !built.keys.is_empty());
        let announced = ["image announced", "a announced", "b announced"];
        let shown = [&announced[..], &["image started", "image completed", "b started", "b cached"]].concat();
        assert_eq!(notes.lines(&graph), shown);
    });
}

#[tokio::test]
async fn a_result_that_was_pruned_runs_again() {
    let home = Home::new();
    let house = home.open(Options::default());
    let graph = chain(&["image", "a"]);
    let layer = soon(job(&house).build(graph.clone())).await.unwrap().layer.unwrap();
    house.fake.lost.lock().unwrap().insert(layer.id());
    let again = soon(job(&house).build(graph)).await.unwrap().layer.unwrap();
    assert_ne!(again.id(), layer.id());
    assert_eq!(house.fake.ran(), ["image", "a", "a"]);
}

#[tokio::test]
async fn scratch_results_are_results() {
    let home = Home::new();
    let house = home.open(Options::default());
    let graph = chain(&["image", "scratch a"]);
    assert!(soon(job(&house).build(graph.clone())).await.unwrap().layer.is_none());
    assert!(soon(job(&house).build(graph)).await.unwrap().layer.is_none());
    assert_eq!(house.fake.ran().len(), 2);
    let empty = soon(job(&house).build(Arc::default())).await.unwrap();
    assert!(empty.layer.is_none() && empty.keys.is_empty());
}

#[tokio::test]
async fn nothing_runs_before_it_is_wanted() {
    let home = Home::new();
    let house = home.open(Options::default());
    let job = job(&house);
    let reference = job.load(chain(&["image", "a"]));
    assert!(soon(reference.keys()).await.unwrap().is_empty(), "nothing is known of what never ran");
    assert!(house.fake.ran().is_empty());
    let built = soon(reference.result()).await.unwrap();
    assert_eq!(soon(reference.result()).await.unwrap().layer.unwrap().id(), built.layer.unwrap().id());
    assert_eq!(soon(reference.keys()).await.unwrap().len(), 1);
    assert_eq!(house.fake.ran(), ["image", "a"]);
    let on_top = soon(job.build(chain(&["image", "a", "b"]))).await.unwrap();
    assert!(on_top.layer.is_some());
    assert_eq!(house.fake.ran(), ["image", "a", "b"], "graphs of a job share what they have in common");
}

#[tokio::test]
async fn builds_share_steps_and_a_late_one_sees_what_was_said() {
    let home = Home::new();
    let house = home.open(Options::default());
    let gate = house.fake.gate("a");
    let graph = chain(&["image", "a"]);
    let (early, late) = (Arc::new(Notes::default()), Arc::new(Notes::default()));
    let one = job_with(&house, early.clone()).load(graph.clone());
    let first = tokio::spawn(async move { one.result().await });
    house.fake.until_runs("a").await;
    let two = job_with(&house, late.clone()).load(graph.clone());
    let second = tokio::spawn(async move { two.result().await });
    soon(async {
        while !late.lines(&graph).contains(&"a log a speaks".to_owned()) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    gate.add_permits(1);
    let (first, second) = (soon(first).await.unwrap().unwrap(), soon(second).await.unwrap().unwrap());
    assert_eq!(first.layer.unwrap().id(), second.layer.unwrap().id());
    assert_eq!(house.fake.ran(), ["image", "a"]);
    let sorted = |notes: &Notes| {
        let mut lines = notes.lines(&graph);
        lines.sort();
        lines
    };
    assert_eq!(sorted(&early), sorted(&late), "both saw the same");
}

#[tokio::test]
async fn a_step_stops_when_nobody_waits_for_it_any_more() {
    let home = Home::new();
    let house = home.open(Options::default());
    house.fake.gate("a");
    let graph = chain(&["image", "a"]);
    let build = |job: Job| {
        let graph = graph.clone();
        tokio::spawn(async move { job.build(graph).await })
    };
    let first = build(job(&house));
    house.fake.until_runs("a").await;
    let second_job = job(&house);
    let second = build(second_job.clone());
    soon(second_job.load(graph.clone()).keys()).await.unwrap(); // the second build has arrived
    first.abort();
    assert!(soon(first).await.unwrap_err().is_cancelled());
    soon(job(&house).build(chain(&["other"]))).await.unwrap(); // and the first one's end was noticed
    assert!(house.fake.stopped.lock().unwrap().is_empty(), "the other build still waits");
    second.abort();
    assert!(soon(second).await.unwrap_err().is_cancelled());
    drop(second_job);
    house.fake.until(|f| f.stopped.lock().unwrap().as_slice() == ["a"]).await;
    house.fake.gate("a").add_permits(1);
    soon(job(&house).build(graph.clone())).await.unwrap();
    assert_eq!(house.fake.ran().iter().filter(|n| *n == "a").count(), 2, "cancelled is not failed: it runs again");
}

#[tokio::test]
async fn a_cancelled_job_ends_with_the_reason() {
    let home = Home::new();
    let house = home.open(Options::default());
    house.fake.gate("a");
    let cancel = Cancel::new();
    let job = house.engine.job("test", Arc::new(Nowhere), Group::default(), cancel.clone());
    let build = tokio::spawn(async move { job.build(chain(&["a"])).await });
    house.fake.until_runs("a").await;
    cancel.cancel("client went away");
    let fault = soon(build).await.unwrap().unwrap_err();
    assert_eq!((fault.kind(), fault.to_string().as_str()), (Kind::Canceled, "client went away"));
    house.fake.until(|f| f.stopped.lock().unwrap().as_slice() == ["a"]).await;
}

#[tokio::test]
async fn a_failure_says_which_vertex_and_which_line() {
    let home = Home::new();
    let house = home.open(Options::default());
    let mut builder = Builder::new();
    let image = step(&mut builder, "image", vec![]);
    let bad = step(&mut builder, "fail a", vec![image.clone()]);
    let top = step(&mut builder, "top", vec![bad.clone()]);
    let file = builder.source(SourceInfo { filename: "Dockerfile".into(), data: "FROM x\nRUN y\n".into(), ..Default::default() });
    builder.location(&bad.vertex, file, vec![llb::Range { start: (2, 0), end: (2, 5) }]);
    let graph = builder.finish(Some(top));
    let pinned = SourceOp { identifier: "image by digest".into(), attrs: BTreeMap::new() };
    let rewritten = graph.rewrite(&Rewrite { sources: HashMap::from([(image.vertex, pinned)]), ..Default::default() });
    let notes = Arc::new(Notes::default());
    let fault = soon(job_with(&house, notes.clone()).build(Arc::new(rewritten.clone()))).await.unwrap_err();
    assert_eq!(fault.to_string(), "process \"x\" did not complete successfully: exit code: 1");
    let details = fault.details();
    assert_eq!(details[0], &Detail::Vertex { digest: bad.vertex.to_string() }, "the digest is the client's, not the rewritten one");
    let in_file = |d: &&Detail| matches!(d, Detail::Source { filename, ranges, .. } if filename == "Dockerfile" && ranges[0].start == (2, 0) && ranges[0].end == (2, 5));
    assert_eq!(details.iter().filter(|d| in_file(d)).count(), 1);
    let client_graph = {
        // Progress carries the client's digests as well.
        let lines = notes.lines(&rewritten);
        lines.into_iter().filter(|l| l.starts_with(bad.vertex.as_str())).collect::<Vec<_>>()
    };
    let failed = format!("{} failed: process \"x\" did not complete successfully: exit code: 1", bad.vertex);
    assert!(client_graph.contains(&failed), "{client_graph:?}");
}

#[tokio::test]
async fn failures_of_keys_say_what_was_done() {
    let home = Home::new();
    let house = home.open(Options::default());
    let fault = soon(job(&house).build(chain(&["unresolvable", "a"]))).await.unwrap_err();
    assert_eq!((fault.kind(), fault.to_string().as_str()), (Kind::NotFound, "failed to load cache key: no such image"));
    let fault = soon(job(&house).build(chain(&["image", "copy missing by content"]))).await.unwrap_err();
    assert_eq!(fault.to_string(), "failed to compute cache key: \"/x\": not found");
}

#[tokio::test]
async fn a_panic_is_a_failure_of_the_step() {
    let home = Home::new();
    let house = home.open(Options::default());
    let fault = soon(job(&house).build(chain(&["panic a"]))).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Internal);
    soon(job(&house).build(chain(&["a"]))).await.unwrap();
}

#[tokio::test]
async fn equal_content_is_found_under_another_session() {
    let home = Home::new();
    let house = home.open(Options::default());
    // The fake's content is the name up to the `@`.
    soon(job(&house).build(chain(&["local files@one", "copy by content", "make"]))).await.unwrap();
    house.fake.runs.lock().unwrap().clear();
    soon(job(&house).build(chain(&["local files@two", "copy by content", "make"]))).await.unwrap();
    assert_eq!(house.fake.ran(), ["local files@two"]);
    soon(job(&house).build(chain(&["local other@three", "copy by content", "make"]))).await.unwrap();
    assert_eq!(house.fake.ran(), ["local files@two", "local other@three", "copy by content", "make"]);
}

#[tokio::test]
async fn no_more_steps_at_a_time_than_allowed() {
    let home = Home::new();
    let house = home.open(Options { parallelism: Some(2) });
    let mut builder = Builder::new();
    let names: Vec<String> = (0..5).map(|i| format!("n{i}")).collect();
    let inputs = names.iter().map(|n| step(&mut builder, n, vec![])).collect();
    let top = step(&mut builder, "top", inputs);
    names.iter().for_each(|n| _ = house.fake.gate(n));
    let graph = Arc::new(builder.finish(Some(top)));
    let one = job(&house);
    let build = tokio::spawn(async move { one.build(graph).await });
    for done in 0..5 {
        let expected = (done + 2).min(5);
        house.fake.until(|f| f.ran().len() == expected).await;
        let running = house.fake.ran()[done].clone();
        house.fake.gate(&running).add_permits(1);
    }
    soon(build).await.unwrap().unwrap();
    assert_eq!(house.fake.ran().len(), 6);
}

#[tokio::test]
async fn a_step_may_use_the_sessions_of_all_who_want_it() {
    let home = Home::new();
    let house = home.open(Options::default());
    let gate = house.fake.gate("a");
    let graph = chain(&["a"]);
    let with = |ids: &[&str]| house.engine.job("test", Arc::new(Nowhere), sessions(ids), Cancel::new()).load(graph.clone());
    let one = with(&["s1"]);
    let first = {
        let one = one.clone();
        tokio::spawn(async move { one.result().await })
    };
    house.fake.until_runs("a").await;
    let group = house.fake.sessions.lock().unwrap()[0].clone();
    let ids = |group: &Group| group.all().iter().map(|s| s.id().to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(ids(&group), BTreeSet::from(["s1".to_owned()]));
    let two = with(&["s2"]);
    soon(two.keys()).await.unwrap();
    assert_eq!(ids(&group), BTreeSet::from(["s1".to_owned(), "s2".to_owned()]));
    first.abort();
    let _ = first.await;
    drop(one);
    soon(two.keys()).await.unwrap();
    assert_eq!(ids(&group), BTreeSet::from(["s2".to_owned()]), "the session of a build that left is not asked any more");
    gate.add_permits(2);
    soon(two.result()).await.unwrap();
}

#[tokio::test]
async fn different_vertices_with_one_key_run_once() {
    let home = Home::new();
    let house = home.open(Options::default());
    let job = job(&house);
    let (one, two) = (job.load(chain(&["image", "make#1"])), job.load(chain(&["image", "make#2"])));
    let (one, two) = soon(async { tokio::join!(one.result(), two.result()) }).await;
    assert_eq!(one.unwrap().layer.unwrap().id(), two.unwrap().layer.unwrap().id());
    assert_eq!(house.fake.ran().len(), 2, "{:?}", house.fake.ran());
}

#[tokio::test]
async fn ignoring_the_cache_runs_again() {
    let home = Home::new();
    let house = home.open(Options::default());
    let graph = |ignore_cache| {
        let mut builder = Builder::new();
        let image = step(&mut builder, "image", vec![]);
        let top = step_with(&mut builder, "a", vec![image], Metadata { ignore_cache, ..Default::default() });
        Arc::new(builder.finish(Some(top)))
    };
    soon(job(&house).build(graph(false))).await.unwrap();
    soon(job(&house).build(graph(true))).await.unwrap();
    assert_eq!(house.fake.ran(), ["image", "a", "a"]);
}

#[tokio::test]
async fn shutting_down_stops_everything_and_says_why() {
    let home = Home::new();
    let house = home.open(Options::default());
    house.fake.gate("a");
    let job = job(&house);
    let build = tokio::spawn(async move { job.build(chain(&["a", "b"])).await });
    house.fake.until_runs("a").await;
    soon(house.engine.shutdown("the daemon is stopping")).await;
    let fault = soon(build).await.unwrap().unwrap_err();
    assert_eq!((fault.kind(), fault.to_string().as_str()), (Kind::Canceled, "the daemon is stopping"));
}

/// An imported cache whose one key leads from `image` to a layer.
struct Imported {
    layer: layers::Layer,
    asked: Mutex<Vec<String>>,
}

impl cache::KeyStore for Imported {
    fn links(&self, from: &solver::KeyId, link: &solver::Link) -> Vec<solver::KeyId> {
        let image = solver::KeyId::root(&oci::Digest::of("image"), 0);
        let is_ours = *from == image && link.digest == oci::Digest::of("a");
        if is_ours { vec![oci::Digest::of("remote key").into()] } else { vec![] }
    }
    fn results(&self, key: &solver::KeyId) -> Vec<cache::Entry> {
        let is_ours = *key.digest() == oci::Digest::of("remote key");
        if is_ours { vec![cache::Entry { result: "7".into(), created_at: 1 }] } else { vec![] }
    }
    fn origins(&self, _: &solver::KeyId) -> Vec<cache::Origin> {
        vec![]
    }
}

#[async_trait::async_trait]
impl cache::Import for Imported {
    fn has_recorded(&self, _: &[oci::Digest]) -> bool {
        true
    }

    async fn load(&self, result: &str, _: &Group, _: &Cancel) -> fault::Result<Option<layers::Layer>> {
        self.asked.lock().unwrap().push(result.to_owned());
        Ok(Some(self.layer.clone()))
    }
}

#[tokio::test]
async fn an_imported_cache_is_used_and_remembered() {
    let home = Home::new();
    let house = home.open(Options::default());
    let layer = house.fake.layers.draft(None, layers::Properties::new("imported")).unwrap().commit().unwrap();
    let imported = Arc::new(Imported { layer: layer.clone(), asked: Mutex::default() });
    let id = house.engine.caches().add(imported.clone());
    let graph = chain(&["image", "a"]);
    let built = soon(job(&house).load_with(graph.clone(), BTreeSet::from([id])).result()).await.unwrap();
    assert_eq!(built.layer.unwrap().id(), layer.id());
    assert_eq!(imported.asked.lock().unwrap().as_slice(), ["7"]);
    house.engine.caches().remove(id);
    let built = soon(job(&house).build(graph)).await.unwrap();
    assert_eq!(built.layer.unwrap().id(), layer.id(), "the local cache knows it now");
    assert!(house.fake.ran().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_steps() {
    let home = Home::new();
    let house = home.open(Options { parallelism: Some(4) });
    let names: Vec<String> = (0..5000).map(|i| format!("scratch {i}")).collect();
    let graph = chain(&names.iter().map(String::as_str).collect::<Vec<_>>());
    for round in ["cold", "cached"] {
        let start = std::time::Instant::now();
        tokio::time::timeout(Duration::from_secs(600), job(&house).build(graph.clone())).await.unwrap().unwrap();
        println!("{round}: {:?}", start.elapsed());
    }
    assert_eq!(house.fake.ran().len(), 5000);
}

#[tokio::test]
async fn what_needs_no_cache_goes_on_until_the_awaited_one_is_here() {
    let home = Home::new();
    let house = home.open(Options::default());
    let cache = house.engine.expect();
    let graph = chain(&["image", "step"]);
    let first = job(&house).load_with(graph.clone(), BTreeSet::from([cache]));
    let mut waiting = Box::pin(first.result());
    // The engine takes messages in order: once it has answered this, it has begun what it could.
    tokio::select! {
        biased;
        _ = &mut waiting => panic!("a result without the cache that was named"),
        census = house.engine.census() => assert_eq!(census.waiting, 1),
    }
    let second = job(&house);
    soon(second.load(chain(&["other"])).result()).await.unwrap();
    assert_eq!(house.fake.ran(), ["other"], "nobody else waits for it");
    house.engine.arrived(cache, BTreeSet::new());
    soon(waiting).await.unwrap();
    assert_eq!(house.fake.ran(), ["other", "image", "step"]);
    house.engine.dismiss(cache);
    // What gave up its cache without having read it does not keep its builds waiting.
    let cache = house.engine.expect();
    let third = job(&house).load_with(chain(&["third"]), BTreeSet::from([cache]));
    house.engine.dismiss(cache);
    soon(third.result()).await.unwrap();
}
