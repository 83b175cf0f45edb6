//! The history over a real database, with an encoding that tests can read.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fault::{Fault, Kind};
use oci::{Descriptor, Digest};
use progress::{Sink as _, Update, Vertex};

use super::*;
use crate::progress_hub::{self, Hub};

struct Plain;

impl Encoding for Plain {
    fn progress(&self, events: Vec<progress_hub::Event>, frames: &mut Vec<u8>) {
        for event in events {
            let line = match event {
                progress_hub::Event::Vertex(state) => format!("{} {}\n", state.vertex.name, state.completed.is_some()),
                progress_hub::Event::Log { data, .. } => format!("log {}\n", String::from_utf8_lossy(&data)),
                other => format!("{other:?}\n"),
            };
            frames.extend_from_slice(line.as_bytes());
        }
        frames.extend_from_slice(b"--\n");
    }

    fn failure(&self, fault: &Fault) -> (Failure, Bytes) {
        (Failure { code: 2, message: fault.to_string() }, Bytes::from(format!("{fault:?}")))
    }
}

struct House {
    dir: tempfile::TempDir,
    db: kv::Db,
    content: content::Store,
    history: History,
}

impl House {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::over(dir)
    }

    fn over(dir: tempfile::TempDir) -> Self {
        let db = kv::Db::open(&dir.path().join("db"), kv::Options::default()).unwrap();
        let content = content::Store::open(dir.path(), db.clone()).unwrap();
        let retention = Retention { age: Duration::ZERO, entries: 1 };
        let history = History::open(Parts { db: db.clone(), content: content.clone(), encoding: Arc::new(Plain), retention });
        Self { dir, db, content, history }
    }

    async fn reopened(self) -> Self {
        self.history.settle().await;
        self.db.flush().await.unwrap();
        // Work beside the builds may have it for a moment longer, and a database has one opener.
        let is_ours = || Arc::strong_count(&self.history.inner()) == 2;
        let alone = async {
            while !is_ours() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), alone).await.unwrap();
        let Self { dir, db, content, history } = self;
        drop((history, content, db));
        Self::over(dir)
    }

    async fn build(&self, name: &str, outcome: fault::Result<BTreeMap<String, String>>) {
        let recording = self.history.begin(Record::begun(name));
        recording.complete(ended(outcome)).await.unwrap();
    }

    async fn all(&self, query: Query) -> Vec<Event> {
        let mut listening = self.history.listen(Query { early_exit: true, ..query }).await.unwrap();
        let mut events = Vec::new();
        while let Some(event) = listening.next().await {
            events.push(event);
        }
        events
    }

    fn text(&self, blob: &Descriptor) -> String {
        String::from_utf8(self.content.read(&blob.digest).unwrap()).unwrap()
    }
}

fn ended(outcome: fault::Result<BTreeMap<String, String>>) -> Ended {
    let hub = Hub::new();
    let vertex = |name: &str| Vertex { digest: Digest::of(name), inputs: vec![], name: name.into(), group: None };
    for name in ["one", "two"] {
        hub.emit(Update::Announced(vertex(name)));
    }
    hub.emit(Update::Started { vertex: Digest::of("one") });
    hub.emit(Update::Log { vertex: Digest::of("one"), stream: 1, data: Bytes::from_static(b"hello") });
    hub.emit(Update::Completed { vertex: Digest::of("one"), cached: false, error: None });
    hub.emit(Update::Completed { vertex: Digest::of("two"), cached: true, error: None });
    hub.close();
    Ended { hub, outcome, findings: Arc::default(), parent: None }
}

