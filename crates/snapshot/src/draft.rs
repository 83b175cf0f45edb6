use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::layer::{LINKED, Layer};
use crate::links::Links;
use crate::loans::{Loan, name_of};
use crate::store::Store;
use crate::{Error, Result, TreeId};

/// A tree that can still be written: `fs/` is its content, `work/` is overlay's. Dropped uncommitted and unkept, it goes to the trash.
#[derive(Debug)]
pub struct Draft {
    store: Store,
    id: TreeId,
    path: PathBuf,
    /// Where dropping leaves it: on disk (a cell), or in the trash.
    kept: bool,
    done: bool,
    links: Links,
    /// Whether the root has its final metadata: that of the stack it was first used on.
    rooted: AtomicBool,
}

impl Draft {
    pub(crate) fn new(store: Store, id: TreeId, path: PathBuf, kept: bool) -> Self {
        Self { store, id, path, kept, done: false, links: Links::default(), rooted: AtomicBool::new(kept) }
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

    /// The root of an overlay is the root of its upper directory: at its first use over a stack, a draft takes over what the root below has.
    pub(crate) fn adopt_root(&self, lowers: &[Arc<Layer>]) -> Result<()> {
        if self.rooted.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let Some(top) = lowers.first() else { return Ok(()) };
        crate::editor::copy_root(top, &self.fs()).map_err(Error::os("prepare", &self.path))
    }

    /// Gives the draft inodes of its own for all that it shares with other trees, before something other than an editor may write to it.
    pub(crate) fn part(&self) -> Result<()> {
        let mark = self.path.join(LINKED);
        if self.links.is_empty() && !(self.kept && mark.exists()) {
            return Ok(());
        }
        crate::editor::part(&self.fs()).map_err(Error::os("copy linked files of", &self.path))?;
        match fs::remove_file(&mark) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", &mark)(error)),
            _ => Ok(()),
        }
    }

    /// Written down before the draft outlives this process.
    pub(crate) fn mark_links(&self) -> Result<()> {
        if self.links.is_empty() {
            return Ok(());
        }
        let mark = self.path.join(LINKED);
        fs::write(&mark, "").map_err(Error::io("write", &mark))
    }

    /// Tells of files, by inode and relative path, that were hard-linked into [`Draft::fs`] from the committed tree `from`, where they have the same paths:
    /// without it they would be counted here as well as there.
    pub fn took_over<'a>(&mut self, from: &TreeId, files: impl IntoIterator<Item = (u64, &'a [u8])>) -> Result<()> {
        let fs = self.fs();
        let device = fs::metadata(&fs).map_err(Error::io("read", &fs))?.dev();
        let origins = self.store.loans(*from, &self.store.files(from)?)?;
        for (ino, path) in files {
            let name = name_of(path);
            let (owner, owner_name) = origins.get(ino).map_or((from.number(), name), |loan| (loan.owner, loan.owner_name));
            self.links.note_drawn(device, Loan { ino, owner, owner_name, name });
        }
        Ok(())
    }

    pub(crate) fn links(&self) -> &Links {
        &self.links
    }

    pub(crate) fn links_mut(&mut self) -> &mut Links {
        &mut self.links
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
