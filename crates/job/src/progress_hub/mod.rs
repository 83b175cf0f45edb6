//! Keeps everything that one build reports and replays it to any number of watchers, early or late.
//!
//! The hub stamps updates with the time they arrive. A row of byte progress is kept once, with its last value; a watcher that is slow or late
//! therefore sees fewer steps of it, never stale ones. Two things are made up here, as clients rely on them: inputs that never ran are shown as
//! cached when their user starts, and what is still running when the build ends is shown as ended.
//!
//! Steps print in small pieces. What one prints to one stream within a moment is one event, as long as nobody has seen its beginning: watchers
//! that wait are given it at once, and those that are slow or late, and the history, have fewer and larger events. A step's bytes keep their order,
//! of both streams together; between steps, output has the place of its first bytes.
mod record;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use bytes::Bytes;
use oci::Digest;
use progress::{Sink, Update, Vertex, Warning};
use tokio::sync::watch;

use record::Record;

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
        self.0.lock().since(0)
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
        let mut record = self.shared.lock();
        let events = record.since(self.next);
        self.next = record.next;
        (events, record.closed)
    }
}

impl VertexState {
    fn announced(vertex: Vertex) -> Self {
        Self { vertex: Arc::new(vertex), started: None, completed: None, cached: false, error: String::new() }
    }
}

#[cfg(test)]
mod tests;
