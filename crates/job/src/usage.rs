//! The worker's cache as clients see it in `du` and `prune`.
use fault::Result;
use layers::Layers;
use tokio::sync::mpsc;

use crate::api::{PruneRule, UsageQuery, UsageRecord};

pub async fn disk_usage(layers: &Layers, query: UsageQuery) -> Result<Vec<UsageRecord>> {
    let _ = (layers, query);
    Ok(Vec::new())
}

pub async fn prune(layers: &Layers, rule: PruneRule, deleted: mpsc::Sender<UsageRecord>) -> Result<()> {
    let _ = (layers, rule, deleted);
    Ok(())
}
