//! What a worker does beside builds: emptying the trash, and moving the watermark of what survives a power cut.
use std::sync::Arc;
use std::time::Duration;

use fault::{Fault, Kind};
use layers::Layers;
use task::Cancel;
use tokio::sync::Notify;

/// How often what was written is synced. Work done since is lost with the power, and only then.
const SYNC_EVERY: Duration = Duration::from_secs(30);

/// Ends when dropped.
pub struct Background {
    trash: Arc<Notify>,
    cancel: Cancel,
}

impl Background {
    pub fn new() -> Self {
        Self { trash: Arc::default(), cancel: Cancel::new() }
    }

    /// To be called when something went to the trash.
    pub fn on_trash(&self) -> Box<dyn Fn() + Send + Sync> {
        let trash = self.trash.clone();
        Box::new(move || trash.notify_one())
    }

    pub fn start(&self, layers: Layers) {
        task::spawn("trash", empty_trash(layers.clone(), self.trash.clone(), self.cancel.clone()));
        task::spawn("sync", sync(layers, self.cancel.clone()));
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.cancel.cancel("the worker is closed");
    }
}

async fn empty_trash(layers: Layers, trash: Arc<Notify>, cancel: Cancel) {
    loop {
        let trees = layers.trees().clone();
        if let Err(fault) = task::blocking(move || trees.empty_trash().map_err(|e| Fault::of(Kind::Unknown, e))).await {
            tracing::warn!(%fault, "failed to empty the trash");
        }
        tokio::select! {
            () = trash.notified() => {}
            () = cancel.cancelled() => return,
        }
    }
}

async fn sync(layers: Layers, cancel: Cancel) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(SYNC_EVERY) => {}
            () = cancel.cancelled() => return,
        }
        if let Err(fault) = layers.sync().await {
            tracing::warn!(%fault, "failed to sync the store");
        }
    }
}
