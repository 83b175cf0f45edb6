//! What a worker does beside builds.
use std::sync::Arc;

use cache::Index;
use layers::{Housekeeping, Layers, Rule};
use task::Cancel;

/// Upkeep of the layers, and of the limits that they have to keep; ends when dropped.
pub struct Background(Cancel);

impl Background {
    pub fn start(layers: Layers, index: Index, rules: Vec<Rule>) -> Self {
        let cancel = Cancel::new();
        let (child, upkeep) = (cancel.child(), layers.clone());
        task::spawn("upkeep", async move { upkeep.maintain(&child).await });
        let (child, sharing) = (cancel.child(), layers.clone());
        task::spawn("file sharing", async move { sharing.share_files(&child).await });
        let housekeeping = Housekeeping { rules, deleted: Arc::new(move |id| index.forget([id.as_str()])) };
        let child = cancel.child();
        task::spawn("housekeeping", async move { layers.keep_house(housekeeping, &child).await });
        Self(cancel)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.0.cancel("the worker is closed");
    }
}
