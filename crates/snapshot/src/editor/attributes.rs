use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use super::inode::{self, Inode};
use super::{DRAFT, Editor, Spot, keeping_times, timestamps};
use crate::merged::Node;
use crate::metadata::{Metadata, Time};
use crate::{PathError, layer, rel, xattr};

/// What to change of a file; what is `None` stays. Permissions of symbolic links cannot be changed and are left alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    pub owner: Option<(u32, u32)>,
    /// With setuid, setgid and sticky.
    pub permissions: Option<u32>,
    /// Access and modification.
    pub times: Option<(Time, Time)>,
}

impl Attributes {
    /// Nothing to change.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What the metadata will be.
    pub(super) fn apply(&self, metadata: &mut Metadata) {
        if let Some((uid, gid)) = self.owner {
            (metadata.uid, metadata.gid) = (uid, gid);
        }
        if let Some(permissions) = self.permissions.filter(|_| !metadata.is_symlink()) {
            metadata.mode = metadata.mode & !0o7777 | permissions & 0o7777;
        }
        if let Some((access, modification)) = self.times {
            (metadata.atime, metadata.mtime) = (access, modification);
        }
    }
}

/// A file that is the draft's alone, named by its open directory.
struct Owned {
    dir: Arc<OwnedFd>,
    name: Vec<u8>,
    metadata: Metadata,
}