fn complete(event: &Event) -> &Record {
    match event {
        Event::Complete(record) => record,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_build_is_listed_while_it_runs_and_after_a_restart() {
    let house = House::new();
    let recording = house.history.begin(Record { frontend: "f".into(), ..Record::begun("b") });
    let mut live = house.history.listen(Query { active_only: true, ..Query::default() }).await.unwrap();
    assert!(matches!(live.next().await, Some(Event::Started(record)) if record.reference == "b"));
    recording.complete(ended(Ok([("k".to_owned(), "v".to_owned())].into()))).await.unwrap();
    assert!(complete(&live.next().await.unwrap()).completed_at.is_some());
    let house = house.reopened().await;
    let events = house.all(Query::default()).await;
    let [event] = events.as_slice() else { panic!("{events:?}") };
    let record = complete(event);
    assert_eq!((record.frontend.as_str(), record.response["k"].as_str()), ("f", "v"));
    assert_eq!(record.steps, Steps { total: 2, completed: 2, cached: 1, warnings: 0 });
    house.content.sweep(Duration::ZERO).unwrap();
    let log = house.text(record.logs.as_ref().unwrap());
    assert_eq!(log, "one false\ntwo false\none false\nlog hello\n--\none true\ntwo true\n--\n");
    assert_eq!(record.generation, 1, "the trace came after the end");
    let trace = house.text(record.trace.as_ref().unwrap());
    assert!(trace.contains("moby.buildkit.v1.Control/Solve") && trace.contains("\"one\""), "{trace}");
}

#[tokio::test]
async fn a_failure_is_told_in_short_and_kept_in_full() {
    let house = House::new();
    house.build("b", Err(Fault::new(Kind::Unknown, "boom"))).await;
    let events = house.all(Query { reference: "b".into(), ..Query::default() }).await;
    let record = complete(&events[0]);
    assert_eq!(record.error, Some(Failure { code: 2, message: "boom".into() }));
    assert_eq!(house.text(record.failure.as_ref().unwrap()), "Unknown: boom");
    assert!(house.all(Query { reference: "other".into(), ..Query::default() }).await.is_empty());
}

#[tokio::test]
async fn statements_and_documents_stay_as_long_as_the_record() {
    let house = House::new();
    let put = |text: &str| {
        let hold = house.content.put(text.as_bytes()).unwrap();
        Descriptor::new("application/json", hold.digest().clone(), hold.size())
    };
    let json = |d: &Descriptor| serde_json::to_string(d).unwrap();
    let (config, layer, statement) = (put("{\"config\":{\"Env\":[]}}"), put("layer"), put("statement"));
    let statement_layer = Descriptor { media_type: STATEMENT.into(), ..statement.clone() };
    let manifest = put(&format!("{{\"config\":{},\"layers\":[{},{}]}}", json(&config), json(&layer), json(&statement_layer)));
    let index = put(&format!("{{\"manifests\":[{}]}}", json(&manifest)));
    let end = ended(Ok(BTreeMap::new()));
    end.findings.exported(0, &index);
    end.findings.attest(&house.content, Some("linux/amd64"), "https://slsa.dev/provenance/v1", b"{}").unwrap();
    house.history.begin(Record::begun("b")).complete(end).await.unwrap();
    house.content.sweep(Duration::ZERO).unwrap();
    let has = |d: &Descriptor| house.content.has(&d.digest).unwrap().is_some();
    assert_eq!([&index, &manifest, &config, &statement, &layer].map(has), [true, true, true, true, false]);
    let record = house.history.record("b").unwrap().unwrap();
    let attested = &record.results["linux/amd64"].attestations[0];
    assert_eq!(attested.annotations[PREDICATE_TYPE], "https://slsa.dev/provenance/v1");
    house.history.update("b", Change::Delete).await.unwrap();
    assert!(!has(attested), "what only the record needed goes with it");
    house.content.sweep(Duration::ZERO).unwrap();
    assert!(!has(&index));
    assert!(house.history.record("b").unwrap().is_none());
}

#[tokio::test]
async fn changes_are_heard_and_a_record_in_use_goes_when_nobody_listens() {
    let house = House::new();
    house.build("b", Ok(BTreeMap::new())).await;
    house.history.update("b", Change::Finalize).await.unwrap();
    let mut listening = house.history.listen(Query { reference: "b".into(), ..Query::default() }).await.unwrap();
    assert_eq!(complete(&listening.next().await.unwrap()).generation, 1);
    house.history.update("b", Change::Pin(true)).await.unwrap();
    let pinned = listening.next().await.unwrap();
    assert_eq!((complete(&pinned).generation, complete(&pinned).pinned), (2, true));
    let missing = house.history.update("x", Change::Pin(true)).await.unwrap_err();
    assert_eq!(missing.kind(), Kind::NotFound);

    let mut all = house.history.listen(Query { active_only: true, ..Query::default() }).await.unwrap();
    house.history.update("b", Change::Delete).await.unwrap();
    let refused = house.history.listen(Query { reference: "b".into(), ..Query::default() }).await.err().unwrap();
    assert_eq!(refused.to_string(), "ref b is deleted");
    assert!(house.all(Query::default()).await.is_empty());
    drop(listening);
    assert_eq!(all.next().await, Some(Event::Deleted { reference: "b".into() }));
    assert!(house.all(Query { reference: "b".into(), ..Query::default() }).await.is_empty());
    house.history.update("b", Change::Delete).await.unwrap();
    house.history.dismiss();
    assert!(matches!(all.next().await, Some(Event::Deleted { .. })));
    assert_eq!(all.next().await, None);
}

#[tokio::test]
async fn cleaning_spares_the_newest_and_the_pinned() {
    let house = House::new();
    house.build("a", Ok(BTreeMap::new())).await;
    // Before there is another: it is cleaned beside builds, too.
    house.history.update("a", Change::Pin(true)).await.unwrap();
    for name in ["b", "c"] {
        house.build(name, Ok(BTreeMap::new())).await;
    }
    house.history.clean_now().unwrap();
    let names: Vec<String> = house.all(Query::default()).await.iter().map(|e| e.reference().to_owned()).collect();
    assert_eq!(names, ["a", "c"]);
    let newest = house.all(Query { limit: 1, ..Query::default() }).await;
    assert_eq!(newest[0].reference(), "c");
    let refused = house.history.listen(Query { limit: -1, ..Query::default() }).await.err().unwrap();
    assert_eq!(refused.to_string(), "invalid limit -1");
}

#[tokio::test]
async fn a_record_without_its_log_is_dropped_at_the_next_start() {
    let house = House::new();
    house.build("b", Err(Fault::new(Kind::Unknown, "boom"))).await;
    house.history.settle().await;
    let failure = house.history.record("b").unwrap().unwrap().failure.unwrap();
    house.content.remove(&failure.digest).unwrap();
    let house = house.reopened().await;
    let gone = async {
        while house.history.record("b").unwrap().is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.unwrap();
}

#[tokio::test]
async fn a_build_that_is_given_up_before_it_is_recorded_leaves_nothing() {
    let house = House::new();
    drop(house.history.begin(Record { created_at: SystemTime::now(), ..Record::begun("b") }));
    assert!(house.all(Query::default()).await.is_empty());
}

/// On a runtime of one thread: had it to wait, nothing else would go on.
#[tokio::test]
async fn changes_wait_for_each_other_and_nobody_for_them() {
    let house = House::new();
    house.build("b", Ok(BTreeMap::new())).await;
    house.history.settle().await;
    let (inner, (held, holds), (end, ended)) = (house.history.inner(), tokio::sync::oneshot::channel(), std::sync::mpsc::channel::<()>());
    let other = task::blocking(move || {
        let _turn = inner.turn();
        let _ = held.send(());
        let _ = ended.recv();
        Ok(())
    });
    let others = task::spawn("other", other);
    holds.await.unwrap();
    let history = house.history.clone();
    let pinning = task::spawn("pin", async move { history.update("b", Change::Pin(true)).await });
    let events = house.all(Query::default()).await;
    assert!(!complete(&events[0]).pinned && !pinning.is_finished());
    drop(house.history.begin(Record::begun("c")));
    end.send(()).unwrap();
    others.join().await.unwrap().unwrap();
    pinning.join().await.unwrap().unwrap();
    assert!(complete(&house.all(Query::default()).await[0]).pinned);
}
