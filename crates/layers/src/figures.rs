//! The store in numbers, for those who watch it.
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Result;
use crate::prune::disk;
use crate::store::Layers;

/// Sizes in bytes; counts since the store was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    pub trees: u64,
    pub blobs: u64,
    /// 0 is none.
    pub ceiling: u64,
    /// Of the file system that the store is on.
    pub disk_size: u64,
    pub disk_free: u64,
    /// How often the rules, a client's or the ceiling had records deleted, or tried to.
    pub prunes: u64,
    pub deleted_records: u64,
    pub deleted_bytes: u64,
}

/// What was deleted so far.
#[derive(Default)]
pub(crate) struct Deletions {
    runs: AtomicU64,
    records: AtomicU64,
    bytes: AtomicU64,
}

impl Deletions {
    pub fn run(&self) {
        self.runs.fetch_add(1, Ordering::Relaxed);
    }

    pub fn record(&self, bytes: u64) {
        self.records.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Layers {
    /// Blocks, but walks no tree.
    pub fn figures(&self) -> Result<Figures> {
        let (disk_size, disk_free) = disk(self)?;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let deletions = &self.0.deletions;
        Ok(Figures {
            trees: self.used_by_trees(),
            blobs: self.content().used()?,
            ceiling: self.ceiling(),
            disk_size,
            disk_free,
            prunes: count(&deletions.runs),
            deleted_records: count(&deletions.records),
            deleted_bytes: count(&deletions.bytes),
        })
    }
}
