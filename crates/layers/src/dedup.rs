//! Equal files of different layers come to share storage, some time after the layers were made.
//!
//! Which layers may have files in common is told by sketches: a few numbers for each tree, indexed, so that the look at a new tree costs a
//! look at the few that are most like it, however many there are.
use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use kv::Batch;
use snapshot::TreeId;
use tokio::sync::Notify;

use crate::LayerId;
use crate::error::{Error, Result};
use crate::record::{SKETCHED, SKETCHES, TREES};
use crate::store::Layers;

/// Trees that a new one is compared with, the most similar first.
const MOST: usize = 6;
/// What takes less has nothing to share.
const SMALLEST: u64 = 32 << 10;

/// Trees that were not compared with the others yet.
#[derive(Default)]
pub(crate) struct Fresh {
    trees: Mutex<BTreeSet<TreeId>>,
    added: Notify,
}

impl Fresh {
    pub fn add(&self, tree: TreeId) {
        self.trees.lock().expect("no holder of the lock panics").insert(tree);
        self.added.notify_one();
    }

    /// Waits until there are any; for one waiter at a time.
    pub async fn any(&self) {
        while self.trees.lock().expect("no holder of the lock panics").is_empty() {
            self.added.notified().await;
        }
    }

    fn take(&self) -> BTreeSet<TreeId> {
        std::mem::take(&mut *self.trees.lock().expect("no holder of the lock panics"))
    }
}

impl Layers {
    /// Compares trees that are new, and in no use, with those that are like them, and has their equal files share storage. Stops after
    /// about `budget`; says whether anything is left that could be done now. Blocks.
    pub fn deduplicate(&self, budget: Duration) -> Result<bool> {
        let begun = Instant::now();
        let mut fresh = self.0.fresh.take();
        if fresh.is_empty() {
            return Ok(false);
        }
        let in_use = self.in_use();
        let mut later = Vec::new();
        while begun.elapsed() < budget
            && let Some(tree) = fresh.pop_first()
        {
            let layers = self.layers_of(&tree)?;
            if layers.iter().any(|id| in_use.contains(id)) {
                // Somebody may have it mounted.
                later.push(tree);
            } else if !layers.is_empty() {
                match self.deduplicate_tree(&tree) {
                    Ok(()) | Err(Error::Snapshot(snapshot::Error::NoTree { .. })) => {}
                    Err(error) => tracing::warn!(%tree, %error, "could not look for equal files"),
                }
            }
        }
        let more = !fresh.is_empty();
        fresh.into_iter().chain(later).for_each(|tree| self.0.fresh.add(tree));
        Ok(more)
    }

    fn layers_of(&self, tree: &TreeId) -> Result<Vec<LayerId>> {
        let prefix = format!("{tree}/");
        let owners = self.0.db.read()?.prefix(&TREES, prefix.as_bytes())?;
        Ok(owners.iter().filter_map(|(key, ())| key[prefix.len()..].parse().ok()).collect())
    }

    fn deduplicate_tree(&self, tree: &TreeId) -> Result<()> {
        let sketch = self.trees().sketch(tree)?;
        let mut found = snapshot::Deduplicated::default();
        for other in self.similar(tree, &sketch)? {
            match self.trees().deduplicate(tree, &other) {
                Ok(done) => {
                    found.files += done.files;
                    found.bytes += done.bytes;
                }
                Err(snapshot::Error::NoTree { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.remember_sketch(tree, &sketch)?;
        if found.files > 0 {
            tracing::debug!(%tree, files = found.files, bytes = found.bytes, "files that other layers have too share their storage now");
            // Its links are not synced: it is in doubt until the next time.
            self.doubt_tree(tree)?;
            self.0.account.queue([*tree]);
            self.measure_queued()?;
        }
        Ok(())
    }

    /// Trees with the most in common.
    fn similar(&self, tree: &TreeId, sketch: &[u64]) -> Result<Vec<TreeId>> {
        let read = self.0.db.read()?;
        let mut common: HashMap<TreeId, usize> = HashMap::new();
        for number in sketch {
            let prefix = number.to_be_bytes();
            let mut seen = 0;
            read.each(&SKETCHES, &prefix, |key, ()| {
                let other = std::str::from_utf8(&key[prefix.len()..]).ok().and_then(|text| text.parse::<TreeId>().ok());
                if let Some(other) = other.filter(|other| other != tree) {
                    *common.entry(other).or_insert(0) += 1;
                }
                seen += 1;
                if seen < 4 * MOST { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
        }
        let mut list: Vec<TreeId> = common.keys().copied().collect();
        // The oldest of equals: what shares with one tree shares with all that do.
        list.sort_by_key(|other| (std::cmp::Reverse(common[other]), *other));
        list.truncate(MOST);
        Ok(list)
    }

    fn remember_sketch(&self, tree: &TreeId, sketch: &[u64]) -> Result<()> {
        let _live = self.live();
        if self.layers_of(tree)?.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        for number in sketch {
            batch.put(&SKETCHES, sketch_key(*number, tree).as_slice(), &());
        }
        batch.put(&SKETCHED, tree.as_str(), &sketch.iter().flat_map(|number| number.to_be_bytes()).collect());
        self.0.db.submit(batch);
        Ok(())
    }

    /// Adds to `batch`, which erases the last layer of a tree, that it is not to be found any more.
    pub(crate) fn forget_sketch(&self, batch: &mut Batch, tree: &TreeId) -> Result<()> {
        let Some(sketch) = self.0.db.get(&SKETCHED, tree.as_str())? else { return Ok(()) };
        for number in sketch.chunks_exact(8) {
            let number = u64::from_be_bytes(number.try_into().expect("eight bytes"));
            batch.delete(&SKETCHES, sketch_key(number, tree).as_slice());
        }
        batch.delete(&SKETCHED, tree.as_str());
        Ok(())
    }

    /// Whether a tree of so many bytes should be compared with the others.
    pub(crate) fn is_fresh(&self, tree: &TreeId, bytes: u64) -> Result<bool> {
        Ok(bytes >= SMALLEST && self.0.db.get(&SKETCHED, tree.as_str())?.is_none())
    }

    fn doubt_tree(&self, tree: &TreeId) -> Result<()> {
        let mut batch = Batch::new();
        for id in self.layers_of(tree)? {
            self.0.watermark.note(&mut batch, id.as_str().as_bytes());
        }
        self.0.db.submit(batch);
        self.0.upkeep.is_needed();
        Ok(())
    }
}

fn sketch_key(number: u64, tree: &TreeId) -> Vec<u8> {
    [&number.to_be_bytes(), tree.as_str().as_bytes()].concat()
}
