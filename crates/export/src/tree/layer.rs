//! The merged files of a layer and all below it.
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use fault::{Fault, Kind, Result};
use snapshot::{Follow, PathError, TreeId, View};

use super::{Entry, REGULAR, SOCKET, TYPE, Tree};

pub struct LayerTree {
    view: View,
    mtime: Option<i64>,
}

impl LayerTree {
    /// With `epoch`, in seconds since 1970, all times are that.
    pub fn new(view: View, epoch: Option<i64>) -> Self {
        Self { view, mtime: epoch.map(|seconds| seconds.saturating_mul(1_000_000_000)) }
    }

    fn entry(&self, found: &snapshot::Entry, links: &mut HashMap<(TreeId, u64), PathBuf>) -> Result<Entry> {
        let metadata = *found.metadata();
        let path = found.path().strip_prefix("/").unwrap_or(found.path()).to_owned();
        let mut entry = Entry {
            mode: metadata.mode,
            uid: metadata.uid,
            gid: metadata.gid,
            size: metadata.size,
            mtime: self.mtime.unwrap_or_else(|| metadata.mtime.unix_nanos()),
            device: (0, 0),
            link: OsString::new(),
            xattrs: found.xattrs()?,
            path,
        };
        entry.xattrs.retain(|key, _| !key.as_bytes().starts_with(b"com.apple."));
        if metadata.is_dir() {
            entry.size = 0;
            return Ok(entry);
        }
        match metadata.mode & TYPE {
            SOCKET => (entry.mode, entry.size) = (REGULAR | metadata.mode & !TYPE, 0),
            super::CHAR_DEVICE | super::BLOCK_DEVICE => entry.device = metadata.device(),
            super::SYMLINK => entry.link = self.view.read_link(found.path()).map_err(failed)?.into_os_string(),
            _ => {}
        }
        // Trees share files among each other by links that nobody made inside of them.
        if metadata.nlink > 1 && !metadata.is_symlink() {
            let first = links.entry((found.tree(), metadata.ino)).or_insert_with(|| entry.path.clone());
            if *first != entry.path {
                entry.link = first.clone().into_os_string();
            }
        }
        Ok(entry)
    }
}

impl Tree for LayerTree {
    fn walk(&self, visit: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
        let mut links = HashMap::new();
        let outcome = self.view.walk("/", &mut |found| {
            let entry = self.entry(found, &mut links).map_err(Stop::Fault)?;
            visit(entry).map_err(Stop::Fault)?;
            Ok(true)
        });
        outcome.map_err(|stop| match stop {
            Stop::Fault(fault) => fault,
            Stop::Path(error) => failed(error),
        })
    }

    fn open(&self, path: &Path) -> Result<Box<dyn Read + Send>> {
        if let Some(file) = self.view.open_known(path) {
            return Ok(Box::new(file));
        }
        let entry = self.view.require(path, Follow::No).map_err(failed)?;
        if entry.metadata().mode & TYPE == SOCKET {
            return Ok(Box::new(io::empty()));
        }
        let file: File = entry.open()?;
        Ok(Box::new(file))
    }
}

enum Stop {
    Fault(Fault),
    Path(PathError),
}

impl From<PathError> for Stop {
    fn from(error: PathError) -> Self {
        Self::Path(error)
    }
}

fn failed(error: PathError) -> Fault {
    Fault::of(Kind::of_io(&error.source), error)
}

/// The files of a result without layers.
pub struct Empty;

impl Tree for Empty {
    fn walk(&self, _: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
        Ok(())
    }

    fn open(&self, path: &Path) -> Result<Box<dyn Read + Send>> {
        Err(Fault::new(Kind::NotFound, format!("{}: no such file", path.display())))
    }
}
