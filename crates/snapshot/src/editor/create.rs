use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use super::inode::{self, Content};
use super::{DRAFT, Editor, Spot};
use crate::merged::Dir;
use crate::metadata::{Follow, Metadata};
use crate::{PathError, layer, xattr};

impl Editor<'_> {
    /// Makes a directory; its parent must exist, it must not. `mode` as it is, whatever the process's umask.
    pub fn mkdir(&mut self, path: impl AsRef<Path>, mode: u32) -> Result<(), PathError> {
        let path = path.as_ref();
        let spot = self.free_spot("mkdir", path)?;
        self.mkdir_at(&spot, mode).map_err(PathError::at("mkdir", path))
    }

    fn mkdir_at(&self, spot: &Spot, mode: u32) -> Result<(), Errno> {
        let upper = self.upper(&spot.dir)?;
        let make = || rustix::fs::mkdirat(&upper, spot.name.as_slice(), Mode::from_raw_mode(mode & 0o7777));
        let replaces = match make() {
            Err(Errno::EXIST) if self.clear_whiteout(&upper, &spot.name)? => make().map(|()| true)?,
            other => other.map(|()| false)?,
        };
        inode::correct_mode(&upper, &spot.name, mode & 0o7777)?;
        if replaces {
            self.mark_opaque(&upper, &spot.name)?;
        }
        self.merged().insert(Dir::new(spot.path(), vec![DRAFT]));
        Ok(())
    }

    fn mark_opaque(&self, upper: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
        let attribute = xattr::opaque_name(self.draft.store().userxattr());
        rustix::fs::lsetxattr(layer::proc_path(upper, name), attribute, b"y", XattrFlags::empty())
    }

    /// Makes a directory and its missing parents; returns those made, outermost first. What exists must be directories.
    pub fn mkdir_all(&mut self, path: impl AsRef<Path>, mode: u32) -> Result<Vec<PathBuf>, PathError> {
        let path = path.as_ref();
        match self.lookup(path, Follow::Yes)? {
            Some(entry) if entry.metadata().is_dir() => return Ok(Vec::new()),
            Some(_) => return Err(PathError::at("mkdir", path)(Errno::NOTDIR)),
            None => {}
        }
        // A dangling link in the last place makes the directory where it points, as the kernel would for a path below it.
        let resolved = self.resolve(path, Follow::Yes).map_err(|error| PathError { action: "mkdir", ..error })?;
        let mut made = Vec::new();
        let mut at = PathBuf::from("/");
        for part in resolved.strip_prefix("/").expect("resolved paths are absolute") {
            at.push(part);
            if self.lookup(&at, Follow::No)?.is_none() {
                self.mkdir(&at, mode)?;
                made.push(at.clone());
            }
        }
        Ok(made)
    }

    /// Opens a file for writing from its start: a new one with `mode`, or the existing one, emptied, which keeps owner and mode.
    pub fn write_file(&mut self, path: impl AsRef<Path>, mode: u32) -> Result<File, PathError> {
        let path = path.as_ref();
        let spot = self.spot("open", path).map_err(|error| match error.errno() {
            Some(code) if code == Errno::BUSY.raw_os_error() => PathError::at("open", path)(Errno::ISDIR),
            _ => error,
        })?;
        self.write_at(&spot, mode).map_err(PathError::at("open", path))
    }

    fn write_at(&mut self, spot: &Spot, mode: u32) -> Result<File, Errno> {
        let Some(node) = &spot.node else { return self.create_at(spot, mode) };
        match node.metadata.file_type() {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR),
            FileType::Symlink => return Err(Errno::LOOP),
            _ => return Err(Errno::NXIO),
        }
        let upper = self.upper(&spot.dir)?;
        if node.layer != DRAFT || self.is_shared(&node.metadata) {
            let mut old = self.load(spot, node)?;
            old.content = Content::Empty;
            // The kernel drops capabilities from a file that is written to.
            old.xattrs.remove(std::ffi::OsStr::new("security.capability"));
            self.replace(&upper, spot, node, &old)?;
        }
        let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(&upper, spot.name.as_slice(), flags, Mode::empty())?);
        rustix::fs::futimens(&file, &super::timestamps(now(), now()))?;
        Ok(file)
    }

    /// Makes a new file, open for writing.
    pub fn create_file(&mut self, path: impl AsRef<Path>, mode: u32) -> Result<File, PathError> {
        let path = path.as_ref();
        let spot = self.free_spot("open", path)?;
        self.create_at(&spot, mode).map_err(PathError::at("open", path))
    }

    fn create_at(&self, spot: &Spot, mode: u32) -> Result<File, Errno> {
        let upper = self.upper(&spot.dir)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let make = || rustix::fs::openat(&upper, spot.name.as_slice(), flags, Mode::from_raw_mode(mode & 0o7777));
        let file = self.make_in(&upper, &spot.name, make)?;
        inode::correct_mode(&upper, &spot.name, mode & 0o7777)?;
        Ok(file.into())
    }

    /// Makes a symbolic link with the text `target`.
    pub fn symlink(&mut self, target: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<(), PathError> {
        let path = path.as_ref();
        let spot = self.free_spot("symlink", path)?;
        let make = || {
            let upper = self.upper(&spot.dir)?;
            self.make_in(&upper, &spot.name, || rustix::fs::symlinkat(target.as_ref(), &*upper, spot.name.as_slice()))
        };
        make().map_err(PathError::at("symlink", path))
    }

    /// Makes a device, fifo or socket; `mode` has the type in it, as `st_mode`. A device 0/0 is refused: that is a whiteout.
    pub fn mknod(&mut self, path: impl AsRef<Path>, mode: u32, rdev: u64) -> Result<(), PathError> {
        let path = path.as_ref();
        let kind = FileType::from_raw_mode(mode);
        if kind == FileType::CharacterDevice && rdev == 0 {
            return Err(PathError::at("mknod", path)(Errno::PERM));
        }
        let spot = self.free_spot("mknod", path)?;
        let make = || {
            let upper = self.upper(&spot.dir)?;
            let make = || rustix::fs::mknodat(&upper, spot.name.as_slice(), kind, Mode::from_raw_mode(mode & 0o7777), rdev);
            self.make_in(&upper, &spot.name, make)?;
            inode::correct_mode(&upper, &spot.name, mode & 0o7777)
        };
        make().map_err(PathError::at("mknod", path))
    }

    /// Makes a second name for a file of this tree.
    pub fn hard_link(&mut self, existing: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<(), PathError> {
        let (existing, path) = (existing.as_ref(), path.as_ref());
        let from = self.spot("link", existing)?;
        let node = from.node.clone().ok_or(Errno::NOENT).map_err(PathError::at("link", existing))?;
        let to = self.free_spot("link", path)?;
        if node.metadata.is_dir() {
            return Err(PathError::at("link", existing)(Errno::PERM));
        }
        self.link_within(&from, node.layer, &to).map_err(PathError::at("link", path))
    }

    fn link_within(&mut self, from: &Spot, layer: u32, to: &Spot) -> Result<(), Errno> {
        if layer != DRAFT {
            self.own(from)?;
        }
        let source = self.upper(&from.dir)?;
        let target = self.upper(&to.dir)?;
        let make = || rustix::fs::linkat(&source, from.name.as_slice(), &target, to.name.as_slice(), AtFlags::empty());
        self.make_in(&target, &to.name, make)?;
        let metadata = Metadata::of(&layer::stat(&*target, &to.name)?.ok_or(Errno::NOENT)?);
        self.draft.links_mut().note_name(&metadata, from.path(), to.path());
        Ok(())
    }

    /// Hides whatever lower trees have at `path`, known here or not: for unpacking diffs. What the draft itself has there goes away.
    pub fn whiteout(&mut self, path: impl AsRef<Path>) -> Result<(), PathError> {
        let path = path.as_ref();
        let spot = self.spot("remove", path)?;
        self.whiteout_at(&spot).map_err(PathError::at("remove", path))
    }

    fn whiteout_at(&self, spot: &Spot) -> Result<(), Errno> {
        let upper = self.upper(&spot.dir)?;
        self.remove_own(&upper, spot)?;
        match rustix::fs::mknodat(&upper, spot.name.as_slice(), FileType::CharacterDevice, Mode::empty(), 0) {
            Err(Errno::EXIST) => Ok(()),
            other => other,
        }
    }

    /// Hides whatever lower trees have in the directory `path`, known here or not. Not for the root: overlay knows no opaque roots.
    pub fn set_opaque(&mut self, path: impl AsRef<Path>) -> Result<(), PathError> {
        let path = path.as_ref();
        let (path, node) = self.merged().require(path, "mkdir")?;
        if !node.metadata.is_dir() {
            return Err(PathError::rel("mkdir", &path)(Errno::NOTDIR));
        }
        if path.is_empty() {
            return Err(PathError::rel("mkdir", &path)(Errno::INVAL));
        }
        let make = || {
            let upper = self.upper(&self.merged().remember(path.clone(), &node))?;
            self.mark_opaque(&upper, b"")?;
            self.merged().forget(&path);
            self.merged().insert(Dir::new(path.clone(), vec![DRAFT]));
            Ok(())
        };
        make().map_err(PathError::rel("mkdir", &path))
    }
}

fn now() -> rustix::fs::Timespec {
    rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW }
}
