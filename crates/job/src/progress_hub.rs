//! Keeps everything that one build reports and replays it to any number of watchers, early or late.
//!
//! The hub stamps updates with the time they arrive. A row of byte progress is kept once, with its last value; a watcher that is slow or late
//! therefore sees fewer steps of it, never stale ones. Two things are made up here, as clients rely on them: inputs that never ran are shown as
//! cached when their user starts, and what is still running when the build ends is shown as ended.
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use bytes::Bytes;
use oci::Digest;
use progress::{Sink, Update, Vertex, Warning};
use tokio::sync::watch;

/// One thing to show, as it stands at some moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Replaces what was shown of the vertex.
    Vertex(VertexState),
    Status(RowState),
    Log {
        vertex: Digest,
        at: SystemTime,
        stream: u8,
        data: Bytes,
    },
    Warning(Warning),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VertexState {
    pub vertex: Arc<Vertex>,
    pub started: Option<SystemTime>,
    pub completed: Option<SystemTime>,
    pub cached: bool,
    /// Empty for none.
    pub error: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowState {
    pub vertex: Digest,
    pub id: String,
    pub action: String,
    pub current: i64,
    pub total: i64,
    pub at: SystemTime,
    pub started: SystemTime,
    pub completed: Option<SystemTime>,
}

/// The receiver of a build's updates. Clones are the same hub.
#[derive(Clone)]
pub struct Hub(Arc<Shared>);

struct Shared {
    record: Mutex<Record>,
    changed: watch::Sender<Head>,
}

#[derive(Clone, Copy, Default, PartialEq)]
struct Head {
    next: u64,
    closed: bool,
}

/// The events in order of their numbers. An event that a later one replaced leaves a hole; holes are squeezed out now and then.
#[derive(Default)]
struct Record {
    events: Vec<(u64, Option<Event>)>,
    holes: usize,
    next: u64,
    closed: bool,
    vertices: HashMap<Digest, VertexState>,
    rows: HashMap<(Digest, String), (u64, SystemTime)>,
    /// Vertices that were cached, and all below them.
    was_cached: HashSet<Digest>,
}

impl Default for Hub {
    fn default() -> Self {
        Self(Arc::new(Shared { record: Mutex::default(), changed: watch::channel(Head::default()).0 }))
    }
}

impl Hub {
    pub fn new() -> Self {
        Self::default()
    }

    /// Follows the build from its first event on.
    pub fn watch(&self) -> Watch {
        Watch { shared: self.0.clone(), changes: self.0.changed.subscribe(), next: 0 }
    }

    /// Ends the build for its watchers. What comes later is dropped.
    pub fn close(&self) {
        let mut record = self.0.lock();
        if !record.closed {
            record.end_what_runs(SystemTime::now());
            record.closed = true;
        }
        self.0.announce(record);
    }

    /// Everything there is to show, in order.
    pub fn events(&self) -> Vec<Event> {
        self.0.lock().events.iter().filter_map(|(_, event)| event.clone()).collect()
    }

    /// The last state of every vertex; for counting steps at the end of a build.
    pub fn vertices(&self) -> Vec<VertexState> {
        self.0.lock().vertices.values().cloned().collect()
    }
}

impl Sink for Hub {
    fn emit(&self, update: Update) {
        let mut record = self.0.lock();
        if !record.closed {
            record.apply(update, SystemTime::now());
            self.0.announce(record);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().expect("no holder of this lock panics")
    }

    fn announce(&self, record: MutexGuard<'_, Record>) {
        let head = Head { next: record.next, closed: record.closed };
        drop(record);
        // Two threads may announce in the other order; the head only moves forward.
        self.changed.send_if_modified(|known| {
            let newer = head.next > known.next || (head.closed && !known.closed);
            if newer {
                *known = Head { next: head.next.max(known.next), closed: head.closed || known.closed };
            }
            newer
        });
    }
}

/// One watcher's place in the record.
pub struct Watch {
    shared: Arc<Shared>,
    changes: watch::Receiver<Head>,
    next: u64,
}

impl Watch {
    /// All events since the last call, at least one; waits for it. `None` at the end of the build.
    pub async fn next(&mut self) -> Option<Vec<Event>> {
        loop {
            let (events, closed) = self.take();
            if !events.is_empty() {
                return Some(events);
            }
            if closed {
                return None;
            }
            let _ = self.changes.wait_for(|head| head.next > self.next || head.closed).await;
        }
    }

    /// Resolves when the build has ended; events may be left to take.
    pub async fn ended(&mut self) {
        let _ = self.changes.wait_for(|head| head.closed).await;
    }

    fn take(&mut self) -> (Vec<Event>, bool) {
        let record = self.shared.lock();
        let from = record.events.partition_point(|(number, _)| *number < self.next);
        self.next = record.next;
        (record.events[from..].iter().filter_map(|(_, event)| event.clone()).collect(), record.closed)
    }
}

impl Record {
    fn apply(&mut self, update: Update, now: SystemTime) {
        match update {
            Update::Announced(vertex) => self.announce(vertex),
            Update::Started { vertex } => {
                let state = self.state(&vertex);
                (state.started, state.completed, state.cached) = (Some(now), None, false);
                state.error.clear();
                self.show(&vertex);
            }
            Update::Completed { vertex, cached, error } => {
                let state = self.state(&vertex);
                state.started.get_or_insert(now);
                (state.completed, state.cached, state.error) = (Some(now), cached, error.unwrap_or_default());
                self.show(&vertex);
            }
            Update::Status { vertex, id, action, current, total, done } => {
                let key = (vertex, id);
                let started = self.rows.get(&key).map_or(now, |(number, started)| {
                    let (number, started) = (*number, *started);
                    self.holes +=
                        self.events.binary_search_by_key(&number, |(n, _)| *n).map_or(0, |at| self.events[at].1.take().iter().count());
                    started
                });
                self.rows.insert(key.clone(), (self.next, started));
                let (vertex, id) = key;
                self.push(Event::Status(RowState { vertex, id, action, current, total, at: now, started, completed: done.then_some(now) }));
            }
            Update::Log { vertex, stream, data } => self.push(Event::Log { vertex, at: now, stream, data }),
            Update::Warning(warning) => self.push(Event::Warning(warning)),
        }
        self.squeeze();
    }

    fn announce(&mut self, vertex: Vertex) {
        let digest = vertex.digest.clone();
        match self.vertices.get_mut(&digest) {
            Some(known) if *known.vertex == vertex => return,
            Some(known) => known.vertex = Arc::new(vertex),
            None => {
                self.vertices.insert(digest.clone(), VertexState::announced(vertex));
            }
        }
        let state = self.vertices[&digest].clone();
        self.push(Event::Vertex(state));
    }

    /// A vertex that nobody announced is shown by its digest.
    fn state(&mut self, digest: &Digest) -> &mut VertexState {
        self.vertices.entry(digest.clone()).or_insert_with(|| {
            VertexState::announced(Vertex { digest: digest.clone(), inputs: Vec::new(), name: digest.to_string(), group: None })
        })
    }

    fn show(&mut self, digest: &Digest) {
        let state = self.vertices[digest].clone();
        for input in self.take_as_cached(&state) {
            self.push(Event::Vertex(input));
        }
        if state.cached {
            self.mark_cached(digest);
        }
        self.push(Event::Vertex(state));
    }

    /// Marks everything below a started vertex that never started as cached; the lowest first. (What still runs has its own end to come.)
    fn take_as_cached(&mut self, user: &VertexState) -> Vec<VertexState> {
        let (mut taken, mut open) = (Vec::new(), vec![user.vertex.clone()]);
        while let Some(vertex) = open.pop() {
            for input in &vertex.inputs {
                if let Some(input) = self.vertices.get_mut(input)
                    && !input.cached
                    && input.started.is_none()
                {
                    (input.cached, input.started, input.completed) = (true, user.started, user.started);
                    taken.push(input.clone());
                    open.push(input.vertex.clone());
                }
            }
        }
        for state in &taken {
            self.mark_cached(&state.vertex.digest);
        }
        taken.reverse();
        taken
    }

    fn mark_cached(&mut self, digest: &Digest) {
        let mut open = vec![digest.clone()];
        while let Some(digest) = open.pop() {
            if let Some(state) = self.vertices.get(&digest)
                && self.was_cached.insert(digest)
            {
                open.extend(state.vertex.inputs.iter().cloned());
            }
        }
    }

    fn end_what_runs(&mut self, now: SystemTime) {
        let mut open: Vec<VertexState> = self.vertices.values().filter(|v| v.started.is_some() && v.completed.is_none()).cloned().collect();
        open.sort_by_key(|state| state.started);
        for mut state in open {
            state.completed = Some(now);
            if state.error.is_empty() && !self.was_cached.contains(&state.vertex.digest) {
                state.error = "context canceled".into();
            }
            self.vertices.insert(state.vertex.digest.clone(), state.clone());
            self.push(Event::Vertex(state));
        }
    }

    fn push(&mut self, event: Event) {
        self.events.push((self.next, Some(event)));
        self.next += 1;
    }

    fn squeeze(&mut self) {
        if self.holes > 1024 && self.holes * 2 > self.events.len() {
            self.events.retain(|(_, event)| event.is_some());
            self.holes = 0;
        }
    }
}

impl VertexState {
    fn announced(vertex: Vertex) -> Self {
        Self { vertex: Arc::new(vertex), started: None, completed: None, cached: false, error: String::new() }
    }
}

#[cfg(test)]
mod tests {
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
        let row =
            |current, done| Update::Status { vertex: Digest::of("v"), id: "a".into(), action: "get".into(), current, total: 9000, done };
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
        assert!(hub.0.lock().events.len() <= 2100, "replaced rows are squeezed out");
    }

    #[tokio::test]
    async fn a_waiting_watcher_is_woken() {
        let hub = Hub::new();
        let mut watch = hub.watch();
        let waiting = tokio::spawn(async move { watch.next().await });
        tokio::task::yield_now().await;
        hub.emit(Update::Log { vertex: Digest::of("v"), stream: 1, data: Bytes::from_static(b"hi") });
        assert_eq!(waiting.await.unwrap().unwrap().len(), 1);
    }
}
