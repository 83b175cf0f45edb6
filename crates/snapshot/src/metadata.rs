use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Stat};

use crate::TreeId;
use crate::layer::Layer;
use crate::xattr::Xattrs;

/// Whether a symbolic link in the last place of a path is followed. Links before it always are, and never out of the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    No,
    Yes,
}

/// A point in time: seconds since 1970 and nanoseconds in that second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    pub seconds: i64,
    pub nanos: u32,
}

impl Time {
    pub fn from_unix_nanos(nanos: i64) -> Self {
        Self { seconds: nanos.div_euclid(1_000_000_000), nanos: nanos.rem_euclid(1_000_000_000) as u32 }
    }

    pub fn unix_nanos(self) -> i64 {
        self.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(self.nanos))
    }

    pub(crate) fn timespec(self) -> rustix::fs::Timespec {
        rustix::fs::Timespec { tv_sec: self.seconds, tv_nsec: self.nanos.into() }
    }
}

/// What stat tells. For a directory that several trees contribute to, the topmost one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metadata {
    /// As in `st_mode`: type and permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub mtime: Time,
    pub atime: Time,
    /// As in `st_rdev`; see [`Metadata::device`].
    pub rdev: u64,
    /// Counts links from other trees too.
    pub nlink: u64,
    pub ino: u64,
    pub dev: u64,
    /// Units of 512 bytes.
    pub blocks: u64,
}

impl Metadata {
    pub(crate) fn of(stat: &Stat) -> Self {
        Self {
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime: Time { seconds: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 },
            atime: Time { seconds: stat.st_atime, nanos: stat.st_atime_nsec as u32 },
            rdev: stat.st_rdev,
            // Narrower on other architectures.
            #[allow(clippy::unnecessary_cast)]
            nlink: stat.st_nlink as u64,
            ino: stat.st_ino,
            dev: stat.st_dev,
            blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
        }
    }

    pub fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }

    /// The permission bits with setuid, setgid and sticky.
    pub fn permissions(&self) -> u32 {
        self.mode & 0o7777
    }

    pub fn is_dir(&self) -> bool {
        self.file_type() == FileType::Directory
    }

    pub fn is_file(&self) -> bool {
        self.file_type() == FileType::RegularFile
    }

    pub fn is_symlink(&self) -> bool {
        self.file_type() == FileType::Symlink
    }

    /// Major and minor number of a device node.
    pub fn device(&self) -> (u32, u32) {
        (rustix::fs::major(self.rdev), rustix::fs::minor(self.rdev))
    }

    pub(crate) fn is_whiteout(&self) -> bool {
        self.file_type() == FileType::CharacterDevice && self.rdev == 0
    }
}

/// One file of a merged tree.
#[derive(Clone)]
pub struct Entry {
    pub(crate) path: PathBuf,
    pub(crate) metadata: Metadata,
    pub(crate) layer: Arc<Layer>,
}

impl Entry {
    /// Absolute within the root, without symbolic links before the last component.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The last component; empty for the root.
    pub fn name(&self) -> &OsStr {
        self.path.file_name().unwrap_or_default()
    }

    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tree it is stored in.
    pub fn tree(&self) -> TreeId {
        self.layer.id
    }

    /// Where the bytes are on this machine. Never to be written to.
    pub fn real_path(&self) -> PathBuf {
        self.layer.fs.join(OsStr::from_bytes(self.rel()))
    }

    /// Extended attributes of the entry itself, without overlay's own.
    pub fn xattrs(&self) -> std::io::Result<Xattrs> {
        // Nothing before the last part is a link: so are trees made, and they stay as they are.
        Ok(crate::xattr::read(self.real_path().as_os_str().as_bytes())?)
    }

    /// Opens a regular file for reading.
    pub fn open(&self) -> std::io::Result<File> {
        self.layer.open_file(self.rel())
    }

    pub(crate) fn rel(&self) -> &[u8] {
        &self.path.as_os_str().as_bytes()[1..]
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("path", &self.path).field("metadata", &self.metadata).field("tree", &self.layer.id).finish()
    }
}
