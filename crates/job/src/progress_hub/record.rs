//! What a build has reported: each update becomes events, some of which are made up.
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use oci::Digest;
use progress::{Update, Vertex};

use super::timeline::Timeline;
use super::{Event, RowState, VertexState};

/// The events, and how things stand after them.
#[derive(Default)]
pub(super) struct Record {
    pub timeline: Timeline,
    pub closed: bool,
    pub vertices: HashMap<Digest, VertexState>,
    rows: HashMap<(Digest, String), (u64, SystemTime)>,
    /// Vertices that were cached, and all below them.
    was_cached: HashSet<Digest>,
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
                    self.timeline.remove(number);
                    started
                });
                self.rows.insert(key.clone(), (self.timeline.next(), started));
                let (vertex, id) = key;
                self.timeline.push(Event::Status(RowState {
                    vertex,
                    id,
                    action,
                    current,
                    total,
                    at: now,
                    started,
                    completed: done.then_some(now),
                }));
            }
            Update::Log { vertex, stream, data } => self.timeline.log(vertex, now, stream, &data),
            Update::Warning(warning) => self.timeline.push(Event::Warning(warning)),
        }
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
        self.timeline.push(Event::Vertex(state));
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
            self.timeline.push(Event::Vertex(input));
        }
        if state.cached {
            self.mark_cached(digest);
        }
        self.timeline.push(Event::Vertex(state));
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
            self.timeline.push(Event::Vertex(state));
        }
    }
}
