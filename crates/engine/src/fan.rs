//! What one vertex reports, to everyone who holds it.
use std::sync::{Arc, Mutex, MutexGuard};

use oci::Digest;
use progress::{Sink, Update};
use solver::JobId;

/// How much of a vertex's log is kept for watchers that come later, in bytes.
const KEPT_LOG: usize = 1 << 20;

/// Passes updates on to all watchers, and replays to late ones what came before. Updates of other vertices (a build inside the vertex
/// reports here too) pass as they are.
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
    log: usize,
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
        state.past.iter().chain(&state.rows).for_each(|update| watcher.pass(&self.digest, update));
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
    fn remember(&mut self, update: Update) {
        match &update {
            Update::Log { data, .. } => {
                self.log += data.len();
                if self.log <= KEPT_LOG {
                    self.past.push(update);
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
