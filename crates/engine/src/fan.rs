//! What one vertex reports, to everyone who holds it.
use std::sync::{Arc, Mutex, MutexGuard};

use oci::Digest;
use progress::{Sink, Update};
use solver::JobId;

/// How much of a vertex's log is kept for watchers that come later, bytes.
const KEPT_LOG: usize = 1 << 20;

/// Passes updates on to all watchers, and replays to late ones what came before.
#[derive(Default)]
pub struct Fan(Mutex<State>);

#[derive(Default)]
struct State {
    watchers: Vec<Watcher>,
    past: Vec<Update>,
    log: usize,
}

struct Watcher {
    job: JobId,
    sink: Arc<dyn Sink>,
    /// What this job's client calls the vertex.
    digest: Digest,
}

impl Fan {
    pub fn join(&self, job: JobId, sink: Arc<dyn Sink>, digest: Digest) {
        let mut state = self.state();
        if state.watchers.iter().any(|w| w.job == job && w.digest == digest) {
            return;
        }
        let watcher = Watcher { job, sink, digest };
        state.past.iter().for_each(|update| watcher.pass(update));
        state.watchers.push(watcher);
    }

    pub fn leave(&self, job: JobId) {
        self.state().watchers.retain(|w| w.job != job);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

impl Sink for Fan {
    fn emit(&self, update: Update) {
        let mut state = self.state();
        state.watchers.iter().for_each(|watcher| watcher.pass(&update));
        state.remember(update);
    }
}

impl State {
    fn remember(&mut self, update: Update) {
        match &update {
            Update::Log { data, .. } => {
                if self.log + data.len() > KEPT_LOG {
                    return;
                }
                self.log += data.len();
            }
            // Only the last state of a row is worth keeping.
            Update::Status { id, .. } => {
                self.past.retain(|past| !matches!(past, Update::Status { id: other, .. } if other == id));
            }
            _ => {}
        }
        self.past.push(update);
    }
}

impl Watcher {
    fn pass(&self, update: &Update) {
        let mut update = update.clone();
        let vertex = match &mut update {
            Update::Announced(_) => None,
            Update::Started { vertex } | Update::Completed { vertex, .. } | Update::Status { vertex, .. } | Update::Log { vertex, .. } => {
                Some(vertex)
            }
            Update::Warning(warning) => Some(&mut warning.vertex),
        };
        if let Some(vertex) = vertex {
            *vertex = self.digest.clone();
        }
        self.sink.emit(update);
    }
}
