//! Trees are fitted to what lies below them: what an archive left out is filled in, and directories that hide everything below are spelled
//! out as single deletions where a merge needs that.
use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fault::Fault;
use progress::Reporter;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use snapshot::{Entry, Follow, TreeId, View};
use task::Cancel;

use crate::compare::is_directory;
use crate::error::{Error, Result};
use crate::node::{Kind, Layer, Node};
use crate::opaque::mark;
use crate::same::{self, Item};
use crate::store::Layers;
use crate::unpack::Unpacked;

impl Unpacked {
    /// Whether [`fit`] has anything to do.
    pub fn needs_below(&self) -> bool {
        !self.implied.is_empty() || self.opaque_root
    }
}

/// Finishes a fresh tree with the help of the layers below: directories that the archive only implied look as they do below, and an
/// opaque root becomes deletions, since overlay does not know such a thing.
pub(crate) fn fit(home: &Layers, draft: &snapshot::Draft, below: &[TreeId], found: &Unpacked) -> Result<()> {
    if below.is_empty() || !found.needs_below() {
        return Ok(());
    }
    let below = home.trees().view(below)?;
    let root = draft.fs();
    // The deepest first: setting the times of a directory must come after changes in it.
    for path in found.implied.iter().rev() {
        // As the archive's own names are resolved within its tree, so are these followed below.
        if let Some(entry) = below.lookup(path, Follow::Yes)?.filter(|entry| entry.metadata().is_dir()) {
            dress(&root.join(path), &entry, &below)?;
        }
    }
    if found.opaque_root {
        hide(&below, Path::new("/"), &root, home)?;
    }
    Ok(())
}

fn dress(target: &Path, entry: &Entry, view: &View) -> Result<()> {
    let failed = |e: Errno| Error::io("dress", target)(e.into());
    let metadata = entry.metadata();
    let owner = (Some(Uid::from_raw(metadata.uid)), Some(Gid::from_raw(metadata.gid)));
    rustix::fs::chownat(CWD, target, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
    for (name, value) in view.xattrs(entry.path())?.iter().filter(|(name, _)| !name.as_encoded_bytes().starts_with(b"trusted.")) {
        rustix::fs::lsetxattr(target, name, value, XattrFlags::empty()).map_err(failed)?;
    }
    rustix::fs::chmod(target, Mode::from_raw_mode(metadata.permissions())).map_err(failed)?;
    let time = |time: snapshot::Time| Timespec { tv_sec: time.seconds, tv_nsec: time.nanos.into() };
    set_times(target, &Timestamps { last_access: time(metadata.atime), last_modification: time(metadata.mtime) })
}

fn set_times(target: &Path, times: &Timestamps) -> Result<()> {
    rustix::fs::utimensat(CWD, target, times, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| Error::io("set times of", target)(e.into()))
}

/// Puts deletions into `target` for all that `path` has below and `target` has not; directories on both sides hide theirs in turn.
fn hide(below: &View, path: &Path, target: &Path, home: &Layers) -> Result<()> {
    let own: HashSet<OsString> = names(target)?.into_iter().collect();
    for entry in below.read_dir(path)? {
        let place = target.join(entry.name());
        if !own.contains(entry.name()) {
            rustix::fs::mknodat(CWD, &place, FileType::CharacterDevice, Mode::empty(), 0)
                .map_err(|e| Error::io("make whiteout", &place)(e.into()))?;
        } else if entry.metadata().is_dir() && place.is_dir() && !place.is_symlink() {
            let name = if home.trees().userxattr() { "user.overlay.opaque" } else { "trusted.overlay.opaque" };
            rustix::fs::lsetxattr(&place, name, b"y", XattrFlags::empty()).map_err(|e| Error::io("make opaque", &place)(e.into()))?;
        }
    }
    Ok(())
}

fn names(dir: &Path) -> Result<Vec<OsString>> {
    let failed = || Error::io("read directory", dir);
    let entries = fs::read_dir(dir).map_err(failed())?;
    entries.map(|entry| entry.map(|e| e.file_name()).map_err(failed())).collect()
}

/// Sees to it that the layer has a tree that hides no whole directories, if its own does.
pub(crate) async fn ensure(node: &Arc<Node>, cancel: &Cancel, reporter: &Reporter) -> Result<(), Fault> {
    let needed = || {
        let state = node.state();
        state.opaque && state.explicit.is_none()
    };
    if !needed() {
        return Ok(());
    }
    let below = match &node.kind {
        Kind::Layer { parent: Some(parent) } => Some(Layer::glance(parent.clone())),
        _ => None,
    };
    if let Some(below) = &below {
        // A merge may hold this layer without what it was made on.
        crate::realize::below(below, cancel, reporter).await?;
    }
    let working = node.clone();
    let key = format!("explicit:{}", node.id);
    let work = |stop: Cancel, _| async move {
        task::blocking(move || {
            let state = working.state().clone();
            let (Some(tree), None) = (state.tree, state.explicit) else { return Ok(()) };
            let stack = below.as_ref().map_or(Ok(Vec::new()), Layer::stack)?;
            let explicit = spell_out(&working.home, &tree, &stack, &stop)?;
            working.home.change(&working, |state| state.explicit = Some(explicit));
            Ok(())
        })
        .await
    };
    node.home.0.flights.run(&key, cancel, reporter, work).await
}

/// A copy of `tree`, its files hard links, without directories that hide what is below. In its own place it looks the same.
fn spell_out(home: &Layers, tree: &TreeId, below: &[TreeId], cancel: &Cancel) -> Result<TreeId> {
    let draft = home.trees().create()?;
    let source = home.trees().files(tree)?;
    let below = home.trees().view(below)?;
    let copy = Copy { below: &below, cancel };
    copy.directory(&source, &draft.fs(), &PathBuf::from("/"), false)?;
    Ok(home.trees().commit(draft)?)
}

struct Copy<'a> {
    below: &'a View,
    cancel: &'a Cancel,
}

