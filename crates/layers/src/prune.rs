//! Deletes layers that nobody uses, by BuildKit's rules: one rule at a time, the least used first, never below what is to be kept.
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use kv::{Batch, Json};
use oci::{Digest, Timestamp};
use snapshot::TreeId;

use crate::LayerId;
use crate::error::{Error, Result};
use crate::inventory::{Inventory, Item};
use crate::rank;
use crate::record::{CHILDREN, RECORDS};
use crate::store::Layers;
use crate::usage::{self, UsageRecord};

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

/// Records deleted before their trees are removed: what waits in between is lost to nobody, but takes space.
const SLICE: usize = 64;
/// Blobs without a layer stay this long: a build may be about to use them.
const BLOB_GRACE: Duration = Duration::from_secs(600);

impl Layers {
    /// Applies the rules one after the other, then removes blobs that nothing needs. `deleted` hears of each deleted record and says
    /// whether to go on. Blocks; a second pruning waits for the first.
    pub fn prune(&self, rules: &[Rule], mut deleted: impl FnMut(UsageRecord) -> bool) -> fault::Result<()> {
        let _turn = self.0.pruning.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.0.deletions.run();
        for rule in rules {
            let mut pruning = Pruning::new(self, rule)?;
            let outcome = pruning.run(&mut deleted);
            pruning.cleared.finish(&mut pruning.inventory)?;
            if !outcome? {
                break;
            }
        }
        self.content().sweep(BLOB_GRACE)?;
        Ok(())
    }

    /// Deletes the record of a layer that still nobody uses and that has nothing on it. The caller removes what it kept.
    pub(crate) fn delete(&self, id: &LayerId) -> Result<Option<Deleted>> {
        let live = self.live();
        if live.get(id).is_some_and(|node| node.strong_count() > 0) {
            return Ok(None);
        }
        let read = self.0.db.read()?;
        let Some(Json(record)) = read.get(&RECORDS, id.as_str())? else { return Ok(None) };
        // What came and went since the caller looked may have left a record on this one.
        if !read.prefix(&CHILDREN, format!("{id}/").as_bytes())?.is_empty() {
            return Ok(None);
        }
        let usage = usage::describe(id, &record, self.uses_of(id)?, false);
        let mut batch = Batch::new();
        let trees = self.erase(&mut batch, id, &record)?;
        self.0.db.submit(batch);
        drop(live);
        let blobs = record.blobs.iter().map(|blob| blob.digest.clone()).collect();
        Ok(Some(Deleted { usage, trees, blobs }))
    }
}

/// A record that is gone, and what it alone had.
pub(crate) struct Deleted {
    pub usage: UsageRecord,
    trees: Vec<TreeId>,
    /// Others may have them, too.
    blobs: Vec<Digest>,
}

/// Trees and blobs of deleted records, on their way out.
pub(crate) struct Cleared<'a> {
    home: &'a Layers,
    trees: Vec<TreeId>,
    blobs: BTreeSet<Digest>,
    records: usize,
}

impl<'a> Cleared<'a> {
    pub fn new(home: &'a Layers) -> Self {
        Self { home, trees: Vec::new(), blobs: BTreeSet::new(), records: 0 }
    }

    pub fn add(&mut self, deleted: Deleted) -> UsageRecord {
        self.trees.extend(deleted.trees);
        self.blobs.extend(deleted.blobs);
        self.records += 1;
        deleted.usage
    }

    pub fn is_full(&self) -> bool {
        self.records >= SLICE
    }

    /// Removes the files, once the records are durably gone: a record must not come back without its tree. Those that shared them take
    /// over what they cost.
    pub fn finish(&mut self, inventory: &mut Inventory) -> Result<()> {
        if self.records == 0 {
            return Ok(());
        }
        self.home.0.db.flush_blocking()?;
        let mut heirs = BTreeSet::new();
        for tree in &self.trees {
            heirs.extend(self.home.heirs(tree)?);
            self.home.remove_tree(tree);
        }
        for blob in &self.blobs {
            self.home.content().remove_unneeded(blob)?;
        }
        self.home.0.account.queue(heirs.iter().copied());
        if !heirs.is_empty() {
            // A file has as many names as there are trees that share it, once those in the trash are gone.
            self.home.trees().empty_trash()?;
            self.home.measure_queued()?;
        }
        for heir in &heirs {
            if self.home.trees().contains(heir) {
                inventory.resize(heir, self.home.size_of_tree(heir)?.bytes);
            }
        }
        *self = Self::new(self.home);
        Ok(())
    }
}

