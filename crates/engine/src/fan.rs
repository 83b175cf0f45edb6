//! What one vertex reports, to everyone who holds it.
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};

use oci::Digest;
use progress::{Sink, Update};
use solver::JobId;

/// Passes updates on to all watchers, and replays to late ones what came before; output, which may be much, is not kept here: a late watcher has
/// it from one that was there. Updates of other vertices pass as they are.
pub(crate) struct Fan {
    /// The vertex as the engine knows it.
    digest: Digest,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    watchers: Vec<Watcher>,
    past: Vec<Update>,
    /// Rows of byte progress: only the last state of each is worth keeping.
    rows: Vec<Update>,
    /// Who has printed something.
    speakers: BTreeSet<Digest>,
}

struct Watcher {
    job: JobId,
    sink: Arc<dyn Sink>,
    /// What this job's client calls the vertex.
    digest: Digest,
}

impl Fan {
    pub fn new(digest: Digest) -> Self {
        Self { digest, state: Mutex::default() }
    }

    pub fn join(&self, job: JobId, sink: Arc<dyn Sink>, digest: Digest) {
        let mut state = self.state();
        if state.watchers.iter().any(|w| w.job == job && w.digest == digest) {
            return;
        }
        let watcher = Watcher { job, sink, digest };
        state.replay(&self.digest, &watcher);
        state.watchers.push(watcher);
    }

    pub fn has(&self, job: JobId) -> bool {
        self.state().watchers.iter().any(|w| w.job == job)
    }

    pub fn leave(&self, job: JobId) {
        self.state().watchers.retain(|w| w.job != job);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

impl Sink for Fan {
    fn emit(&self, update: Update) {
        let mut state = self.state();
        state.watchers.iter().for_each(|watcher| watcher.pass(&self.digest, &update));
        state.remember(update);
    }
}

impl State {
    /// Output comes before the end of its vertex, where that has one.
    fn replay(&self, own: &Digest, late: &Watcher) {
        let mut speakers = self.speakers.clone();
        for update in &self.past {
            if let Update::Completed { vertex, .. } = update
                && let Some(vertex) = speakers.take(vertex)
            {
                self.pass_on(own, &vertex, late);
            }
            late.pass(own, update);
        }
        speakers.iter().for_each(|vertex| self.pass_on(own, vertex, late));
        self.rows.iter().for_each(|update| late.pass(own, update));
    }

    /// Who came last is least likely to have left: a build that has ended takes nothing in any more.
    fn pass_on(&self, own: &Digest, vertex: &Digest, late: &Watcher) {
        let name = |watcher: &Watcher| if vertex == own { watcher.digest.clone() } else { vertex.clone() };
        self.watchers.iter().rev().any(|watcher| watcher.sink.pass_on(&name(watcher), &*late.sink, &name(late)));
    }

    fn remember(&mut self, update: Update) {
        match &update {
            Update::Log { vertex, .. } => {
                if !self.speakers.contains(vertex) {
                    self.speakers.insert(vertex.clone());
                }
            }
            Update::Status { vertex, id, .. } => {
                let same = |row: &&mut Update| matches!(row, Update::Status { vertex: v, id: i, .. } if i == id && v == vertex);
                match self.rows.iter_mut().find(same) {
                    Some(row) => *row = update,
                    None => self.rows.push(update),
                }
            }
            Update::Announced(_) | Update::Started { .. } | Update::Completed { .. } | Update::Warning(_) => self.past.push(update),
        }
    }
}

impl Watcher {
    fn pass(&self, own: &Digest, update: &Update) {
        let mut update = update.clone();
        let vertex = match &mut update {
            Update::Announced(vertex) => &mut vertex.digest,
            Update::Started { vertex } | Update::Completed { vertex, .. } | Update::Status { vertex, .. } | Update::Log { vertex, .. } => {
                vertex
            }
            Update::Warning(warning) => &mut warning.vertex,
        };
        if vertex == own {
            *vertex = self.digest.clone();
        }
        self.sink.emit(update);
    }
}
