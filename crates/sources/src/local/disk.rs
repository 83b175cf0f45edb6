//! Writes received entries into a new directory. Plain blocking code; the directory is nobody else's.
//!
//! Paths are relative and have passed the [validator](super::validate), so no part of one but the last can be a symbolic link.
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use session::{Stat, go_mode};

use super::error::LocalError;

/// The directory under construction and, where there is one, the last version of it.
pub(crate) struct Disk {
    root: OwnedFd,
    previous: Option<OwnedFd>,
    /// A directory hands its group down, so that owners must always be set.
    inherits: bool,
    /// The permissions that a new file does not get when it asks for them.
    masked: u32,
}

/// The permissions that new files in a directory get by default, and with it all that its own directories hand down.
const DEFAULT_ACL: &str = "system.posix_acl_default";

impl Disk {
    pub fn open(root: &Path, previous: Option<&Path>) -> Result<Self, LocalError> {
        let open = |path: &Path| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty()).map_err(LocalError::io("open", &path.to_string_lossy()))
        };
        Ok(Self { root: open(root)?, previous: previous.map(open).transpose()?, inherits: false, masked: masked(root) })
    }

    pub fn mkdir(&mut self, stat: &Stat) -> Result<(), LocalError> {
        let path = stat.path.as_str();
        rustix::fs::mkdirat(&self.root, path, Mode::RWXU).map_err(LocalError::io("create dir", path))?;
        let dir =
            rustix::fs::openat(&self.root, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
        let dir = dir.map_err(LocalError::io("open", path))?;
        self.inherits |= stat.mode & go_mode::SETGID != 0;
        if stat.xattrs.contains_key(DEFAULT_ACL) {
            self.masked = 0o777;
        }
        self.dress(&dir, stat)
    }

    /// Everything that is neither a directory nor a regular file with content of its own.
    pub fn special(&self, stat: &Stat) -> Result<(), LocalError> {
        let path = stat.path.as_str();
        if stat.mode & go_mode::SYMLINK != 0 {
            rustix::fs::symlinkat(stat.linkname.as_str(), &self.root, path).map_err(LocalError::io("symlink", path))?;
        } else {
            let kind = FileType::from_raw_mode(go_mode::to_posix(stat.mode));
            let device = rustix::fs::makedev(stat.devmajor as u32, stat.devminor as u32);
            if kind == FileType::CharacterDevice && device == 0 {
                return Err(LocalError::Whiteout { path: path.to_owned() });
            }
            let mode = Mode::from_raw_mode(permissions(stat));
            rustix::fs::mknodat(&self.root, path, kind, mode, device).map_err(LocalError::io("create device", path))?;
            rustix::fs::chmodat(&self.root, path, mode, AtFlags::empty()).map_err(LocalError::io("chmod", path))?;
        }
        if self.needs_owner(stat) {
            let (uid, gid) = owner(stat);
            rustix::fs::chownat(&self.root, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(LocalError::io("chown", path))?;
        }
        rustix::fs::utimensat(&self.root, path, &times(stat.mod_time), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(LocalError::io("set times of", path))
    }

    pub fn create(&self, stat: &Stat) -> Result<File, LocalError> {
        let path = stat.path.as_str();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = if self.is_made_right(stat) { permissions(stat) } else { 0o600 };
        rustix::fs::openat(&self.root, path, flags, Mode::from_raw_mode(mode)).map(File::from).map_err(LocalError::io("create", path))
    }

    /// Gives a written file its metadata.
    pub fn finish(&self, file: &File, stat: &Stat) -> Result<(), LocalError> {
        if !self.is_made_right(stat) {
            self.dress(file, stat)?;
        }
        rustix::fs::futimens(file, &times(stat.mod_time)).map_err(LocalError::io("set times of", &stat.path))
    }

    /// Whether a new file needs no change of owner, permissions and attributes.
    fn is_made_right(&self, stat: &Stat) -> bool {
        stat.xattrs.is_empty() && !self.needs_owner(stat) && permissions(stat) & (0o7000 | self.masked) == 0
    }

    /// Takes an unchanged file over from the last version.
    pub fn take_over(&self, stat: &Stat) -> Result<Taken, LocalError> {
        let Some(previous) = &self.previous else { return Ok(Taken::Gone) };
        let path = stat.path.as_str();
        match rustix::fs::linkat(previous, path, &self.root, path, AtFlags::empty()) {
            Ok(()) => {
                let found = rustix::fs::statat(&self.root, path, AtFlags::SYMLINK_NOFOLLOW).map_err(LocalError::io("stat", path))?;
                Ok(Taken::Linked { ino: found.st_ino })
            }
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(Taken::Gone),
            Err(Errno::MLINK | Errno::XDEV | Errno::PERM) => self.copy(previous, stat),
            Err(errno) => Err(LocalError::io("link", path)(errno)),
        }
    }

    fn copy(&self, previous: &OwnedFd, stat: &Stat) -> Result<Taken, LocalError> {
        let path = stat.path.as_str();
        let from = rustix::fs::openat(previous, path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
        let mut from = File::from(from.map_err(LocalError::io("open", path))?);
        let mut to = self.create(stat)?;
        std::io::copy(&mut from, &mut to).map_err(|source| LocalError::Io { action: "copy", path: path.to_owned(), source })?;
        self.finish(&to, stat)?;
        Ok(Taken::Copied)
    }

    /// Another name for a file of this directory.
    pub fn hard_link(&self, stat: &Stat) -> Result<(), LocalError> {
        let path = stat.path.as_str();
        rustix::fs::linkat(&self.root, stat.linkname.as_str(), &self.root, path, AtFlags::empty()).map_err(LocalError::io("link", path))
    }

    /// Sets a directory's time, once nothing in it changes any more.
    pub fn settle(&self, stat: &Stat) -> Result<(), LocalError> {
        let path = stat.path.as_str();
        rustix::fs::utimensat(&self.root, path, &times(stat.mod_time), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(LocalError::io("set times of", path))
    }

    /// Extended attributes, owner, mode; in this order, as a change of owner clears mode bits.
    fn dress(&self, handle: impl std::os::fd::AsFd, stat: &Stat) -> Result<(), LocalError> {
        for (name, value) in stat.xattrs.iter().filter(|(name, _)| !is_overlays(name)) {
            // Attributes that this file system does not take are left out, as upstream does.
            if let Err(errno) = rustix::fs::fsetxattr(&handle, name.as_str(), value, XattrFlags::empty()) {
                tracing::debug!(path = stat.path, name, %errno, "attribute not set");
            }
        }
        if self.needs_owner(stat) {
            let (uid, gid) = owner(stat);
            rustix::fs::fchown(&handle, uid, gid).map_err(LocalError::io("chown", &stat.path))?;
        }
        rustix::fs::fchmod(&handle, Mode::from_raw_mode(permissions(stat))).map_err(LocalError::io("chmod", &stat.path))
    }

    fn needs_owner(&self, stat: &Stat) -> bool {
        self.inherits || stat.uid != 0 || stat.gid != 0
    }
}

fn permissions(stat: &Stat) -> u32 {
    go_mode::to_posix(stat.mode) & 0o7777
}

/// The umask; everything where the system does not tell, or where something else decides.
fn masked(root: &Path) -> u32 {
    if !matches!(rustix::fs::getxattr(root, DEFAULT_ACL, &mut [0u8; 0]), Err(Errno::NODATA | Errno::OPNOTSUPP)) {
        return 0o777;
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|text| u32::from_str_radix(text.trim(), 8).ok()).unwrap_or(0o777)
}

/// How an unchanged file came from the last version.
pub(crate) enum Taken {
    /// One inode in both.
    Linked {
        ino: u64,
    },
    Copied,
    /// It is not there any more.
    Gone,
}

/// Attributes by which overlay file systems mark deletions. A client must not plant them.
fn is_overlays(name: &str) -> bool {
    name.starts_with("trusted.overlay.") || name.starts_with("user.overlay.")
}

fn owner(stat: &Stat) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(stat.uid)), Some(Gid::from_raw(stat.gid)))
}

fn times(nanos: i64) -> Timestamps {
    let time = Timespec { tv_sec: nanos.div_euclid(1_000_000_000), tv_nsec: nanos.rem_euclid(1_000_000_000) };
    Timestamps { last_access: time, last_modification: time }
}