impl Editor<'_> {
    /// Changes metadata. In the order owner, permissions, times: the kernel takes setuid bits away when the owner changes, and so does this
    /// if permissions are not given.
    pub fn set(&mut self, path: impl AsRef<Path>, attributes: &Attributes) -> Result<(), PathError> {
        let path = path.as_ref();
        let owned = self.owned("chown", path)?;
        let name = owned.name.as_slice();
        if let Some((uid, gid)) = attributes.owner {
            inode::own(&owned.dir, name, uid, gid).map_err(PathError::at("chown", path))?;
        }
        if let Some(mode) = attributes.permissions.filter(|_| !owned.metadata.is_symlink()) {
            let mode = Mode::from_raw_mode(mode & 0o7777);
            rustix::fs::chmodat(&owned.dir, name, mode, AtFlags::empty()).map_err(PathError::at("chmod", path))?;
        }
        if let Some((access, modification)) = attributes.times {
            let times = timestamps(access.timespec(), modification.timespec());
            rustix::fs::utimensat(&owned.dir, name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(PathError::at("chtimes", path))?;
        }
        Ok(())
    }

    pub fn set_owner(&mut self, path: impl AsRef<Path>, uid: u32, gid: u32) -> Result<(), PathError> {
        self.set(path, &Attributes { owner: Some((uid, gid)), ..Attributes::default() })
    }

    pub fn set_mode(&mut self, path: impl AsRef<Path>, permissions: u32) -> Result<(), PathError> {
        self.set(path, &Attributes { permissions: Some(permissions), ..Attributes::default() })
    }

    pub fn set_times(&mut self, path: impl AsRef<Path>, access: Time, modification: Time) -> Result<(), PathError> {
        self.set(path, &Attributes { times: Some((access, modification)), ..Attributes::default() })
    }

    /// Sets an extended attribute of the entry itself. Overlay's own names are refused.
    pub fn set_xattr(&mut self, path: impl AsRef<Path>, name: impl AsRef<OsStr>, value: &[u8]) -> Result<(), PathError> {
        let path = path.as_ref();
        let name = name.as_ref().as_bytes();
        if xattr::is_internal(name) {
            return Err(PathError::at("setxattr", path)(Errno::PERM));
        }
        let owned = self.owned("setxattr", path)?;
        xattr::set(&layer::proc_path(&*owned.dir, &owned.name), name, value).map_err(PathError::at("setxattr", path))
    }

    pub fn remove_xattr(&mut self, path: impl AsRef<Path>, name: impl AsRef<OsStr>) -> Result<(), PathError> {
        let path = path.as_ref();
        let name = name.as_ref().as_bytes();
        if xattr::is_internal(name) {
            return Err(PathError::at("removexattr", path)(Errno::NODATA));
        }
        let owned = self.owned("removexattr", path)?;
        rustix::fs::lremovexattr(layer::proc_path(&*owned.dir, &owned.name), name).map_err(PathError::at("removexattr", path))
    }

    fn owned(&mut self, action: &'static str, path: &Path) -> Result<Owned, PathError> {
        let (rel_path, node) = self.merged().require(path, action)?;
        let fail = || PathError::at(action, path);
        if node.metadata.is_dir() {
            let dir = self.merged().remember(rel_path, &node);
            let dir = self.upper(&dir).map_err(fail())?;
            return Ok(Owned { dir, name: b".".to_vec(), metadata: node.metadata });
        }
        let (dir, name) = rel::split(&rel_path).expect("the root is a directory");
        let dir = self.merged().dir(dir).map_err(fail())?.ok_or(Errno::NOENT).map_err(fail())?;
        let spot = Spot { dir, name: name.to_vec(), node: Some(node) };
        let dir = self.own(&spot).map_err(fail())?;
        Ok(Owned { dir, name: spot.name, metadata: spot.node.expect("set above").metadata })
    }

    /// Sees to it that what is at the spot, which is no directory, is an inode of the draft that nothing else has.
    pub(super) fn own(&mut self, spot: &Spot) -> Result<Arc<OwnedFd>, Errno> {
        let node: &Node = spot.node.as_ref().ok_or(Errno::NOENT)?;
        let upper = self.upper(&spot.dir)?;
        if node.layer == DRAFT && !self.is_shared(&node.metadata) {
            return Ok(upper);
        }
        let original = self.load(spot, node)?;
        self.replace(&upper, spot, node, &original)?;
        Ok(upper)
    }

    pub(super) fn load(&self, spot: &Spot, node: &Node) -> Result<Inode, Errno> {
        let dir = self.merged().open_dir(node.layer, &spot.dir.path)?;
        Inode::load(&*dir, &spot.name, node.metadata)
    }

    /// Writes `new` to the draft in the place of `old`, and of the other names that `old` has there.
    pub(super) fn replace(&mut self, upper: &OwnedFd, spot: &Spot, old: &Node, new: &Inode) -> Result<(), Errno> {
        keeping_times(upper, || {
            if old.layer == DRAFT {
                rustix::fs::unlinkat(upper, spot.name.as_slice(), AtFlags::empty())?;
            }
            new.store(upper, &spot.name)
        })?;
        if old.layer != DRAFT {
            return Ok(());
        }
        let mut several = false;
        for name in self.draft.links_mut().take_names(&old.metadata) {
            several |= self.rename_to(upper, spot, &name, &old.metadata)?;
        }
        if several {
            let stat = layer::stat(upper, &spot.name)?.ok_or(Errno::NOENT)?;
            self.draft.links_mut().note_own(&Metadata::of(&stat));
        }
        Ok(())
    }

    /// Makes `other`, if it still is the inode `old`, a name of what is at the spot now.
    fn rename_to(&self, upper: &OwnedFd, spot: &Spot, other: &[u8], old: &Metadata) -> Result<bool, Errno> {
        let (dir, name) = rel::split(other).expect("no directory has two names");
        let Ok(dir) = self.merged().layers[DRAFT as usize].open_dir(dir) else { return Ok(false) };
        match layer::stat(&dir, name)? {
            Some(stat) if (stat.st_dev, stat.st_ino) == (old.dev, old.ino) => {}
            _ => return Ok(false),
        }
        keeping_times(&dir, || {
            rustix::fs::unlinkat(&dir, name, AtFlags::empty())?;
            rustix::fs::linkat(upper, spot.name.as_slice(), &dir, name, AtFlags::empty())
        })?;
        Ok(true)
    }

    /// Whether an inode of the draft may be in another tree too.
    pub(super) fn is_shared(&self, metadata: &Metadata) -> bool {
        metadata.nlink > 1 && !metadata.is_dir() && !self.draft.links().is_own(metadata)
    }
}