impl Copy<'_> {
    /// `hidden`: a directory above hides what is below this one. Returns whether there is anything in the copy.
    fn directory(&self, from: &Path, to: &Path, path: &Path, hidden: bool) -> Result<bool> {
        self.cancel.check()?;
        let covers = is_directory(self.below, path)?;
        let own = names(from)?;
        for name in &own {
            let (from, to, path) = (from.join(name), to.join(name), path.join(name));
            let metadata = from.symlink_metadata().map_err(Error::io("look at", &from))?;
            if metadata.is_dir() {
                fs::create_dir(&to).map_err(Error::io("make directory", &to))?;
                let hides = hidden || mark(&from)?.is_some();
                if !self.directory(&from, &to, &path, hides)? && !hides && self.is_unchanged(&from, &path)? {
                    fs::remove_dir(&to).map_err(Error::io("remove", &to))?;
                }
            } else {
                rustix::fs::linkat(CWD, &from, CWD, &to, AtFlags::empty()).map_err(|e| Error::io("link", &to)(e.into()))?;
            }
        }
        if hidden && covers {
            let own: HashSet<&OsString> = own.iter().collect();
            for entry in self.below.read_dir(path)?.iter().filter(|entry| !own.contains(&entry.name().to_owned())) {
                let place = to.join(entry.name());
                rustix::fs::mknodat(CWD, &place, FileType::CharacterDevice, Mode::empty(), 0)
                    .map_err(|e| Error::io("make whiteout", &place)(e.into()))?;
            }
        }
        copy_attributes(from, to)?;
        Ok(!names(to)?.is_empty())
    }

    /// A directory that differs from the one below at most in its times.
    fn is_unchanged(&self, from: &Path, path: &Path) -> Result<bool> {
        match self.below.lookup(path, Follow::No)? {
            Some(before) => same::unchanged(&(&before).into(), &Item::at(from)?),
            None => Ok(false),
        }
    }
}

/// Owner, mode, times and attributes of a directory, but for overlay's own.
fn copy_attributes(from: &Path, to: &Path) -> Result<()> {
    let failed = |e: Errno| Error::io("copy attributes to", to)(e.into());
    let metadata = from.symlink_metadata().map_err(Error::io("look at", from))?;
    let owner = (Some(Uid::from_raw(metadata.uid())), Some(Gid::from_raw(metadata.gid())));
    rustix::fs::chownat(CWD, to, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
    let mut list = vec![0; 64 << 10];
    let length = match rustix::fs::llistxattr(from, &mut list[..]) {
        Err(Errno::NOTSUP) => 0,
        outcome => outcome.map_err(failed)?,
    };
    let mut value = vec![0; 64 << 10];
    for name in list[..length].split(|b| *b == 0).filter(|name| !name.is_empty()) {
        if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
            continue;
        }
        let length = rustix::fs::lgetxattr(from, name, &mut value[..]).map_err(failed)?;
        rustix::fs::lsetxattr(to, name, &value[..length], XattrFlags::empty()).map_err(failed)?;
    }
    rustix::fs::chmod(to, Mode::from_raw_mode(metadata.mode() & 0o7777)).map_err(failed)?;
    let time = |seconds, nanos| Timespec { tv_sec: seconds, tv_nsec: nanos };
    let (access, change) = (time(metadata.atime(), metadata.atime_nsec()), time(metadata.mtime(), metadata.mtime_nsec()));
    set_times(to, &Timestamps { last_access: access, last_modification: change })
}
