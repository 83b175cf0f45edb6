//! Making files in a draft's directory, and copying one with everything that belongs to it.
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, SeekFrom as Whence, Uid, XattrFlags};
use rustix::io::Errno;

use super::timestamps;
use crate::layer;
use crate::metadata::Metadata;
use crate::xattr::{self, Xattrs};

pub(super) enum Content {
    Dir,
    File(File),
    Empty,
    Link(Vec<u8>),
    /// A device, fifo or socket.
    Node {
        kind: FileType,
        rdev: u64,
    },
}

/// An inode with all that a copy must have; loaded before the original may go away.
pub(super) struct Inode {
    pub(super) content: Content,
    pub(super) metadata: Metadata,
    pub(super) xattrs: Xattrs,
}

/// How a copy's bytes got there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Copied {
    /// They are shared by the disk.
    Reflink,
    Bytes,
}

impl Inode {
    /// Loads what is no directory. `dir` is the open directory that it is in.
    pub(super) fn load(dir: impl AsFd, name: &[u8], metadata: Metadata) -> Result<Self, Errno> {
        if metadata.file_type() == FileType::RegularFile {
            let file = layer::open_in(&dir, name)?;
            let xattrs = xattr::read_open(&file)?;
            return Ok(Self { content: Content::File(file), metadata, xattrs });
        }
        let content = match metadata.file_type() {
            FileType::Symlink => Content::Link(rustix::fs::readlinkat(&dir, name, Vec::with_capacity(256))?.into_bytes()),
            FileType::Directory => Content::Dir,
            kind => Content::Node { kind, rdev: metadata.rdev },
        };
        let xattrs = xattr::read(&layer::proc_path(dir, name))?;
        Ok(Self { content, metadata, xattrs })
    }

    /// Writes it out under a name that is free.
    pub(super) fn store(&self, dir: &OwnedFd, name: &[u8]) -> Result<Copied, Errno> {
        let Content::File(from) = &self.content else {
            make(dir, name, &self.content)?;
            dress(dir, name, &self.metadata, &self.xattrs)?;
            return Ok(Copied::Bytes);
        };
        let to = create(dir, name)?;
        let copied = copy_bytes(from, &to, &self.metadata).map_err(errno)?;
        dress_file(&to, &self.metadata, &self.xattrs)?;
        Ok(copied)
    }
}

/// Makes an empty file of the right type with no more permissions than its owner's.
pub(super) fn make(dir: &OwnedFd, name: &[u8], content: &Content) -> Result<(), Errno> {
    match content {
        Content::Dir => rustix::fs::mkdirat(dir, name, Mode::RWXU),
        Content::File(_) | Content::Empty => create(dir, name).map(drop),
        Content::Link(target) => rustix::fs::symlinkat(target.as_slice(), dir, name),
        Content::Node { kind, rdev } => rustix::fs::mknodat(dir, name, *kind, Mode::RUSR | Mode::WUSR, *rdev),
    }
}

fn create(dir: &OwnedFd, name: &[u8]) -> Result<File, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?.into())
}

/// Gives a file owner, permissions, attributes and times. In this order: a change of owner takes setuid bits and capabilities away.
pub(super) fn dress(dir: &OwnedFd, name: &[u8], metadata: &Metadata, xattrs: &Xattrs) -> Result<(), Errno> {
    own(dir, name, metadata.uid, metadata.gid)?;
    if !metadata.is_symlink() {
        rustix::fs::chmodat(dir, name, Mode::from_raw_mode(metadata.permissions()), AtFlags::empty())?;
    }
    if !xattrs.is_empty() {
        let path = layer::proc_path(dir, name);
        set_all(xattrs, |key, value| xattr::set(&path, key, value))?;
    }
    rustix::fs::utimensat(dir, name, &timestamps(metadata.atime.timespec(), metadata.mtime.timespec()), AtFlags::SYMLINK_NOFOLLOW)
}

