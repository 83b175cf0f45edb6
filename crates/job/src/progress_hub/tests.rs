use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;

use super::*;

fn vertex(name: &str, inputs: &[&str]) -> Vertex {
    Vertex { digest: Digest::of(name), inputs: inputs.iter().map(Digest::of).collect(), name: name.into(), group: None }
}

fn states(events: &[Event]) -> Vec<String> {
    events
        .iter()
        .filter_map(|event| match event {
            Event::Vertex(v) => {
                let stage = match (v.started, v.completed) {
                    (None, _) => "announced",
                    (Some(_), None) => "started",
                    (Some(_), Some(_)) => "completed",
                };
                Some(format!("{} {stage}{}{}", v.vertex.name, if v.cached { " cached" } else { "" }, v.error))
            }
            _ => None,
        })
        .collect()
}

#[tokio::test]
async fn inputs_that_never_ran_show_as_cached_and_the_rest_is_closed() {
    let hub = Hub::new();
    for v in [vertex("base", &[]), vertex("mid", &["base"]), vertex("top", &["mid"])] {
        hub.emit(Update::Announced(v));
    }
    hub.emit(Update::Started { vertex: Digest::of("top") });
    let mut watch = hub.watch();
    let seen = watch.next().await.unwrap();
    let expected = ["base announced", "mid announced", "top announced", "base completed cached", "mid completed cached", "top started"];
    assert_eq!(states(&seen), expected);
    hub.close();
    assert_eq!(states(&watch.next().await.unwrap()), ["top completedcontext canceled"]);
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn an_input_that_runs_is_not_taken_for_cached() {
    let hub = Hub::new();
    hub.emit(Update::Announced(vertex("slow", &[])));
    hub.emit(Update::Announced(vertex("top", &["slow"])));
    hub.emit(Update::Started { vertex: Digest::of("slow") });
    hub.emit(Update::Started { vertex: Digest::of("top") });
    hub.close();
    let seen = states(&hub.watch().next().await.unwrap());
    assert_eq!(seen[2..], ["slow started", "top started", "slow completedcontext canceled", "top completedcontext canceled"]);
}

#[tokio::test]
async fn what_lies_below_a_cached_vertex_ends_without_error() {
    let hub = Hub::new();
    hub.emit(Update::Announced(vertex("base", &[])));
    hub.emit(Update::Announced(vertex("top", &["base"])));
    hub.emit(Update::Completed { vertex: Digest::of("top"), cached: true, error: None });
    hub.emit(Update::Started { vertex: Digest::of("base") });
    hub.close();
    assert_eq!(states(&hub.watch().next().await.unwrap()).last().unwrap(), "base completed");
}

#[tokio::test]
async fn a_late_watcher_sees_each_row_once() {
    let (hub, mut early) = {
        let hub = Hub::new();
        let watch = hub.watch();
        (hub, watch)
    };
    let row = |current, done| Update::Status { vertex: Digest::of("v"), id: "a".into(), action: "get".into(), current, total: 9000, done };
    for current in 0..9000 {
        hub.emit(row(current, false));
    }
    assert_eq!(early.next().await.unwrap().len(), 1);
    hub.emit(row(9000, true));
    hub.close();
    for watch in [&mut early, &mut hub.watch()] {
        let events = watch.next().await.unwrap();
        let [Event::Status(row)] = events.as_slice() else { panic!("{events:?}") };
        assert!(row.current == 9000 && row.completed.is_some() && row.started <= row.at);
        assert_eq!(watch.next().await, None);
    }
    assert!(hub.0.lock().timeline.len() <= 2100, "replaced rows are squeezed out");
}

#[tokio::test]
async fn a_waiting_watcher_is_woken() {
    let hub = Hub::new();
    let mut watch = hub.watch();
    let waiting = task::spawn("watcher", async move { watch.next().await });
    tokio::task::yield_now().await;
    hub.emit(Update::Log { vertex: Digest::of("v"), stream: 1, data: Bytes::from_static(b"hi") });
    assert_eq!(waiting.join().await.unwrap().unwrap().len(), 1);
}

/// What was shown of one vertex: its output, streams kept apart where they alternate, and marks between.
#[derive(Debug, PartialEq)]
enum Shown {
    Output(u8, Vec<u8>),
    Mark(Bytes),
}

#[derive(Default)]
struct Story {
    of: BTreeMap<Digest, Vec<Shown>>,
    logs: usize,
    latest: Option<SystemTime>,
}

impl Story {
    fn output(&mut self, vertex: &Digest, stream: u8, data: &[u8]) {
        let shown = self.of.entry(vertex.clone()).or_default();
        match shown.last_mut() {
            Some(Shown::Output(last, text)) if *last == stream => text.extend_from_slice(data),
            _ => shown.push(Shown::Output(stream, data.to_vec())),
        }
    }

    fn add(&mut self, events: &[Event]) {
        for event in events {
            match event {
                Event::Log { vertex, stream, data, at } => {
                    assert!(data.len() <= 33 << 10, "{}", data.len());
                    assert!(self.latest.replace(*at) <= Some(*at), "times go forward");
                    self.logs += 1;
                    self.output(vertex, *stream, data);
                }
                Event::Warning(warning) => self.of.entry(warning.vertex.clone()).or_default().push(Shown::Mark(warning.short.clone())),
                Event::Vertex(_) | Event::Status(_) => panic!("nobody reported {event:?}"),
            }
        }
    }
}

/// Numbers that look random and are the same in each run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        (self.0, _) = self.0.overflowing_mul(6_364_136_223_846_793_005);
        self.0 = self.0.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

fn mark(vertex: &Digest, short: String) -> Update {
    let (detail, url) = (Vec::new(), String::new());
    Update::Warning(Warning { vertex: vertex.clone(), level: 1, short: short.into(), detail, url, source: None })
}

fn take(record: &mut record::Record, next: &mut u64) -> Vec<Event> {
    let mut events = Vec::new();
    while *next < record.timeline.next() {
        let part;
        (part, *next) = record.timeline.part(*next);
        events.extend(part.read());
    }
    events
}

#[test]
fn output_merged_or_on_disk_keeps_its_bytes_and_their_order_for_all_watchers() {
    let (dir, spool) = spool();
    let pages = spool.open().unwrap();
    let (mut written, mut told) = (0, 0);
    for seed in 0..100 {
        let (mut dice, mut record, mut story) = (Dice(seed), record::Record::default(), Story::default());
        let vertices: Vec<Digest> = (0..4).map(|n| Digest::of(format!("v{n}"))).collect();
        let mut watchers: Vec<(u64, Story)> = (0..3).map(|_| Default::default()).collect();
        let mut now = UNIX_EPOCH;
        for number in 0..400 {
            let vertex = &vertices[dice.roll(4) as usize];
            match dice.roll(20) {
                2 if dice.roll(3) == 0 => {
                    while let Some(events) = record.timeline.unwritten(1) {
                        let stretches = pages::write(&pages, &events).unwrap();
                        record.timeline.put_apart(&events, stretches);
                    }
                }
                0 => {
                    story.of.entry(vertex.clone()).or_default().push(Shown::Mark(format!("{number}").into()));
                    record.apply(mark(vertex, format!("{number}")), now);
                }
                // The last of them comes late.
                1 => {
                    let (next, seen) = &mut watchers[dice.roll(2) as usize];
                    seen.add(&take(&mut record, next));
                }
                2 => now += Duration::from_millis(dice.roll(30)),
                _ => {
                    let (stream, size) = (1 + (dice.roll(4) / 3) as u8, if dice.roll(9) == 0 { 20_000 } else { 20 });
                    let data = format!("{number:0size$}");
                    story.output(vertex, stream, data.as_bytes());
                    record.apply(Update::Log { vertex: vertex.clone(), stream, data: data.into() }, now);
                    written += 1;
                }
            }
        }
        for (mut next, mut seen) in watchers {
            seen.add(&take(&mut record, &mut next));
            assert_eq!(seen.of, story.of, "seed {seed}");
            told += seen.logs;
        }
    }
    drop(dir);
    assert!(told < 2 * written, "three watchers were told {told} events of {written} writes");
}

#[test]
fn output_is_merged_for_a_moment_and_up_to_a_size() {
    let (vertex, mut record) = (Digest::of("v"), record::Record::default());
    let mut log = |millis, stream, size| {
        let data = Bytes::from(vec![b'x'; size]);
        record.apply(Update::Log { vertex: vertex.clone(), stream, data }, UNIX_EPOCH + Duration::from_millis(millis));
    };
    for (millis, stream, size) in [(0, 1, 1), (19, 1, 2), (20, 1, 3), (21, 2, 4), (22, 1, 5), (23, 1, 32_763), (24, 1, 1), (25, 1, 70_000)]
    {
        log(millis, stream, size);
    }
    let events = record.timeline.part(0).0.read().into_iter().map(|event| match event {
        Event::Log { at, stream, data, .. } => (at.duration_since(UNIX_EPOCH).unwrap().as_millis(), stream, data.len()),
        other => panic!("{other:?}"),
    });
    let expected = [(0, 1, 3), (20, 1, 3), (21, 2, 4), (22, 1, 32_768), (24, 1, 1), (25, 1, 70_000)];
    assert_eq!(events.collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn what_a_watcher_has_seen_is_not_added_to() {
    let hub = Hub::new();
    let mut watch = hub.watch();
    let log = |text: &'static str| Update::Log { vertex: Digest::of("v"), stream: 1, data: text.into() };
    hub.emit(log("one"));
    assert_eq!(watch.next().await.unwrap().len(), 1);
    hub.emit(log("two"));
    let events = watch.next().await.unwrap();
    assert!(matches!(events.as_slice(), [Event::Log { data, .. }] if *data == "two"), "{events:?}");
}

fn spool() -> (tempfile::TempDir, Spool) {
    let dir = tempfile::tempdir().unwrap();
    let db = kv::Db::open(&dir.path().join("db"), kv::Options::default()).unwrap();
    let store = content::Store::open(dir.path(), db).unwrap();
    (dir, Spool::new(store))
}

fn block(number: u32) -> Bytes {
    Bytes::from(format!("{number:08}").repeat(1024))
}

/// Each its number, a stream, and the vertex that printed it.
fn blocks(numbers: std::ops::Range<u32>) -> impl Iterator<Item = Update> {
    numbers.map(|n| Update::Log { vertex: Digest::of(format!("v{}", n % 3)), stream: 1 + (n / 3 % 2) as u8, data: block(n) })
}

async fn settled(hub: &Hub) {
    while hub.0.writing().is_under_way {
        tokio::task::yield_now().await;
    }
}

async fn rest(watch: &mut Watch, story: &mut Story) {
    while let Some(events) = watch.next().await {
        let size: usize = events.iter().map(weight).sum();
        assert!(size <= 3 * timeline::PART, "{size} bytes at once");
        story.add(&events);
    }
}

/// Sixty-four MB in three steps' output, of which little stays in memory.
#[tokio::test]
async fn much_output_is_on_disk_and_watchers_see_all_of_it() {
    let (_dir, spool) = spool();
    let hub = Hub::with(spool.clone());
    let (mut stalled, mut slow, mut expected) = (hub.watch(), hub.watch(), Story::default());
    let (mut seen, mut from_slow) = (Story::default(), Story::default());
    for (n, update) in blocks(0..8192).enumerate() {
        let Update::Log { vertex, stream, data } = &update else { unreachable!() };
        expected.output(vertex, *stream, data);
        hub.emit(update);
        if n % 1024 == 500 {
            from_slow.add(&slow.next().await.unwrap());
            settled(&hub).await;
        }
    }
    hub.close();
    settled(&hub).await;
    assert!(spool.held() < 20 << 20 && hub.0.lock().timeline.held() == spool.held(), "{}", spool.held());
    rest(&mut stalled, &mut seen).await;
    rest(&mut slow, &mut from_slow).await;
    let mut recorded = Story::default();
    hub.replay(|events| {
        recorded.add(&events);
        Ok(())
    })
    .unwrap();
    assert!(seen.of == expected.of, "who looked late");
    assert!(from_slow.of == expected.of, "who looked now and then");
    assert!(recorded.of == expected.of, "the history");
    drop((hub, stalled, slow));
    assert_eq!(spool.held(), 0);
}

#[tokio::test]
async fn a_disk_that_takes_nothing_costs_memory_and_no_output() {
    let (dir, spool) = spool();
    std::fs::remove_dir(dir.path().join("ingest")).unwrap();
    let (hub, mut expected, mut seen) = (Hub::with(spool.clone()), Story::default(), Story::default());
    for update in blocks(0..4096) {
        let Update::Log { vertex, stream, data } = &update else { unreachable!() };
        expected.output(vertex, *stream, data);
        hub.emit(update);
    }
    settled(&hub).await;
    assert!(hub.0.writing().not_before.is_some(), "it is tried again later");
    hub.close();
    rest(&mut hub.watch(), &mut seen).await;
    assert!(seen.of == expected.of);
}

#[tokio::test]
async fn a_build_that_shares_a_step_has_its_earlier_output_from_another_build() {
    let (_dir, spool) = spool();
    let (one, two, three) = (Hub::with(spool.clone()), Hub::with(spool.clone()), Hub::new());
    let (mut text, other) = (Vec::new(), Digest::of("their name"));
    for update in blocks(0..4096) {
        if let Update::Log { vertex, data, .. } = &update
            && *vertex == Digest::of("v1")
        {
            text.extend_from_slice(data);
        }
        one.emit(update);
    }
    settled(&one).await;
    assert!(one.pass_on(&Digest::of("v1"), &two, &other));
    one.close();
    assert!(!one.pass_on(&Digest::of("v1"), &three, &other), "it may miss what came since");
    drop(one);
    assert!(two.pass_on(&other, &three, &Digest::of("third name")), "also from who has it from another");
    for (hub, name) in [(two, "their name"), (three, "third name")] {
        hub.close();
        let (mut seen, mut watch) = (Vec::new(), hub.watch());
        while let Some(events) = watch.next().await {
            for event in events {
                let Event::Log { vertex, data, .. } = event else { panic!("{event:?}") };
                assert_eq!(vertex, Digest::of(name));
                seen.extend_from_slice(&data);
            }
        }
        assert!(seen == text, "{} bytes of {}", seen.len(), text.len());
    }
}
