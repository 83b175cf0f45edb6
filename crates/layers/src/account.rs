//! What the layers take on disk, known at any time: each tree is measured right after it was made, or changed hands.
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use kv::{Batch, Json};
use snapshot::TreeId;
use tokio::sync::Notify;

use crate::error::Result;
use crate::record::{LOANS, SIZES, Size, TREES};
use crate::store::{Layers, pair};

/// Trees measured before their sizes are written down together.
const BATCH: usize = 128;

#[derive(Default)]
pub(crate) struct Account {
    /// Bytes of all measured trees, once [`Layers::open_account`] ran; before that, what changed since the start.
    trees: AtomicI64,
    queue: Mutex<BTreeSet<TreeId>>,
    /// Of the queue, being measured.
    under_way: AtomicU64,
    pub wake: Notify,
}

impl Account {
    /// Has trees measured, again if they were.
    pub fn queue(&self, trees: impl IntoIterator<Item = TreeId>) {
        let mut queue = self.queue.lock().expect("no holder of the lock panics");
        let before = queue.len();
        queue.extend(trees);
        if queue.len() > before {
            self.wake.notify_one();
        }
    }

    /// Nothing waits to be measured.
    pub fn is_settled(&self) -> bool {
        let queue = self.queue.lock().expect("no holder of the lock panics");
        queue.is_empty() && self.under_way.load(Ordering::Acquire) == 0
    }

    fn take(&self) -> Vec<TreeId> {
        let mut queue = self.queue.lock().expect("no holder of the lock panics");
        let mut taken = Vec::new();
        while taken.len() < BATCH
            && let Some(tree) = queue.pop_first()
        {
            taken.push(tree);
        }
        self.under_way.fetch_add(taken.len() as u64, Ordering::AcqRel);
        taken
    }

    fn add(&self, bytes: i64) {
        self.trees.fetch_add(bytes, Ordering::AcqRel);
    }
}

impl Layers {
    /// Bytes on disk of all trees and blobs. What was just written may be missing for the moment that measuring it takes.
    pub fn used(&self) -> Result<u64> {
        Ok(self.used_by_trees() + self.content().used()?)
    }

    pub(crate) fn used_by_trees(&self) -> u64 {
        u64::try_from(self.0.account.trees.load(Ordering::Acquire)).unwrap_or(0)
    }

    /// Adds up what earlier processes measured, and has the rest measured. To be called once.
    pub fn open_account(&self) -> Result<()> {
        let (read, during) = {
            let _live = self.live();
            (self.0.db.read()?, self.0.account.trees.load(Ordering::Acquire))
        };
        let (mut sum, mut known) = (0, BTreeSet::new());
        read.each(&SIZES, b"", |tree, Json(size)| {
            sum += i64::try_from(size.bytes).unwrap_or(0);
            if let Ok(tree) = tree.parse::<TreeId>() {
                known.insert(tree);
                if self.is_fresh(&tree, size.bytes).unwrap_or(false) {
                    self.0.fresh.add(tree);
                }
            }
            ControlFlow::Continue(())
        })?;
        // What was measured since the start is among them.
        self.0.account.add(sum - during);
        let mut unknown = BTreeSet::new();
        read.each(&TREES, b"", |key, ()| {
            let tree = key.split('/').next().and_then(|tree| tree.parse::<TreeId>().ok());
            unknown.extend(tree.filter(|tree| !known.contains(tree)));
            ControlFlow::Continue(())
        })?;
        self.0.account.queue(unknown);
        Ok(())
    }

    /// Measures what is queued. Blocks.
    pub fn measure_queued(&self) -> Result<usize> {
        let mut done = 0;
        loop {
            let trees = self.0.account.take();
            if trees.is_empty() {
                return Ok(done);
            }
            let outcome = self.measure_all(&trees);
            self.0.account.under_way.fetch_sub(trees.len() as u64, Ordering::AcqRel);
            outcome?;
            done += trees.len();
        }
    }

    /// The size of a tree, measured now if it never was.
    pub(crate) fn size_of_tree(&self, tree: &TreeId) -> Result<Size> {
        if let Some(Json(size)) = self.0.db.get(&SIZES, tree.as_str())? {
            return Ok(size);
        }
        Ok(self.measure_all(std::slice::from_ref(tree))?.pop().unwrap_or_default())
    }

    fn measure_all(&self, trees: &[TreeId]) -> Result<Vec<Size>> {
        let mut measured = Vec::new();
        for tree in trees {
            match self.trees().usage(tree).and_then(|usage| Ok((usage, self.trees().owners(tree)?))) {
                Ok((usage, owners)) => measured.push((tree, Size { bytes: usage.bytes, shared: usage.shared }, owners)),
                Err(snapshot::Error::NoTree { .. }) => {}
                Err(error) => tracing::warn!(%tree, %error, "a tree cannot be measured"),
            }
        }
        // Under this lock no record goes: a tree that has an owner now keeps it until its size is written.
        let _live = self.live();
        let read = self.0.db.read()?;
        let mut batch = Batch::new();
        for (tree, size, owners) in &measured {
            if read.prefix(&TREES, format!("{tree}/").as_bytes())?.is_empty() {
                continue;
            }
            let before = read.get(&SIZES, tree.as_str())?.map_or(Size::default(), |Json(size)| size);
            self.0.account.add(i64::try_from(size.bytes).unwrap_or(0) - i64::try_from(before.bytes).unwrap_or(0));
            batch.put(&SIZES, tree.as_str(), &Json(*size));
            if self.is_fresh(tree, size.bytes)? {
                self.0.fresh.add(**tree);
            }
            for owner in owners {
                batch.put(&LOANS, pair(owner, tree).as_str(), &());
            }
        }
        self.0.db.submit(batch);
        Ok(measured.into_iter().map(|(_, size, _)| size).collect())
    }

    /// Adds to `batch`, which erases the last layer of a tree, that its bytes are gone. What it lent to others, or borrowed with them from a
    /// tree that is gone, is theirs from now on: they have to be measured again once the tree is removed.
    pub(crate) fn write_off(&self, batch: &mut Batch, tree: &TreeId) -> Result<()> {
        let read = self.0.db.read()?;
        for outdated in self.heirs(tree)?.iter().chain([tree]) {
            if let Some(Json(size)) = read.get(&SIZES, outdated.as_str())? {
                self.0.account.add(-i64::try_from(size.bytes).unwrap_or(0));
                batch.delete(&SIZES, outdated.as_str());
            }
        }
        self.forget_sketch(batch, tree)?;
        let owners = self.trees().owners(tree).unwrap_or_default();
        for owner in &owners {
            batch.delete(&LOANS, pair(owner, tree).as_str());
        }
        Ok(())
    }

    /// The trees whose share of common files grows when `tree` is removed; to be asked before.
    pub(crate) fn heirs(&self, tree: &TreeId) -> Result<Vec<TreeId>> {
        let mut sources = vec![*tree];
        sources.extend(self.trees().owners(tree).unwrap_or_default().into_iter().filter(|owner| !self.trees().contains(owner)));
        let read = self.0.db.read()?;
        let mut heirs = Vec::new();
        for source in sources {
            let prefix = format!("{source}/");
            let loans = read.prefix(&LOANS, prefix.as_bytes())?;
            heirs.extend(loans.iter().filter_map(|(key, ())| key[prefix.len()..].parse::<TreeId>().ok()).filter(|heir| heir != tree));
        }
        Ok(heirs)
    }
}
