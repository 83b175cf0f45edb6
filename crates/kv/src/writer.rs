use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::batch::Op;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::overlay::Pending;

/// What the submitters and the writer thread share.
pub(crate) struct Queue {
    state: Mutex<State>,
    wake: Condvar,
}

struct State {
    pending: Pending,
    /// When the oldest pending change came.
    since: Option<Instant>,
    flushes: Vec<oneshot::Sender<Result<(), String>>>,
    closing: bool,
    /// The writer has ended: nothing will be committed any more.
    ended: bool,
    failures: u32,
}

impl Queue {
    pub fn new() -> Self {
        let state = State { pending: Pending::default(), since: None, flushes: Vec::new(), closing: false, ended: false, failures: 0 };
        Self { state: Mutex::new(state), wake: Condvar::new() }
    }

    /// Runs `look` on what is pending.
    pub fn with<T>(&self, look: impl FnOnce(&Pending) -> T) -> T {
        look(&self.lock().pending)
    }

    pub fn submit(&self, ops: Vec<Op>) {
        if ops.is_empty() {
            return;
        }
        let mut state = self.lock();
        state.pending.apply(ops);
        if state.since.is_none() {
            state.since = Some(Instant::now());
            self.wake.notify_one();
        }
    }

    /// Asks for a commit of everything submitted so far; the receiver hears how it went. `None` if there is nothing to commit.
    pub fn flush(&self) -> Result<Option<oneshot::Receiver<Result<(), String>>>> {
        let mut state = self.lock();
        if state.pending.is_empty() {
            return Ok(None);
        }
        if state.ended {
            return Err(Error::Closed);
        }
        let (sender, receiver) = oneshot::channel();
        state.flushes.push(sender);
        self.wake.notify_one();
        Ok(Some(receiver))
    }

    pub fn close(&self) {
        self.lock().closing = true;
        self.wake.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the queue lock panics")
    }

    /// Waits until a commit is due: a flush is wanted, changes are older than `delay`, or the queue closes.
    fn wait<'a>(&'a self, mut state: MutexGuard<'a, State>, delay: Duration) -> MutexGuard<'a, State> {
        loop {
            if state.closing || !state.flushes.is_empty() {
                return state;
            }
            let wait = if state.failures > 0 { retry_after(state.failures) } else { delay };
            state = match state.since.map(|since| wait.saturating_sub(since.elapsed())) {
                None => self.wake.wait(state).expect("no holder of the queue lock panics"),
                Some(Duration::ZERO) => return state,
                Some(left) => self.wake.wait_timeout(state, left).expect("no holder of the queue lock panics").0,
            };
        }
    }
}

fn retry_after(failures: u32) -> Duration {
    Duration::from_millis(250 << failures.min(6))
}

/// The body of the writer thread: commits what is pending in groups until the queue closes.
pub(crate) fn run(queue: &Arc<Queue>, engine: &dyn Engine, delay: Duration) {
    let mut state = queue.lock();
    loop {
        state = queue.wait(state, delay);
        let closing = state.closing;
        let waiting = std::mem::take(&mut state.flushes);
        state.since = None;
        let changes = state.pending.begin();
        drop(state);

        let outcome = match &changes {
            None => Ok(()),
            Some(changes) => commit(
                engine,
                &mut changes.iter().map(|((table, key), value)| Op { table, key: key.clone(), value: value.as_ref().map(|v| v.to_vec()) }),
            ),
        };

        state = queue.lock();
        match &outcome {
            Ok(()) => {
                state.pending.committed();
                state.failures = 0;
            }
            Err(error) => {
                state.pending.failed();
                state.since = Some(Instant::now());
                state.failures += 1;
                tracing::error!(error = fault::chain(error), failures = state.failures, "database commit failed; it will be tried again");
            }
        }
        for waiter in waiting {
            let _ = waiter.send(match &outcome {
                Ok(()) => Ok(()),
                Err(error) => Err(fault::chain(error)),
            });
        }
        if closing {
            state.ended = true;
            for waiter in state.flushes.drain(..) {
                let _ = waiter.send(Err("database is closed".into()));
            }
            return;
        }
    }
}

/// Commits, once more after reopening the engine if the first try fails.
fn commit(engine: &dyn Engine, ops: &mut dyn Iterator<Item = Op>) -> Result<()> {
    let ops: Vec<Op> = ops.collect();
    match engine.commit(&mut ops.iter().cloned()) {
        Err(Error::Io(error)) => {
            tracing::warn!(%error, "database I/O failed; reopening");
            engine.reopen()?;
            engine.commit(&mut ops.into_iter())
        }
        outcome => outcome,
    }
}
