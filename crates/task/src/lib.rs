//! Naming, spawning, cancelling (with a reason) and draining background work.
//!
//! Everything in kiln that runs beside its caller is spawned here. A [`Cancel`] is a tree: cancelling a node cancels what hangs below it,
//! and whoever is cancelled can ask why.
use std::future::Future;
use std::sync::{Arc, OnceLock};

use fault::{Fault, Kind};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

/// A node in the tree of cancellation. Clones are the same node.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<Node>);

#[derive(Debug, Default)]
struct Node {
    token: CancellationToken,
    reason: OnceLock<String>,
    parent: Option<Cancel>,
}

impl Cancel {
    pub fn new() -> Self {
        Self::default()
    }

    /// A node that is cancelled with this one, or alone.
    pub fn child(&self) -> Self {
        Self(Arc::new(Node { token: self.0.token.child_token(), reason: OnceLock::new(), parent: Some(self.clone()) }))
    }

    /// Cancels this node and all below it. The first reason given stays.
    pub fn cancel(&self, reason: impl Into<String>) {
        let _ = self.0.reason.set(reason.into());
        self.0.token.cancel();
    }

    pub fn is_cancelled(&self) -> bool {
        self.0.token.is_cancelled()
    }

    pub fn reason(&self) -> &str {
        match (self.0.reason.get(), &self.0.parent) {
            (Some(reason), _) => reason,
            (None, Some(parent)) => parent.reason(),
            (None, None) => "context canceled",
        }
    }

    /// The failure that a cancelled piece of work ends with.
    pub fn fault(&self) -> Fault {
        Fault::new(Kind::Canceled, self.reason())
    }

    pub async fn cancelled(&self) {
        self.0.token.cancelled().await;
    }

    /// Fails if already cancelled; for loops in blocking code.
    pub fn check(&self) -> fault::Result<()> {
        if self.is_cancelled() { Err(self.fault()) } else { Ok(()) }
    }

    /// Runs `work` until it ends or this node is cancelled, whichever is first. On cancellation `work` is dropped.
    pub async fn run<T, E: Into<Fault>>(&self, work: impl Future<Output = Result<T, E>>) -> fault::Result<T> {
        tokio::select! {
            biased;
            () = self.cancelled() => Err(self.fault()),
            outcome = work => outcome.map_err(Into::into),
        }
    }
}

/// Cancels its node when dropped, unless [`CancelOnDrop::disarm`]ed.
#[derive(Debug)]
pub struct CancelOnDrop(Option<(Cancel, &'static str)>);

impl CancelOnDrop {
    pub fn new(cancel: Cancel, reason: &'static str) -> Self {
        Self(Some((cancel, reason)))
    }

    pub fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some((cancel, reason)) = self.0.take() {
            cancel.cancel(reason);
        }
    }
}

/// A spawned piece of work. Dropping the handle leaves the work running; use [`Cancel`] to end it.
#[derive(Debug)]
pub struct Task<T>(tokio::task::JoinHandle<T>);

impl<T> Task<T> {
    /// Waits for the end. A panic becomes an internal fault.
    pub async fn join(self) -> fault::Result<T> {
        self.0.await.map_err(|e| Fault::internal(format!("a background task ended early: {e}")))
    }

    pub fn abort(&self) {
        self.0.abort();
    }

    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

/// Spawns `work` on the runtime under a span with `name`.
pub fn spawn<T: Send + 'static>(name: &'static str, work: impl Future<Output = T> + Send + 'static) -> Task<T> {
    Task(tokio::spawn(work.instrument(tracing::debug_span!("task", name))))
}

/// Runs blocking disk work off the runtime's threads and waits for it.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> fault::Result<T> + Send + 'static) -> fault::Result<T> {
    let span = tracing::Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(work))
        .await
        .unwrap_or_else(|e| Err(Fault::internal(format!("blocking work ended early: {e}"))))
}

/// Counts work so that shutdown can wait for it.
#[derive(Clone, Debug, Default)]
pub struct Drain(tokio_util::task::TaskTracker);

impl Drain {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn spawn<T: Send + 'static>(&self, name: &'static str, work: impl Future<Output = T> + Send + 'static) -> Task<T> {
        spawn(name, self.0.track_future(work))
    }

    /// Waits until everything spawned here has ended; new work may still be added while waiting.
    pub async fn wait(&self) {
        self.0.close();
        self.0.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_child_knows_why_its_parent_was_cancelled() {
        let root = Cancel::new();
        let child = root.child().child();
        root.cancel("client went away");
        let fault = child.run(std::future::pending::<Result<(), Fault>>()).await.unwrap_err();
        assert_eq!((fault.kind(), fault.to_string().as_str()), (Kind::Canceled, "client went away"));
    }
}
