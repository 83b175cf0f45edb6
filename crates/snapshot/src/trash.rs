//! What was removed but is not deleted yet. Throwing is one rename; emptying is for a background thread.
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

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
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotADirectory => fs::remove_file(&path),
                other => other,
            }
            .map_err(Error::io("delete", &path))?;
            count += 1;
        }
        Ok(count)
    }
}
