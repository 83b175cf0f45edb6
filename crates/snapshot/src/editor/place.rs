//! Putting files of other trees into the draft.
use std::path::Path;
use std::sync::atomic::Ordering;

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::inode::{Copied, Inode};
use super::{Attributes, Editor, Spot};
use crate::loans::{Below, Loan, name_of};
use crate::metadata::Entry;
use crate::{PathError, rel};

/// How a file came into the draft.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// One inode in both trees.
    Linked,
    /// A copy that shares its blocks.
    Cloned,
    Copied,
}

impl Editor<'_> {
    /// Puts `entry` (no directory), with its metadata as it is, at `path`, where nothing may be: by a hard link, unless the inode is below
    /// this draft under another name (two names in one stack would have one inode number, which tools take for one file), or in the draft
    /// already (the layer would show a hard link that was not asked for), or the disk refuses; else by a copy.
    pub fn link_file(&mut self, entry: &Entry, path: impl AsRef<Path>) -> Result<Placed, PathError> {
        let path = path.as_ref();
        let spot = self.free_spot("link", path)?;
        if self.may_link(entry) {
            let loan = self.loan(entry, &spot).map_err(|error| PathError {
                action: "link",
                path: path.to_owned(),
                source: std::io::Error::other(error),
            })?;
            if let Some(loan) = loan
                && self.link_at(entry, &spot, loan).map_err(PathError::at("link", path))?
            {
                return Ok(Placed::Linked);
            }
        }
        self.copy_at(entry, &spot, &Attributes::default()).map_err(PathError::at("copy", path))
    }

    /// As [`Editor::link_file`], but always a copy with an inode of its own and with some of its metadata changed.
    pub fn copy_file(&mut self, entry: &Entry, path: impl AsRef<Path>, change: &Attributes) -> Result<Placed, PathError> {
        let path = path.as_ref();
        let spot = self.free_spot("copy", path)?;
        self.copy_at(entry, &spot, change).map_err(PathError::at("copy", path))
    }

    fn may_link(&self, entry: &Entry) -> bool {
        if entry.metadata.is_dir() || self.draft.links().has_linked(&entry.metadata) {
            return false;
        }
        // Of mutable trees only the kept ones: they know how to part with a linked file.
        if !entry.layer.committed && !entry.layer.is_cell() {
            return false;
        }
        true
    }

    /// What linking it would be; `None` if this would give a file of the stack below a second name.
    fn loan(&mut self, entry: &Entry, spot: &Spot) -> crate::Result<Option<Loan>> {
        let store = self.draft.store().clone();
        let id = entry.layer.id;
        let origin = if entry.layer.committed { store.loans(id, &entry.layer.fs)?.get(entry.metadata.ino).copied() } else { None };
        let source_name = name_of(entry.rel());
        let (owner, owner_name) = origin.map_or((id.number(), source_name), |loan| (loan.owner, loan.owner_name));
        let loan = Loan { ino: entry.metadata.ino, owner, owner_name, name: name_of(&spot.path()) };
        if self.below.is_none() {
            let lowers = self.merged().layers.iter().skip(1);
            let loans: Vec<_> = lowers.map(|layer| Ok((layer.id, store.loans(layer.id, &layer.fs)?))).collect::<crate::Result<_>>()?;
            self.below = Some(Below::new(loans.into_iter()));
        }
        let below = self.below.as_ref().expect("set above");
        Ok((!below.conflicts(&loan, id, source_name)).then_some(loan))
    }

    /// False if this file or this disk takes no further link.
    fn link_at(&mut self, entry: &Entry, spot: &Spot, loan: Loan) -> Result<bool, Errno> {
        let upper = self.upper(&spot.dir)?;
        let (dir, name) = rel::split(entry.rel()).expect("no directory is linked");
        self.open_source(entry, dir)?;
        let (.., source) = self.source.as_ref().expect("opened above");
        if !entry.layer.committed && !entry.layer.marked.load(Ordering::Relaxed) {
            entry.layer.mark_linked()?;
        }
        let make = || rustix::fs::linkat(source, name, &upper, spot.name.as_slice(), AtFlags::empty());
        match self.make_in(&upper, &spot.name, make) {
            Ok(()) => {
                self.draft.links_mut().note_linked(&entry.metadata, loan);
                Ok(true)
            }
            Err(Errno::MLINK | Errno::XDEV | Errno::PERM | Errno::ACCESS) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    fn copy_at(&mut self, entry: &Entry, spot: &Spot, change: &Attributes) -> Result<Placed, Errno> {
        if entry.metadata.is_dir() {
            return Err(Errno::ISDIR);
        }
        let upper = self.upper(&spot.dir)?;
        let (dir, name) = rel::split(entry.rel()).expect("no directory is copied");
        self.open_source(entry, dir)?;
        let (.., source) = self.source.as_ref().expect("opened above");
        let mut inode = Inode::load(source, name, entry.metadata)?;
        change.apply(&mut inode.metadata);
        match self.make_in(&upper, &spot.name, || inode.store(&upper, &spot.name))? {
            Copied::Reflink => Ok(Placed::Cloned),
            Copied::Bytes => Ok(Placed::Copied),
        }
    }

    fn open_source(&mut self, entry: &Entry, dir: &[u8]) -> Result<(), Errno> {
        let known = self.source.as_ref().is_some_and(|(layer, path, _)| layer.id == entry.layer.id && path == dir);
        if !known {
            self.source = Some((entry.layer.clone(), dir.to_vec(), entry.layer.open_dir(dir)?));
        }
        Ok(())
    }
}
