//! What happens beside the builds: trees without layers go, the trash is emptied, the durability mark moves, uses are written down.
use std::collections::HashSet;
use std::time::Duration;

use snapshot::TreeId;
use task::Cancel;

use crate::error::Result;
use crate::record::TREES;
use crate::store::Layers;

const TICK: Duration = Duration::from_secs(5);
/// Ticks between syncs of the file system, which cost every writer.
const SYNC_EVERY: u32 = 6;

impl Layers {
    /// Runs until cancelled; the daemon spawns it once. Nothing that it does is needed for an answer.
    pub async fn maintain(&self, cancel: &Cancel) {
        self.attempt("reconcile", |home| Ok(home.reconcile().map(|_| ())?)).await;
        let mut ticks: u32 = 0;
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                () = tokio::time::sleep(TICK) => {}
            }
            ticks = ticks.wrapping_add(1);
            self.attempt("empty the trash", |home| Ok(home.trees().empty_trash().map(|_| ()).map_err(crate::Error::from)?)).await;
            self.attempt("write down uses", |home| Ok(home.write_uses()?)).await;
            if ticks.is_multiple_of(SYNC_EVERY)
                && let Err(error) = self.sync().await
            {
                tracing::warn!(%error, "could not sync the layers");
            }
        }
        self.attempt("write down uses", |home| Ok(home.write_uses()?)).await;
    }

    async fn attempt(&self, what: &'static str, work: impl FnOnce(Layers) -> fault::Result<()> + Send + 'static) {
        let home = self.clone();
        if let Err(error) = task::blocking(move || work(home)).await {
            tracing::warn!(%error, "could not {what}");
        }
    }

    /// Removes trees that belong to no layer: their process was killed before it recorded them. Returns how many.
    pub fn reconcile(&self) -> Result<usize> {
        let owned: HashSet<TreeId> = {
            let entries = self.0.db.read()?.all(&TREES)?;
            entries.iter().filter_map(|(key, ())| key.split('/').next()?.parse().ok()).collect()
        };
        let mut removed = 0;
        for tree in self.0.trees.trees()?.into_iter().chain(self.0.trees.cells()?) {
            // Ids sort by time. What was made since the start may be on its way to its record.
            if tree < self.0.opened && !owned.contains(&tree) {
                self.remove_tree(&tree);
                removed += 1;
            }
        }
        Ok(removed)
    }
}
