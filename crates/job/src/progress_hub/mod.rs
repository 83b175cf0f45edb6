//! Keeps everything that one build reports and replays it to any number of watchers, early or late.
//!
//! The hub stamps updates with the time they arrive. A row of byte progress is kept once, with its last value; a watcher that is slow or late
//! therefore sees fewer steps of it, never stale ones. Two things are made up here, as clients rely on them: inputs that never ran are shown as
//! cached when their user starts, and what is still running when the build ends is shown as ended.
//!
//! Steps print in small pieces. What one prints to one stream within a moment is one event, as long as nobody has seen its beginning: watchers
//! that wait are given it at once, and those that are slow or late, and the history, have fewer and larger events. A step's bytes keep their order,
//! of both streams together; between steps, output has the place of its first bytes.
//!
//! Output that is too much for memory lies in a file ([`Spool`]) and is read from there by watchers that have not seen it yet. So what a watcher that
//! stops reading costs is disk, and that until the build is forgotten.
mod pages;
mod record;
mod timeline;

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use fault::Result;
use oci::Digest;
use progress::{Sink, Update, Vertex, Warning};
use tokio::sync::watch;

use pages::Pages;
pub use pages::{Spool, weight};
use record::Record;
use timeline::{Part, WORTH_WRITING};

/// When writing has failed, how long it is not tried again.
const RETRY: Duration = Duration::from_secs(5);

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
    /// `None`: all stays in memory.
    spool: Option<Spool>,
    writing: Mutex<Writing>,
}

/// How it stands with output on its way to the disk.
#[derive(Default)]
struct Writing {
    pages: Option<Arc<Pages>>,
    is_under_way: bool,
    /// The disk did not take it.
    not_before: Option<Instant>,
}

#[derive(Clone, Copy, Default, PartialEq)]
struct Head {
    next: u64,
    closed: bool,
}

impl Default for Hub {
    fn default() -> Self {
        Self::over(None)
    }
}

impl Hub {
    /// Has everything in memory.
    pub fn new() -> Self {
        Self::default()
    }

    pub fn with(spool: Spool) -> Self {
        Self::over(Some(spool))
    }

    fn over(spool: Option<Spool>) -> Self {
        let changed = watch::channel(Head::default()).0;
        Self(Arc::new(Shared { record: Mutex::default(), changed, spool, writing: Mutex::default() }))
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

    /// Shows everything there is, in order, a part at a time. Reads the disk.
    pub fn replay(&self, mut show: impl FnMut(Vec<Event>) -> Result<()>) -> Result<()> {
        let mut next = 0;
        loop {
            let part;
            (part, next) = self.0.lock().timeline.part(next);
            if part.is_empty() {
                return Ok(());
            }
            show(part.read())?;
        }
    }

    /// The last state of every vertex; for counting steps at the end of a build.
    pub fn vertices(&self) -> Vec<VertexState> {
        self.0.lock().vertices.values().cloned().collect()
    }
}

impl Sink for Hub {
    fn emit(&self, update: Update) {
        self.0.add(|record| record.apply(update, SystemTime::now()));
        self.spare_memory();
    }

    fn pass_on(&self, vertex: &Digest, to: &dyn Sink, name: &Digest) -> bool {
        let Some(to) = (to as &dyn Any).downcast_ref::<Hub>() else { return false };
        let heirlooms = {
            let mut record = self.0.lock();
            // What came since is missing.
            if record.closed {
                return false;
            }
            record.timeline.output_of(vertex)
        };
        to.0.add(|record| record.timeline.inherit(name, heirlooms, SystemTime::now()));
        to.spare_memory();
        true
    }
}

impl Hub {
    /// Writes output in the background, where that is due, until little of it is in memory.
    fn spare_memory(&self) {
        if self.0.must_write() {
            let shared = self.0.clone();
            task::spawn("output to disk", async move {
                let written = shared.clone();
                let outcome = task::blocking(move || written.write()).await;
                let mut writing = shared.writing();
                writing.is_under_way = false;
                if let Err(fault) = outcome {
                    tracing::warn!(%fault, "what steps print stays in memory");
                    writing.not_before = Some(Instant::now() + RETRY);
                }
            });
        }
    }
}

impl Shared {
    /// Changes the record, unless it is closed, and tells watchers.
    fn add(&self, change: impl FnOnce(&mut Record)) {
        let mut record = self.lock();
        if record.closed {
            return;
        }
        let before = record.timeline.held();
        change(&mut record);
        if let Some(spool) = &self.spool {
            spool.hold(record.timeline.held() - before);
        }
        self.announce(record);
    }

    fn must_write(&self) -> bool {
        // Who is not of the runtime (a thread that packs a layer, say) leaves it to the next.
        if !self.spool.as_ref().is_some_and(Spool::is_full) || tokio::runtime::Handle::try_current().is_err() {
            return false;
        }
        let mut writing = self.writing();
        let is_due = !writing.is_under_way && writing.not_before.is_none_or(|at| at <= Instant::now());
        writing.is_under_way |= is_due && self.lock().timeline.held() >= WORTH_WRITING;
        is_due && writing.is_under_way
    }

    fn write(&self) -> Result<()> {
        let Some(spool) = &self.spool else { return Ok(()) };
        let known = self.writing().pages.clone();
        let pages = match known {
            Some(pages) => pages,
            None => {
                let pages = spool.open()?;
                self.writing().pages.insert(pages).clone()
            }
        };
        loop {
            let Some(events) = self.lock().timeline.unwritten(WORTH_WRITING) else { return Ok(()) };
            let stretches = pages::write(&pages, &events)?;
            self.lock().timeline.put_apart(&events, stretches);
            spool.release(events.iter().map(|(_, event)| weight(event)).sum());
        }
    }

    fn writing(&self) -> MutexGuard<'_, Writing> {
        self.writing.lock().expect("no holder of this lock panics")
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().expect("no holder of this lock panics")
    }

    fn announce(&self, record: MutexGuard<'_, Record>) {
        let head = Head { next: record.timeline.next(), closed: record.closed };
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

impl Drop for Shared {
    fn drop(&mut self) {
        if let (Some(spool), Ok(record)) = (&self.spool, self.record.get_mut()) {
            spool.release(record.timeline.held());
        }
    }
}

/// One watcher's place in the record.
pub struct Watch {
    shared: Arc<Shared>,
    changes: watch::Receiver<Head>,
    next: u64,
}

impl Watch {
    /// Events since the last call, at least one; waits for it. All of them, unless that is much output. `None` at the end of the build.
    pub async fn next(&mut self) -> Option<Vec<Event>> {
        loop {
            let (part, closed) = self.take();
            if part.is_in_memory() && !part.is_empty() {
                return Some(part.read());
            }
            if !part.is_empty() {
                match task::blocking(move || Ok(part.read())).await {
                    Ok(events) => return Some(events),
                    Err(fault) => tracing::error!(%fault, "a watcher misses a part of a build's progress"),
                }
                continue;
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

    fn take(&mut self) -> (Part, bool) {
        let mut record = self.shared.lock();
        let part;
        (part, self.next) = record.timeline.part(self.next);
        (part, record.closed)
    }
}

impl VertexState {
    fn announced(vertex: Vertex) -> Self {
        Self { vertex: Arc::new(vertex), started: None, completed: None, cached: false, error: String::new() }
    }
}

#[cfg(test)]
mod tests;