struct Pruning<'a> {
    home: &'a Layers,
    rule: &'a Rule,
    inventory: Inventory,
    /// Stop below this; `None` deletes all.
    keep: Option<u64>,
    cleared: Cleared<'a>,
}

impl<'a> Pruning<'a> {
    fn new(home: &'a Layers, rule: &'a Rule) -> fault::Result<Self> {
        let filters = usage::parse(&rule.filters)?;
        let wants = |usage: &UsageRecord| {
            let kept_type = matches!(usage.record_type.as_str(), "internal" | "frontend") || usage.shared;
            (rule.all || !kept_type) && usage::matches(&filters, usage)
        };
        let inventory = Inventory::load(home, wants)?;
        let free = if rule.min_free_space > 0 { free_space(home)? } else { 0 };
        let keep = keep_bytes(rule, inventory.total(), free);
        Ok(Self { home, rule, inventory, keep, cleared: Cleared::new(home) })
    }

    /// `false` if told to stop.
    fn run(&mut self, deleted: &mut dyn FnMut(UsageRecord) -> bool) -> Result<bool> {
        loop {
            if self.is_enough() {
                // What others had in common with the deleted is theirs now: it may not be enough after all.
                self.cleared.finish(&mut self.inventory)?;
                if self.is_enough() {
                    return Ok(true);
                }
            }
            let mut candidates = self.candidates();
            let batch = match self.keep {
                // One at a time, since each deletion changes the order of the rest; with very many that would take for ever.
                Some(_) => {
                    rank::least_used(&self.inventory, &mut candidates);
                    1 + candidates.len() / 1000
                }
                None => candidates.len(),
            };
            candidates.truncate(batch);
            let mut any = false;
            for id in &candidates {
                let Some(gone) = self.home.delete(id)? else {
                    self.inventory.keep(id);
                    continue;
                };
                let Some((_, freed)) = self.inventory.remove(id) else { continue };
                any = true;
                self.home.0.deletions.record(freed);
                let usage = self.cleared.add(gone);
                if !deleted(UsageRecord { size: freed, ..usage }) {
                    return Ok(false);
                }
                if self.cleared.is_full() {
                    self.cleared.finish(&mut self.inventory)?;
                }
            }
            if !any {
                return Ok(true);
            }
        }
    }

    fn is_enough(&self) -> bool {
        self.keep.is_some_and(|keep| self.inventory.total() < keep)
    }

    fn candidates(&self) -> Vec<LayerId> {
        let mut list: Vec<(Timestamp, LayerId)> =
            self.inventory.leaves().filter(|(_, item)| !self.is_recent(item)).map(|(id, item)| (item.created, *id)).collect();
        list.sort();
        list.into_iter().map(|(_, id)| id).collect()
    }

    /// What was never used was not recently.
    fn is_recent(&self, item: &Item) -> bool {
        let limit = self.rule.keep_duration;
        !limit.is_zero() && usage::used_within(item.uses.last, limit, SystemTime::now())
    }
}

impl Layers {
    /// The room on the disk if there is next to none, in bytes.
    pub fn short_of_space(&self) -> Option<u64> {
        free_space(self).ok().filter(|free| *free < NEXT_TO_NOTHING)
    }
}

/// Bytes.
const NEXT_TO_NOTHING: u64 = 1 << 20;

pub(crate) fn free_space(home: &Layers) -> Result<u64> {
    Ok(disk(home)?.1)
}

/// Size and free space of the file system.
pub(crate) fn disk(home: &Layers) -> Result<(u64, u64)> {
    let root = home.trees().root();
    let stat = rustix::fs::statvfs(root).map_err(|e| Error::io("measure", root)(e.into()))?;
    Ok((stat.f_blocks.saturating_mul(stat.f_frsize), stat.f_bavail.saturating_mul(stat.f_frsize)))
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
}
