//! Deletes layers that nobody uses, by BuildKit's rules: one rule at a time, the least used first, never below what is to be kept.
use std::cmp::Ordering;
use std::collections::HashMap;
use std::time::Duration;

use kv::Batch;
use patterns::Filters;
use snapshot::TreeId;

use crate::LayerId;
use crate::error::{Error, Result};
use crate::store::Layers;
use crate::usage::{self, Inventory, UsageRecord};

/// What to delete and how much to keep. Sizes in bytes; 0 is no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// Containerd filter texts, any of which may match; none match everything.
    pub filters: Vec<String>,
    /// Also internal, frontend and shared records.
    pub all: bool,
    /// What was used within this time stays.
    pub keep_duration: Duration,
    /// Never delete below this.
    pub reserved_space: u64,
    /// Delete down to this.
    pub max_used_space: u64,
    /// Delete until the disk has this much room.
    pub min_free_space: u64,
}

/// Deleted at once where there is no limit to watch.
const BATCH: usize = 10;
/// Blobs without a layer stay this long: a build may be about to use them.
const BLOB_GRACE: Duration = Duration::from_secs(600);

impl Layers {
    /// Applies the rules one after the other, then removes blobs that nothing needs. `deleted` hears of each deleted record and says
    /// whether to go on. Blocks; a second pruning waits for the first.
    pub fn prune(&self, rules: &[Rule], mut deleted: impl FnMut(UsageRecord) -> bool) -> fault::Result<()> {
        let _turn = self.0.pruning.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for rule in rules {
            let filters = usage::parse(&rule.filters)?;
            let mut pruning = Pruning::new(self, rule, &filters)?;
            let outcome = pruning.run(&mut deleted);
            pruning.remove_trees()?;
            if !outcome? {
                break;
            }
        }
        self.content().sweep(BLOB_GRACE)?;
        Ok(())
    }
}

struct Pruning<'a> {
    home: &'a Layers,
    rule: &'a Rule,
    filters: &'a Filters,
    inventory: Inventory,
    /// How many records are on top of each.
    children: HashMap<LayerId, usize>,
    /// Sum of all sizes; 0 if there is no limit.
    total: u64,
    /// Stop below this; `None` deletes all.
    keep: Option<u64>,
    /// Of the records deleted.
    trees: Vec<TreeId>,
}

impl<'a> Pruning<'a> {
    fn new(home: &'a Layers, rule: &'a Rule, filters: &'a Filters) -> Result<Self> {
        let inventory = home.inventory()?;
        let mut children = HashMap::new();
        for parent in inventory.records.values().flat_map(|record| record.kind.parents()) {
            *children.entry(parent).or_insert(0) += 1;
        }
        let limited = rule.reserved_space > 0 || rule.max_used_space > 0 || rule.min_free_space > 0;
        let mut total = 0;
        if limited {
            for (id, record) in &inventory.records {
                let usage = inventory.describe(id, record);
                let is_cell_in_use = usage.mutable && usage.in_use;
                if !usage.shared && !is_cell_in_use {
                    total += home.size_of(id, record)?;
                }
            }
        }
        let free = if rule.min_free_space > 0 { free_space(home)? } else { 0 };
        let keep = keep_bytes(rule, total, free);
        Ok(Self { home, rule, filters, inventory, children, total, keep, trees: Vec::new() })
    }

    /// `false` if told to stop.
    fn run(&mut self, deleted: &mut dyn FnMut(UsageRecord) -> bool) -> Result<bool> {
        loop {
            if self.keep.is_some_and(|keep| self.total < keep) {
                return Ok(true);
            }
            let mut candidates = self.candidates();
            let batch = match self.keep {
                // One at a time, since each deletion changes the order of the rest; with very many that would take for ever.
                Some(_) => {
                    rank(&mut candidates);
                    1 + candidates.len() / 1000
                }
                None => BATCH,
            };
            candidates.truncate(batch);
            let gone = self.delete(candidates)?;
            if gone.is_empty() {
                return Ok(true);
            }
            for usage in gone {
                self.total = self.total.saturating_sub(usage.size);
                if !deleted(usage) {
                    return Ok(false);
                }
            }
        }
    }

    fn candidates(&self) -> Vec<UsageRecord> {
        let records =
            self.inventory.records.iter().filter(|(id, _)| !self.children.contains_key(*id) && !self.inventory.in_use.contains(*id));
        let described = records.map(|(id, record)| self.inventory.describe(id, record));
        let mut list: Vec<UsageRecord> = described.filter(|usage| self.selects(usage)).collect();
        list.sort_by_key(|usage| (usage.created_at, usage.id));
        list
    }

    fn selects(&self, usage: &UsageRecord) -> bool {
        let kept_type = matches!(usage.record_type.as_str(), "internal" | "frontend") || usage.shared;
        let recent = !self.rule.keep_duration.is_zero() && usage.used_within(self.rule.keep_duration);
        (self.rule.all || !kept_type) && !recent && usage::matches(self.filters, usage)
    }

