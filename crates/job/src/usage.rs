//! The worker's cache as clients see it in `du` and `prune`.
use fault::Result;
use layers::Layers;
use tokio::sync::mpsc;

use crate::api::{PruneRule, UsageQuery, UsageRecord};

pub async fn disk_usage(layers: &Layers, query: UsageQuery) -> Result<Vec<UsageRecord>> {
    let layers = layers.clone();
    let query = layers::UsageQuery { filters: query.filters, age_limit: query.age_limit };
    task::blocking(move || Ok(layers.usage(&query)?.into_iter().map(record).collect())).await
}

/// `forget` is told the id of each record that goes.
pub async fn prune(
    layers: &Layers,
    rule: PruneRule,
    deleted: mpsc::Sender<UsageRecord>,
    forget: impl Fn(&str) + Send + 'static,
) -> Result<()> {
    let layers = layers.clone();
    let bytes = |limit: i64| u64::try_from(limit).unwrap_or(0);
    let rule = layers::Rule {
        filters: rule.filters,
        all: rule.all,
        keep_duration: rule.keep_duration,
        reserved_space: bytes(rule.reserved_space),
        max_used_space: bytes(rule.max_used_space),
        min_free_space: bytes(rule.min_free_space),
    };
    task::blocking(move || {
        layers.prune(&[rule], |gone| {
            forget(gone.id.as_str());
            deleted.blocking_send(record(gone)).is_ok()
        })
    })
    .await
}

/// A rule of the garbage collection, as clients see it.
pub fn policy(rule: &layers::Rule) -> PruneRule {
    let bytes = |limit: u64| i64::try_from(limit).unwrap_or(i64::MAX);
    PruneRule {
        filters: rule.filters.clone(),
        all: rule.all,
        keep_duration: rule.keep_duration,
        reserved_space: bytes(rule.reserved_space),
        max_used_space: bytes(rule.max_used_space),
        min_free_space: bytes(rule.min_free_space),
    }
}

fn record(usage: layers::UsageRecord) -> UsageRecord {
    UsageRecord {
        id: usage.id.to_string(),
        parents: usage.parents.iter().map(ToString::to_string).collect(),
        mutable: usage.mutable,
        in_use: usage.in_use,
        size: i64::try_from(usage.size).unwrap_or(i64::MAX),
        created_at: usage.created_at.into(),
        last_used_at: usage.last_used_at.map(Into::into),
        usage_count: usage.usage_count,
        description: usage.description,
        record_type: usage.record_type,
        shared: usage.shared,
        deduplicated: i64::try_from(usage.deduplicated).unwrap_or(i64::MAX),
    }
}
