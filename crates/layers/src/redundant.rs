//! What a step left in its tree without changing anything: directories that were copied up for something that is gone again, files that were
//! moved away and back, deletions of what is not below.
//!
//! In its own stack none of it can be told from what is below. In a merge it would show.
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use snapshot::{Entry, Follow, TreeId, View};

use crate::error::{Error, Result};
use crate::opaque::mark;
use crate::same::{self, Item};
use crate::store::Layers;

/// Removes it. Returns whether directories are left that only have another time: they count as unchanged too, but in place the time shows.
pub(crate) fn remove(home: &Layers, draft: &snapshot::Draft, stack: &[TreeId]) -> Result<bool> {
    if stack.is_empty() {
        return Ok(false);
    }
    let (below, whole) = (home.trees().view(stack)?, home.trees().view_with(stack, draft)?);
    let mut walk = Walk { root: draft.fs(), below, whole, times_only: false };
    walk.directory(Path::new(""))?;
    Ok(walk.times_only)
}

struct Walk {
    root: std::path::PathBuf,
    below: View,
    /// The tree on top of what is below.
    whole: View,
    times_only: bool,
}

impl Walk {
    /// There is a directory at `path` on both sides. Returns whether the tree's own is empty now.
    fn directory(&mut self, path: &Path) -> Result<bool> {
        let own = self.root.join(path);
        let before = Item::at(&own)?;
        let (mut left, mut removed) = (false, false);
        for entry in std::fs::read_dir(&own).map_err(Error::io("read directory", &own))? {
            let name = entry.map_err(Error::io("read directory", &own))?.file_name();
            match self.is_redundant(&path.join(name))? {
                true => removed = true,
                false => left = true,
            }
        }
        if removed {
            let time = |(seconds, nanos): (i64, u32)| Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
            let times = Timestamps { last_access: time(before.mtime), last_modification: time(before.mtime) };
            rustix::fs::utimensat(CWD, &own, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| Error::io("set times of", &own)(e.into()))?;
        }
        Ok(!left)
    }

    /// Looks at one entry, and removes it if it is.
    fn is_redundant(&mut self, path: &Path) -> Result<bool> {
        let own = self.root.join(path);
        let item = Item::at(&own)?;
        let before = self.below.lookup(path, Follow::No)?;
        let failed = || Error::io("remove", &own);
        if item.is_whiteout() {
            return match before {
                Some(_) => Ok(false),
                None => std::fs::remove_file(&own).map(|()| true).map_err(failed()),
            };
        }
        let Some(before) = before else { return Ok(false) };
        if !item.is_dir() {
            let unchanged = !item.is_linked() && !before.metadata().is_dir() && self.looks_the_same(path, &before, &item)?;
            return if unchanged { std::fs::remove_file(&own).map(|()| true).map_err(failed()) } else { Ok(false) };
        }
        if !before.metadata().is_dir() || mark(&own)?.is_some() || !self.directory(path)? || !self.looks_the_same(path, &before, &item)? {
            return Ok(false);
        }
        let time = before.metadata().mtime;
        if item.mtime != (time.seconds, time.nanos) {
            self.times_only = true;
            return Ok(false);
        }
        std::fs::remove_dir(&own).map(|()| true).map_err(failed())
    }

    fn looks_the_same(&self, path: &Path, before: &Entry, item: &Item) -> Result<bool> {
        Ok(same::unchanged(&before.into(), item)? && self.below.xattrs(path)? == self.whole.xattrs(path)?)
    }
}
