//! Writing into a draft through the merged view of what lies below it.
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, Timespec, Timestamps};
use rustix::io::Errno;

use crate::layer::{self, Layer};
use crate::loans::Below;
use crate::merged::{Dir, Merged, Node, Resolved};
use crate::metadata::{Follow, Metadata};
use crate::{Draft, PathError, View, rel};

mod attributes;
mod create;
mod inode;
mod part;
mod place;
mod remove;

pub use attributes::Attributes;
pub(crate) use part::{copy_file, copy_root, dress_dir, part, separate};
pub use place::Placed;

/// A stack with a draft on top: reads as a [`View`] (to which it dereferences), writes go to the draft only.
///
/// Paths as in [`View`]. Writers follow symbolic links in the parents of a path, never in its last place; [`View::resolve`] first where
/// that is wanted. Parents that only exist in lower trees are copied up, files too before their content or metadata changes, and so is a
/// draft's own file whose inode another tree holds.
pub struct Editor<'a> {
    view: View,
    draft: &'a mut Draft,
    /// The directory that [`Editor::link_file`] linked from last.
    source: Option<(Arc<Layer>, Vec<u8>, OwnedFd)>,
    /// Read when the first file is linked.
    below: Option<Below>,
}

impl Deref for Editor<'_> {
    type Target = View;

    fn deref(&self) -> &View {
        &self.view
    }
}

/// The draft is layer 0 of an editor's view.
const DRAFT: u32 = 0;

/// Where a writer works: a directory of the merged tree, a name in it, and what is there now.
struct Spot {
    dir: Arc<Dir>,
    name: Vec<u8>,
    node: Option<Node>,
}

impl Spot {
    fn path(&self) -> Vec<u8> {
        rel::join(&self.dir.path, &self.name)
    }
}

impl<'a> Editor<'a> {
    pub(crate) fn new(lowers: Vec<Arc<Layer>>, draft: &'a mut Draft) -> Self {
        let top = Layer::new(draft.id(), draft.fs(), false);
        let mut layers = vec![Arc::new(top)];
        layers.extend(lowers);
        Self { view: View::new(layers, true), draft, source: None, below: None }
    }

    /// The same tree for reading; sees later changes too, as long as no one else writes the draft.
    pub fn view(&self) -> View {
        self.view.clone()
    }

    fn merged(&self) -> &Merged {
        &self.view.merged
    }

    /// Finds the place of `path`; its parent must exist.
    fn spot(&self, action: &'static str, path: &Path) -> Result<Spot, PathError> {
        let fail = || PathError::at(action, path);
        let (path, node) = match self.merged().resolve(path, Follow::No).map_err(fail())? {
            Resolved::Found(path, node) => (path, Some(node)),
            Resolved::Missing { path, last: true } => (path, None),
            Resolved::Missing { .. } => return Err(fail()(Errno::NOENT)),
            Resolved::NotDir => return Err(fail()(Errno::NOTDIR)),
        };
        let Some((dir, name)) = rel::split(&path) else { return Err(fail()(Errno::BUSY)) };
        let dir = self.merged().dir(dir).map_err(fail())?.ok_or(Errno::NOENT).map_err(fail())?;
        Ok(Spot { dir, name: name.to_vec(), node })
    }

    /// As [`Editor::spot`] for something new.
    fn free_spot(&self, action: &'static str, path: &Path) -> Result<Spot, PathError> {
        if let Some((dir, name)) = self.merged().known_parent(path)
            && dir.layers == [DRAFT]
        {
            // Only the draft can have it, and then making it fails.
            return Ok(Spot { dir, name, node: None });
        }
        match self.spot(action, path) {
            Ok(Spot { node: None, dir, name }) => Ok(Spot { node: None, dir, name }),
            Ok(_) => Err(PathError::at(action, path)(Errno::EXIST)),
            Err(error) if error.errno() == Some(Errno::BUSY.raw_os_error()) => Err(PathError::at(action, path)(Errno::EXIST)),
            Err(error) => Err(error),
        }
    }

    /// The draft's own directory for `dir`, made (with the metadata that the lower one has) if it was not there.
    fn upper(&self, dir: &Dir) -> Result<Arc<OwnedFd>, Errno> {
        // The caller's knowledge may be older than the last copying up.
        let dir = &*self.merged().dir(&dir.path)?.ok_or(Errno::NOENT)?;
        if dir.layers.first() == Some(&DRAFT) {
            return self.merged().open_dir(DRAFT, &dir.path);
        }
        let (parent, name) = rel::split(&dir.path).expect("the draft contributes to the root");
        let parent = self.merged().dir(parent)?.ok_or(Errno::NOENT)?;
        let handle = self.upper(&parent)?;
        let node = self.merged().node_of(dir)?;
        let xattrs = self.view.xattrs_of(&dir.path, &node)?;
        keeping_times(&handle, || {
            inode::make(&handle, name, &inode::Content::Dir)?;
            inode::dress(&handle, name, &node.metadata, &xattrs)
        })?;
        let dir = self.merged().add_draft(dir);
        self.merged().open_dir(DRAFT, &dir.path)
    }

    /// Makes a new `name` in the draft, in the place of a whiteout if there is one.
    fn make_in<T>(&self, upper: &OwnedFd, name: &[u8], make: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
        match make() {
            Err(Errno::EXIST) if self.clear_whiteout(upper, name)? => make(),
            other => other,
        }
    }

    /// Takes a whiteout away, and tells whether there was one.
    fn clear_whiteout(&self, upper: &OwnedFd, name: &[u8]) -> Result<bool, Errno> {
        match layer::stat(upper, name)? {
            Some(stat) if Metadata::of(&stat).is_whiteout() => {
                rustix::fs::unlinkat(upper, name, AtFlags::empty())?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}

/// Runs `change` on a directory and gives it back the times that it had: copying up is no change of the directory.
pub(crate) fn keeping_times<T>(dir: &OwnedFd, change: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    let before = Metadata::of(&rustix::fs::fstat(dir)?);
    let outcome = change()?;
    rustix::fs::futimens(dir, &timestamps(before.atime.timespec(), before.mtime.timespec()))?;
    Ok(outcome)
}

fn timestamps(last_access: Timespec, last_modification: Timespec) -> Timestamps {
    Timestamps { last_access, last_modification }
}