/// As [`dress`], of a file just made by [`create`].
fn dress_file(file: &File, metadata: &Metadata, xattrs: &Xattrs) -> Result<(), Errno> {
    // Owner and group are not those of this process where the directory is setgid, or its file system mounted for others.
    rustix::fs::fchown(file, Some(Uid::from_raw(metadata.uid)), Some(Gid::from_raw(metadata.gid)))?;
    rustix::fs::fchmod(file, Mode::from_raw_mode(metadata.permissions()))?;
    set_all(xattrs, |key, value| rustix::fs::fsetxattr(file, key, value, XattrFlags::empty()))?;
    rustix::fs::futimens(file, &timestamps(metadata.atime.timespec(), metadata.mtime.timespec()))
}

fn set_all(xattrs: &Xattrs, set: impl Fn(&[u8], &[u8]) -> Result<(), Errno>) -> Result<(), Errno> {
    for (key, value) in xattrs {
        match set(key.as_bytes(), value) {
            // What this disk, or this user, cannot store is not worth the file.
            Ok(()) | Err(Errno::NOTSUP | Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

pub(super) fn own(dir: &OwnedFd, name: &[u8], uid: u32, gid: u32) -> Result<(), Errno> {
    rustix::fs::chownat(dir, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::SYMLINK_NOFOLLOW)
}

/// Takes the process's umask out of a mode that a system call was given.
pub(super) fn correct_mode(dir: &OwnedFd, name: &[u8], wanted: u32) -> Result<(), Errno> {
    if wanted & umask() == 0 {
        return Ok(());
    }
    // Bits that the kernel added, as setgid in a setgid directory, stay.
    let now = layer::stat(dir, name)?.ok_or(Errno::NOENT)?.st_mode & 0o7777;
    rustix::fs::chmodat(dir, name, Mode::from_raw_mode(now | wanted), AtFlags::empty())
}

/// The umask as it was at first use; everything, if the system does not tell.
fn umask() -> u32 {
    static UMASK: OnceLock<u32> = OnceLock::new();
    *UMASK.get_or_init(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
        line.and_then(|text| u32::from_str_radix(text.trim(), 8).ok()).unwrap_or(0o777)
    })
}

/// Copies a file's bytes the cheapest way there is; holes stay holes.
fn copy_bytes(from: &File, to: &File, metadata: &Metadata) -> io::Result<Copied> {
    if metadata.size == 0 {
        return Ok(Copied::Bytes);
    }
    if reflink(from, to, metadata.dev) {
        return Ok(Copied::Reflink);
    }
    if metadata.blocks * 512 >= metadata.size {
        copy_range(from, to, 0, metadata.size)?;
        return Ok(Copied::Bytes);
    }
    let mut at = 0;
    while at < metadata.size {
        let start = match rustix::fs::seek(from, Whence::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let end = rustix::fs::seek(from, Whence::Hole(start))?.min(metadata.size);
        copy_range(from, to, start, end)?;
        at = end;
    }
    to.set_len(metadata.size)?;
    Ok(Copied::Bytes)
}

/// Shares the blocks, where the disk can. A disk that said that it cannot is not asked again.
fn reflink(from: &File, to: &File, disk: u64) -> bool {
    static UNABLE: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());
    let unable = || UNABLE.lock().unwrap_or_else(PoisonError::into_inner);
    if unable().contains(&disk) {
        return false;
    }
    match rustix::fs::ioctl_ficlone(to, from) {
        Ok(()) => true,
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS) => {
            unable().insert(disk);
            false
        }
        Err(_) => false,
    }
}

fn copy_range(mut from: &File, mut to: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut read_at, mut write_at) = (start, start);
    while read_at < end {
        let length = usize::try_from(end - read_at).unwrap_or(usize::MAX).min(1 << 30);
        match rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), length) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM) => {
                from.seek(SeekFrom::Start(read_at))?;
                to.seek(SeekFrom::Start(write_at))?;
                io::copy(&mut from.take(end - read_at), &mut to)?;
                return to.flush();
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

pub(super) fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
