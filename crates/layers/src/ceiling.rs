//! The bound that holds while builds run: who is about to write waits until there is room, and what is worth least goes.
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use fault::{Fault, Kind};
use task::Cancel;
use tokio::sync::watch;

use crate::LayerId;
use crate::error::Result;
use crate::inventory::Inventory;
use crate::prune::Cleared;
use crate::rank::{Queue, worth};
use crate::store::Layers;

/// As long as nobody writes and nothing can be deleted, a waiting step hopes that an ending build lets go of something.
const PATIENCE: Duration = Duration::from_secs(5);
/// Once the ceiling is reached, this part of it is cleared beyond what is needed, so that not every step has to.
const HEADROOM: u64 = 32;

pub(crate) struct Ceiling {
    /// In bytes; 0 is none.
    bytes: AtomicU64,
    /// Holders of a [`Room`].
    writing: AtomicUsize,
    /// What those have written so far, when it was last looked at.
    in_flight: AtomicU64,
    /// Files of records that are gone already, and of the account, are being deleted.
    clearing: AtomicBool,
    /// Counts the times that room was made, or tried to.
    tries: watch::Sender<u64>,
}

impl Default for Ceiling {
    fn default() -> Self {
        let (bytes, writing, in_flight, clearing) = Default::default();
        Self { bytes, writing, in_flight, clearing, tries: watch::Sender::new(0) }
    }
}

/// Permission to write to the store, for as long as one step does.
pub struct Room(Option<Layers>);

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(home) = &self.0 {
            home.0.ceiling.writing.fetch_sub(1, Ordering::AcqRel);
            home.0.account.wake.notify_one();
        }
    }
}

impl Layers {
    /// No more than so many bytes are to be on disk, what one running step writes excepted. 0 is no ceiling.
    pub fn set_ceiling(&self, bytes: u64) {
        self.0.ceiling.bytes.store(bytes, Ordering::Release);
    }

    /// Waits until the store is below its ceiling. Fails if running builds hold all that is there.
    pub async fn room(&self, cancel: &Cancel) -> fault::Result<Room> {
        let ceiling = &self.0.ceiling;
        let bytes = ceiling.bytes.load(Ordering::Acquire);
        if bytes == 0 {
            return Ok(Room(None));
        }
        let mut tries = ceiling.tries.subscribe();
        let mut stuck: Option<Instant> = None;
        loop {
            let is_known = || self.0.account.is_settled() && !ceiling.clearing.load(Ordering::Acquire);
            // Before and after: what is being deleted is off the account already.
            if is_known() && self.used()? + ceiling.in_flight.load(Ordering::Acquire) <= bytes && is_known() {
                ceiling.writing.fetch_add(1, Ordering::AcqRel);
                return Ok(Room(Some(self.clone())));
            }
            self.0.account.wake.notify_one();
            let tried = async { Ok::<_, Fault>(tokio::time::timeout(PATIENCE, tries.changed()).await.is_ok()) };
            cancel.run(tried).await?;
            if ceiling.writing.load(Ordering::Acquire) > 0 || !is_known() {
                stuck = None;
            } else if stuck.get_or_insert_with(Instant::now).elapsed() > PATIENCE && self.used()? > bytes {
                return Err(Fault::new(
                    Kind::Exhausted,
                    format!(
                        "the build cache is at its ceiling of {bytes} bytes, and running builds hold all of it: raise --oci-worker-gc-ceiling or build less at once"
                    ),
                ));
            }
        }
    }

    /// Brings the store below its ceiling, as far as that goes. Blocks. `deleted` hears of each layer that goes.
    pub(crate) fn enforce_ceiling(&self, deleted: &dyn Fn(&LayerId)) -> Result<()> {
        let ceiling = &self.0.ceiling;
        let bytes = ceiling.bytes.load(Ordering::Acquire);
        if bytes == 0 {
            return Ok(());
        }
        self.measure_queued()?;
        let in_flight = self.measure_in_flight()?;
        if self.used()? + in_flight > bytes {
            // What waits for its deletion goes first: it is on the disk and of no use.
            self.trees().empty_trash()?;
            let in_flight = self.measure_in_flight()?;
            if self.used()? + in_flight > bytes {
                ceiling.clearing.store(true, Ordering::Release);
                let outcome = self.clear_down_to((bytes - bytes / HEADROOM).saturating_sub(in_flight), deleted);
                let outcome = outcome.and_then(|()| self.measure_in_flight());
                ceiling.clearing.store(false, Ordering::Release);
                outcome?;
            }
        }
        ceiling.tries.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Whether steps write under a ceiling, which needs watching.
    pub(crate) fn is_watched(&self) -> bool {
        self.0.ceiling.bytes.load(Ordering::Acquire) > 0 && self.0.ceiling.writing.load(Ordering::Acquire) > 0
    }

    pub(crate) fn has_ceiling(&self) -> bool {
        self.ceiling() > 0
    }

    /// In bytes; 0 is none.
    pub(crate) fn ceiling(&self) -> u64 {
        self.0.ceiling.bytes.load(Ordering::Acquire)
    }

    fn measure_in_flight(&self) -> Result<u64> {
        let bytes = self.trees().in_flight()? + self.content().in_flight()?;
        self.0.ceiling.in_flight.store(bytes, Ordering::Release);
        Ok(bytes)
    }

    /// Deletes what is worth least, a slice at a time, until no more than `target` bytes are used.
    fn clear_down_to(&self, target: u64, deleted: &dyn Fn(&LayerId)) -> Result<()> {
        let _turn = self.0.pruning.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.0.deletions.run();
        let now = SystemTime::now();
        let (before, begun) = (self.used()?, Instant::now());
        let mut inventory = Inventory::load(self, |_| true)?;
        let mut queue = Queue::of_leaves(&inventory, now);
        let mut cleared = Cleared::new(self);
        let mut count = 0_usize;
        loop {
            if self.used()? <= target || cleared.is_full() {
                cleared.finish(&mut inventory)?;
                self.trees().empty_trash()?;
                if self.used()? <= target {
                    break;
                }
            }
            let Some(id) = queue.pop() else { break };
            let Some(gone) = self.delete(&id)? else {
                inventory.keep(&id);
                continue;
            };
            deleted(&id);
            cleared.add(gone);
            count += 1;
            let Some((item, freed)) = inventory.remove(&id) else { continue };
            self.0.deletions.record(freed);
            for parent in item.parents.iter().filter(|parent| inventory.is_leaf(parent)) {
                queue.push(*parent, worth(&inventory, parent, now));
            }
        }
        cleared.finish(&mut inventory)?;
        self.trees().empty_trash()?;
        if self.used()? > target {
            self.content().sweep(Duration::from_secs(60))?;
        }
        let after = self.used()?;
        tracing::info!(count, before, after, target, took = ?begun.elapsed(), "made room below the ceiling of the build cache");
        Ok(())
    }
}
