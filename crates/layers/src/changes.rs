//! What a tree changes of what lies below it, in the order in which an image layer lists it.
//!
//! Follows BuildKit's overlay differ: the tree itself is walked, not the merged whole, except in directories that hide what is below; there
//! the two sides are compared. A tree that was itself made by comparing has files that are not changed only as further names of some that are.
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Dir, Mode, OFlags};
use rustix::io::Errno;
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

/// Calls `visit` with each change and its path relative to the root. Is the tree one that was made by comparing (`compared`), unchanged files
/// with several names are told of, too.
pub(crate) fn changes(
    tree: &Path,
    below: &View,
    compared: bool,
    cancel: &Cancel,
    visit: &mut dyn FnMut(&Path, Change) -> Result<()>,
) -> Result<()> {
    Walk { tree, below, compared, cancel, visit }.directory(Path::new(""), true)
}

struct Walk<'a> {
    tree: &'a Path,
    below: &'a View,
    compared: bool,
    cancel: &'a Cancel,
    visit: &'a mut dyn FnMut(&Path, Change) -> Result<()>,
}

impl Walk<'_> {
    /// `covers`: there may be something below.
    fn directory(&mut self, path: &Path, covers: bool) -> Result<()> {
        self.cancel.check()?;
        let mut directory = Directory::open(self.tree.join(path))?;
        for name in directory.names()? {
            let item = directory.item(&name)?;
            self.entry(&path.join(name), item, covers)?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, item: Item, covers: bool) -> Result<()> {
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
        match (unchanged, self.compared && item.is_linked()) {
            (false, _) => (self.visit)(path, Change::Written(item))?,
            (true, true) => (self.visit)(path, Change::Kept(item))?,
            (true, false) => {}
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
        let mut directory = Directory::open(self.tree.join(path))?;
        for name in directory.names()? {
            let item = directory.item(&name)?;
            if item.is_whiteout() {
                continue;
            }
            while let Some(gone) = old.next_if(|entry| *entry.name() < *name) {
                self.deleted(gone)?;
            }
            let before = old.next_if(|entry| *entry.name() == *name);
            self.compared(&path.join(name), before, item)?;
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

/// A directory of the tree. It is open only while its files are looked at, so that deep trees need no more open files than flat ones.
struct Directory {
    path: PathBuf,
    open: Option<Arc<OwnedFd>>,
}

impl Directory {
    fn open(path: PathBuf) -> Result<Self> {
        let mut directory = Self { path, open: None };
        directory.handle()?;
        Ok(directory)
    }

    fn handle(&mut self) -> Result<&Arc<OwnedFd>> {
        if self.open.is_none() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let opened = rustix::fs::open(&self.path, flags, Mode::empty());
            self.open = Some(Arc::new(opened.map_err(|e| self.failed(e))?));
        }
        Ok(self.open.as_ref().expect("just opened"))
    }

    /// Sorted by bytes.
    fn names(&mut self) -> Result<Vec<OsString>> {
        let entries = Dir::read_from(self.handle()?).map_err(|e| self.failed(e))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| self.failed(e))?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                names.push(OsStr::from_bytes(name).to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn item(&mut self, name: &OsStr) -> Result<Item> {
        let path = self.path.join(name);
        let item = Item::within(self.handle()?, path)?;
        if item.is_dir() {
            self.open = None;
        }
        Ok(item)
    }

    fn failed(&self, error: Errno) -> Error {
        Error::io("read directory", &self.path)(error.into())
    }
}
