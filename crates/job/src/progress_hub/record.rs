//! What a build has reported, in order.
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use oci::Digest;
use progress::{Update, Vertex};

use super::{Event, RowState, VertexState};

/// Output of one vertex and stream that came within so long is one event, with the time of its first bytes.
const MERGED_WITHIN: Duration = Duration::from_millis(20);
/// Bytes of an event that output is added to.
const MERGED_SIZE: usize = 32 << 10;

/// The events in order of their numbers. An event that a later one replaced leaves a hole; holes are squeezed out now and then.
#[derive(Default)]
pub(super) struct Record {
    events: Vec<(u64, Option<Kept>)>,
    /// The event that more output of the vertex may be added to, where there is one.
    growing: HashMap<Digest, u64>,
    holes: usize,
    pub next: u64,
    pub closed: bool,
    pub vertices: HashMap<Digest, VertexState>,
    rows: HashMap<(Digest, String), (u64, SystemTime)>,
    /// Vertices that were cached, and all below them.
    was_cached: HashSet<Digest>,
}

enum Kept {
    Event(Event),
    Growing(Output),
}

/// Output that nobody has seen yet.
struct Output {
    vertex: Digest,
    at: SystemTime,
    stream: u8,
    data: BytesMut,
}

impl Output {
    fn takes(&self, stream: u8, data: &[u8], now: SystemTime) -> bool {
        let is_soon = now.duration_since(self.at).is_ok_and(|age| age < MERGED_WITHIN);
        self.stream == stream && is_soon && self.data.len() + data.len() <= MERGED_SIZE
    }

    /// Leaves no memory behind that is not used.
    fn into_event(self) -> Event {
        let Self { vertex, at, stream, data } = self;
        let is_tight = data.capacity() - data.len() <= data.len() / 8;
        Event::Log { vertex, at, stream, data: if is_tight { data.freeze() } else { Bytes::copy_from_slice(&data) } }
    }
}

impl Record {
    pub fn apply(&mut self, update: Update, now: SystemTime) {
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
                    self.holes += find(&self.events, number).map_or(0, |at| self.events[at].1.take().iter().count());
                    started
                });
                self.rows.insert(key.clone(), (self.next, started));
                let (vertex, id) = key;
                self.push(Event::Status(RowState { vertex, id, action, current, total, at: now, started, completed: done.then_some(now) }));
            }
            Update::Log { vertex, stream, data } => self.log(vertex, now, stream, &data),
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

    pub fn end_what_runs(&mut self, now: SystemTime) {
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

    /// What others report meanwhile does not keep output of one vertex apart: it is one event, at the place of its beginning.
    fn log(&mut self, vertex: Digest, now: SystemTime, stream: u8, data: &[u8]) {
        let growing = self.growing.get(&vertex).and_then(|number| find(&self.events, *number));
        if let Some(at) = growing
            && let Some(Kept::Growing(output)) = &mut self.events[at].1
        {
            if output.takes(stream, data, now) {
                return output.data.extend_from_slice(data);
            }
            self.settle(at);
        }
        self.growing.insert(vertex.clone(), self.next);
        self.keep(Kept::Growing(Output { vertex, at: now, stream, data: data.into() }));
    }

    fn push(&mut self, event: Event) {
        let vertex = match &event {
            Event::Vertex(state) => &state.vertex.digest,
            Event::Status(row) => &row.vertex,
            Event::Log { vertex, .. } => vertex,
            Event::Warning(warning) => &warning.vertex,
        };
        if let Some(at) = self.growing.remove(vertex).and_then(|number| find(&self.events, number)) {
            self.settle(at);
        }
        self.keep(Kept::Event(event));
    }

    fn keep(&mut self, kept: Kept) {
        self.events.push((self.next, Some(kept)));
        self.next += 1;
    }

    /// To what is here nothing is added any more.
    fn settle(&mut self, at: usize) {
        let kept = &mut self.events[at].1;
        *kept = kept.take().map(|kept| match kept {
            Kept::Growing(output) => Kept::Event(output.into_event()),
            event @ Kept::Event(_) => event,
        });
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// The events from a number on, in order.
    pub fn since(&mut self, number: u64) -> Vec<Event> {
        for number in std::mem::take(&mut self.growing).into_values() {
            if let Some(at) = find(&self.events, number) {
                self.settle(at);
            }
        }
        let from = self.events.partition_point(|(n, _)| *n < number);
        let events = self.events[from..].iter().filter_map(|(_, kept)| match kept {
            Some(Kept::Event(event)) => Some(event.clone()),
            Some(Kept::Growing(_)) => unreachable!("all have settled"),
            None => None,
        });
        events.collect()
    }

    fn squeeze(&mut self) {
        if self.holes > 1024 && self.holes * 2 > self.events.len() {
            self.events.retain(|(_, event)| event.is_some());
            self.holes = 0;
        }
    }
}

fn find(events: &[(u64, Option<Kept>)], number: u64) -> Option<usize> {
    events.binary_search_by_key(&number, |(n, _)| *n).ok()
}