    /// Deletes the records that still nobody uses.
    fn delete(&mut self, candidates: Vec<UsageRecord>) -> Result<Vec<UsageRecord>> {
        let mut gone = Vec::new();
        for mut usage in candidates {
            let Some(record) = self.inventory.records.remove(&usage.id) else { continue };
            usage.size = self.home.size_of(&usage.id, &record)?;
            let live = self.home.live();
            if live.get(&usage.id).is_some_and(|node| node.strong_count() > 0) {
                continue;
            }
            let mut batch = Batch::new();
            self.trees.extend(self.home.erase(&mut batch, &usage.id, &record)?);
            self.home.0.db.submit(batch);
            drop(live);
            for parent in &usage.parents {
                if let Some(count) = self.children.get_mut(parent) {
                    *count -= 1;
                    if *count == 0 {
                        self.children.remove(parent);
                    }
                }
            }
            gone.push(usage);
        }
        Ok(gone)
    }

    /// Once their records are durably gone: a record must not come back without its tree.
    fn remove_trees(self) -> Result<()> {
        if !self.trees.is_empty() {
            self.home.0.db.flush_blocking()?;
        }
        self.trees.iter().for_each(|tree| self.home.remove_tree(tree));
        Ok(())
    }
}

fn free_space(home: &Layers) -> Result<u64> {
    let root = home.trees().root();
    let stat = rustix::fs::statvfs(root).map_err(|e| Error::io("measure", root)(e.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// As many bytes as the limits allow to keep. `None`: no limits, or limits that come to nothing.
fn keep_bytes(rule: &Rule, total: u64, free: u64) -> Option<u64> {
    let Rule { reserved_space: reserved, max_used_space: most, min_free_space: min_free, .. } = *rule;
    if reserved == 0 && most == 0 && min_free == 0 {
        return None;
    }
    let excess = min_free.saturating_sub(free);
    let keep = match (excess, most) {
        // May be less than nothing, which the reserved space then lifts.
        (1.., 0) => total.saturating_sub(excess),
        (1.., _) => most.min(total.saturating_sub(excess)),
        // There is room: nothing is deleted, and that takes more than the total.
        (0, 0) if min_free != 0 => total + 1,
        (0, _) => most,
    };
    Some(keep.max(reserved)).filter(|keep| *keep != 0)
}

/// The least recently and least often used first: ascending sum of the two ranks, each relative to the highest.
fn rank(list: &mut [UsageRecord]) {
    let mut by_time: Vec<usize> = (0..list.len()).collect();
    by_time.sort_by_key(|&at| list[at].last_used_at);
    let mut by_count: Vec<usize> = (0..list.len()).collect();
    by_count.sort_by_key(|&at| list[at].usage_count);
    let times = ranks(&by_time, |at| list[at].last_used_at);
    let counts = ranks(&by_count, |at| (list[at].usage_count > 0).then_some(list[at].usage_count));
    let mut keyed: Vec<(f64, UsageRecord)> = (0..list.len()).map(|at| (times[at] + counts[at], list[at].clone())).collect();
    keyed.sort_by(|a, b| a.0.partial_cmp(&b.0).unwrap_or(Ordering::Equal));
    for (slot, (_, usage)) in list.iter_mut().zip(keyed) {
        *slot = usage;
    }
}

/// Ranks from 1, equal values sharing one, divided by the highest. `None` values have the first rank.
fn ranks<T: PartialEq>(order: &[usize], value: impl Fn(usize) -> Option<T>) -> Vec<f64> {
    let mut ranks = vec![1.0; order.len()];
    let mut rank = 1.0;
    let mut last = None;
    for &at in order {
        let value = value(at);
        if value.is_some() && value != last {
            rank += 1.0;
            last = value;
        }
        ranks[at] = rank;
    }
    ranks.iter().map(|own| own / rank).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_much_is_kept() {
        let rule =
            |reserved_space, max_used_space, min_free_space| Rule { reserved_space, max_used_space, min_free_space, ..Rule::default() };
        for (rule, total, free, want) in [
            (rule(0, 0, 0), 100, 0, None),
            (rule(0, 50, 0), 100, 0, Some(50)),
            (rule(70, 50, 0), 100, 0, Some(70)),
            (rule(0, 50, 30), 100, 40, Some(50)),
            (rule(0, 50, 30), 100, 10, Some(50)),
            (rule(0, 90, 30), 100, 10, Some(80)),
            (rule(0, 0, 30), 100, 40, Some(101)),
            (rule(0, 0, 30), 100, 10, Some(80)),
            (rule(10, 0, 300), 100, 10, Some(10)),
            (rule(0, 0, 300), 100, 10, None),
        ] {
            assert_eq!(keep_bytes(&rule, total, free), want, "{rule:?}");
        }
    }

    #[test]
    fn ranks_are_relative() {
        let values = [None, Some(5), Some(5), Some(9)];
        assert_eq!(ranks(&[0, 1, 2, 3], |at| values[at]), [1.0 / 3.0, 2.0 / 3.0, 2.0 / 3.0, 1.0]);
    }
}
