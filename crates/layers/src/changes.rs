//! What a tree changes of what lies below it, in the order in which an image layer lists it.
//!
//! Follows BuildKit's overlay differ: the tree itself is walked, not the merged whole, except in directories that hide what is below; there
//! the two sides are compared.
use std::ffi::OsString;
use std::fs;
use std::path::Path;

use snapshot::{Entry, Follow, View};
use task::Cancel;

use crate::error::{Error, Result};
use crate::opaque::mark;
use crate::same::{self, Item};

pub(crate) enum Change {
    Deleted,
    /// Added or modified.
    Written(Item),
    /// Not changed, but it has other names, one of which may be.
    Kept(Item),
}

/// Calls `visit` with each change and its path relative to the root.
pub(crate) fn changes(tree: &Path, below: &View, cancel: &Cancel, visit: &mut dyn FnMut(&Path, Change) -> Result<()>) -> Result<()> {
    Walk { tree, below, cancel, visit }.directory(Path::new(""), true)
}

struct Walk<'a> {
    tree: &'a Path,
    below: &'a View,
    cancel: &'a Cancel,
    visit: &'a mut dyn FnMut(&Path, Change) -> Result<()>,
}

impl Walk<'_> {
    /// `covers`: there may be something below.
    fn directory(&mut self, path: &Path, covers: bool) -> Result<()> {
        self.cancel.check()?;
        for name in names(&self.tree.join(path))? {
            self.entry(&path.join(name), covers)?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, covers: bool) -> Result<()> {
        let item = Item::at(&self.tree.join(path))?;
        let before = if covers { self.below.lookup(path, Follow::No)? } else { None };
        if item.is_whiteout() {
            // Of what is not there nothing has to be deleted.
            return if before.is_some() { (self.visit)(path, Change::Deleted) } else { Ok(()) };
        }
        let unchanged = match &before {
            Some(before) => same::unchanged(&before.into(), &item)?,
            None => false,
        };
        let is_dir = item.is_dir();
        let full = item.path.clone();
        // Directories that were only copied up because of something in them are not changes.
        if !unchanged {
            (self.visit)(path, Change::Written(item))?;
        }
        match (is_dir, &before) {
            (false, _) => Ok(()),
            (true, Some(before)) if mark(&full)?.is_some() => self.compare(path, before.metadata().is_dir()),
            // A link may lead to a directory that has something of these names.
            (true, Some(before)) => self.directory(path, before.metadata().is_dir() || before.metadata().is_symlink()),
            (true, None) => self.directory(path, false),
        }
    }

    /// A directory that hides what is below: what it lacks is deleted.
    fn compare(&mut self, path: &Path, covers: bool) -> Result<()> {
        self.cancel.check()?;
        let old = if covers { self.below.read_dir(path)? } else { Vec::new() };
        let mut old = old.iter().peekable();
        for name in names(&self.tree.join(path))? {
            let path = path.join(&name);
            let item = Item::at(&self.tree.join(&path))?;
            if item.is_whiteout() {
                continue;
            }
            while let Some(gone) = old.next_if(|entry| *entry.name() < *name) {
                self.deleted(gone)?;
            }
            let before = old.next_if(|entry| *entry.name() == *name);
            self.compared(&path, before, item)?;
        }
        old.try_for_each(|gone| self.deleted(gone))
    }

    fn compared(&mut self, path: &Path, before: Option<&Entry>, item: Item) -> Result<()> {
        let is_dir = item.is_dir();
        let unchanged = match before {
            Some(before) => same::unchanged(&before.into(), &item)?,
            None => false,
        };
        match (unchanged, item.is_linked()) {
            (false, _) => (self.visit)(path, Change::Written(item))?,
            (true, true) => (self.visit)(path, Change::Kept(item))?,
            (true, false) => {}
        }
        if is_dir { self.compare(path, before.is_some_and(|entry| entry.metadata().is_dir())) } else { Ok(()) }
    }

    fn deleted(&mut self, entry: &Entry) -> Result<()> {
        let path = entry.path().strip_prefix("/").unwrap_or(entry.path());
        (self.visit)(path, Change::Deleted)
    }
}

/// Sorted by bytes.
fn names(dir: &Path) -> Result<Vec<OsString>> {
    let failed = || Error::io("read directory", dir);
    let entries = fs::read_dir(dir).map_err(failed())?;
    let mut names: Vec<OsString> = entries.map(|entry| entry.map(|e| e.file_name()).map_err(failed())).collect::<Result<_>>()?;
    names.sort_unstable();
    Ok(names)
}
