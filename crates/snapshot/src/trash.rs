//! What was removed but is not deleted yet. Throwing is one rename; emptying is for a background thread.
//!
//! Large trees are deleted in two steps: their files at once, their directories some minutes later. For up to six minutes after a file was
//! deleted, ext4 avoids its inode, and where many were, each new file costs a look at all of them. New trees go where there are few
//! directories; the empty ones that stay keep them away from there.
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::{Error, Result, TreeId};

pub(crate) struct Trash {
    path: PathBuf,
    wake: Option<Box<dyn Fn() + Send + Sync>>,
    emptying: AtomicBool,
}

impl std::fmt::Debug for Trash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trash").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Trash {
    pub(crate) fn new(path: PathBuf, wake: Option<Box<dyn Fn() + Send + Sync>>) -> Self {
        Self { path, wake, emptying: AtomicBool::new(false) }
    }

    /// Moves `victim` out of the way, whatever its old name.
    pub(crate) fn throw(&self, victim: &Path) -> Result<()> {
        fs::rename(victim, self.path.join(TreeId::fresh().as_str())).map_err(Error::io("remove", victim))?;
        if let Some(wake) = &self.wake {
            wake();
        }
        Ok(())
    }

    /// Deletes what is in the trash now and returns how many trees that was; 0 if another thread is at it.
    pub(crate) fn empty(&self) -> Result<usize> {
        if self.emptying.swap(true, Ordering::Acquire) {
            return Ok(0);
        }
        let outcome = self.empty_alone();
        self.emptying.store(false, Ordering::Release);
        outcome
    }

    fn empty_alone(&self) -> Result<usize> {
        let mut count = 0;
        for entry in fs::read_dir(&self.path).map_err(Error::io("read", &self.path))? {
            let path = entry.map_err(Error::io("read", &self.path))?.path();
            if path.extension().is_some_and(|extension| extension == HUSK) {
                if is_old(&path) {
                    fs::remove_dir_all(&path).map_err(Error::io("delete", &path))?;
                }
                continue;
            }
            if hollow(&path)? < MANY {
                fs::remove_dir_all(&path).map_err(Error::io("delete", &path))?;
            } else {
                let husk = path.with_extension(HUSK);
                fs::write(path.join(SINCE), "").and_then(|()| fs::rename(&path, &husk)).map_err(Error::io("delete", &path))?;
            }
            count += 1;
        }
        Ok(count)
    }
}

/// The extension of a tree whose files are deleted.
const HUSK: &str = "husk";
/// In a husk: its time is when that was.
const SINCE: &str = ".since";
/// From this many files on a tree is deleted in two steps.
const MANY: usize = 1000;
/// How long ext4 remembers.
const RECENT: Duration = Duration::from_secs(6 * 60);

fn is_old(husk: &Path) -> bool {
    let since = fs::metadata(husk.join(SINCE)).and_then(|metadata| metadata.modified());
    since.is_err() || since.is_ok_and(|since| since.elapsed().map_or(true, |age| age > RECENT))
}

/// Deletes all that is no directory; returns how many that was.
fn hollow(root: &Path) -> Result<usize> {
    let mut count = 0;
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).map_err(Error::io("delete", &dir))? {
            let entry = entry.map_err(Error::io("delete", &dir))?;
            let path = entry.path();
            if entry.file_type().map_err(Error::io("delete", &path))?.is_dir() {
                pending.push(path);
            } else {
                fs::remove_file(&path).map_err(Error::io("delete", &path))?;
                count += 1;
            }
        }
    }
    Ok(count)
}
