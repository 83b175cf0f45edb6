//! Whether two files count as unchanged, by the rules of containerd's continuity, which image builders share.
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use snapshot::Entry;

use crate::error::{Error, Result};

const CAPABILITY: &str = "security.capability";

/// A file as it lies in a tree: what lstat says, and where it is.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub path: PathBuf,
    /// The directory it is in, if that is open: what is done with the item then need not find its way there again.
    directory: Option<Arc<OwnedFd>>,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    pub size: u64,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    pub dev: u64,
    pub ino: u64,
    pub nlink: u64,
}

impl Item {
    pub fn at(path: &Path) -> Result<Self> {
        let stat = rustix::fs::lstat(path).map_err(|e| Error::io("look at", path)(e.into()))?;
        Ok(Self::new(path.to_owned(), None, &stat))
    }

    /// The item at `path`, which is in `directory`.
    pub fn within(directory: &Arc<OwnedFd>, path: PathBuf) -> Result<Self> {
        let stat =
            rustix::fs::statat(directory, name(&path), AtFlags::SYMLINK_NOFOLLOW).map_err(|e| Error::io("look at", &path)(e.into()))?;
        // Only what is opened later needs it.
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        Ok(Self::new(path, regular.then(|| directory.clone()), &stat))
    }

    #[allow(clippy::unnecessary_cast, reason = "the count of links has another width on other architectures")]
    fn new(path: PathBuf, directory: Option<Arc<OwnedFd>>, stat: &Stat) -> Self {
        Self {
            path,
            directory,
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: stat.st_rdev,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
            dev: stat.st_dev,
            ino: stat.st_ino,
            nlink: stat.st_nlink as u64,
        }
    }

    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }

    pub fn is_dir(&self) -> bool {
        self.kind() == FileType::Directory
    }

    /// Has other names, in this tree or elsewhere.
    pub fn is_linked(&self) -> bool {
        !self.is_dir() && self.nlink > 1
    }

    /// How overlay keeps a deletion.
    pub fn is_whiteout(&self) -> bool {
        self.kind() == FileType::CharacterDevice && self.rdev == 0
    }

    /// The target of a symbolic link.
    pub fn target(&self) -> Result<Vec<u8>> {
        let target = rustix::fs::readlink(&self.path, Vec::new()).map_err(|e| Error::io("read link", &self.path)(e.into()))?;
        Ok(target.into_bytes())
    }

    /// Opens a regular file for reading.
    pub fn open(&self) -> Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = match &self.directory {
            Some(directory) => rustix::fs::openat(directory, name(&self.path), flags, Mode::empty()),
            None => rustix::fs::open(&self.path, flags, Mode::empty()),
        };
        Ok(opened.map_err(|e| Error::io("open", &self.path)(e.into()))?.into())
    }

    /// The `security.capability` attribute; empty if there is none.
    pub fn capabilities(&self) -> Result<Vec<u8>> {
        self.capabilities_by(|buffer| rustix::fs::lgetxattr(&self.path, CAPABILITY, buffer))
    }

    /// [`Item::capabilities`] of a file that is open.
    pub fn capabilities_of(&self, file: &File) -> Result<Vec<u8>> {
        self.capabilities_by(|buffer| rustix::fs::fgetxattr(file, CAPABILITY, buffer))
    }

    fn capabilities_by(&self, read: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> Result<Vec<u8>> {
        // Nothing else can have it.
        if self.kind() != FileType::RegularFile {
            return Ok(Vec::new());
        }
        let mut buffer = vec![0; 64];
        loop {
            match read(&mut buffer) {
                Ok(length) => {
                    buffer.truncate(length);
                    return Ok(buffer);
                }
                Err(Errno::NODATA | Errno::NOTSUP) => return Ok(Vec::new()),
                Err(Errno::RANGE) => buffer.resize(buffer.len() * 4, 0),
                Err(errno) => return Err(Error::io("read attributes of", &self.path)(errno.into())),
            }
        }
    }
}

fn name(path: &Path) -> &OsStr {
    path.file_name().unwrap_or(path.as_os_str())
}

impl From<&Entry> for Item {
    fn from(entry: &Entry) -> Self {
        let metadata = entry.metadata();
        Self {
            path: entry.real_path(),
            directory: None,
            mode: metadata.mode,
            uid: metadata.uid,
            gid: metadata.gid,
            rdev: metadata.rdev,
            size: metadata.size,
            mtime: (metadata.mtime.seconds, metadata.mtime.nanos),
            dev: metadata.dev,
            ino: metadata.ino,
            nlink: metadata.nlink,
        }
    }
}

/// Equal type, mode, owner, device and capabilities. Of what is no directory also equal size and modification time; where both times are
/// whole seconds they may have been cut off by an archive, so the content decides.
pub(crate) fn unchanged(a: &Item, b: &Item) -> Result<bool> {
    if a.dev == b.dev && a.ino == b.ino {
        return Ok(true);
    }
    if (a.mode, a.uid, a.gid, a.rdev) != (b.mode, b.uid, b.gid, b.rdev) || a.capabilities()? != b.capabilities()? {
        return Ok(false);
    }
    if a.is_dir() {
        return Ok(true);
    }
    if a.size != b.size || a.mtime.0 != b.mtime.0 {
        return Ok(false);
    }
    if a.mtime.1 != 0 || b.mtime.1 != 0 {
        return Ok(a.mtime.1 == b.mtime.1);
    }
    match a.kind() {
        FileType::Symlink => Ok(a.target()? == b.target()?),
        FileType::RegularFile if a.size > 0 => same_content(&a.path, &b.path),
        _ => Ok(true),
    }
}

fn same_content(before: &Path, after: &Path) -> Result<bool> {
    let open = |path: &Path| File::open(path).map_err(Error::io("open", path));
    let (mut a, mut b) = (open(before)?, open(after)?);
    let (mut left, mut right) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let n = fill(&mut a, &mut left).map_err(Error::io("read", before))?;
        let m = fill(&mut b, &mut right).map_err(Error::io("read", after))?;
        if left[..n] != right[..m] {
            return Ok(false);
        }
        if n < left.len() {
            return Ok(true);
        }
    }
}

fn fill(file: &mut File, out: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < out.len() {
        match file.read(&mut out[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}
