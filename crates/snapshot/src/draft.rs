use std::path::{Path, PathBuf};

use crate::store::Store;
use crate::{Result, TreeId};

/// A tree that can still be written: `fs/` is its content, `work/` is overlay's. Dropped uncommitted and unkept, it goes to the trash.
#[derive(Debug)]
pub struct Draft {
    store: Store,
    id: TreeId,
    path: PathBuf,
    /// Where dropping leaves it: on disk (a cell), or in the trash.
    kept: bool,
    done: bool,
}

impl Draft {
    pub(crate) fn new(store: Store, id: TreeId, path: PathBuf, kept: bool) -> Self {
        Self { store, id, path, kept, done: false }
    }

    /// The id that the tree will have once committed.
    pub fn id(&self) -> TreeId {
        self.id
    }

    /// The directory with the content (an overlay upper directory). Only for mounting and for code that itself keeps the rules of diff trees.
    pub fn fs(&self) -> PathBuf {
        self.path.join("fs")
    }

    pub fn is_kept(&self) -> bool {
        self.kept
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Nothing is left for `drop` to do.
    pub(crate) fn disarm(mut self) {
        self.done = true;
    }

    /// Removes it now, also where it was kept.
    pub fn discard(self) -> Result<()> {
        let outcome = self.store.trash().throw(&self.path);
        self.disarm();
        outcome
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.done || self.kept {
            return;
        }
        if let Err(error) = self.store.trash().throw(&self.path) {
            tracing::warn!(draft = %self.id, %error, "an abandoned draft stays on disk until the next start");
        }
    }
}
