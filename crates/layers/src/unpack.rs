//! Turns an image layer's tar into a diff tree.
//!
//! Follows what containerd's archive package does for overlay: whiteout files become character devices 0/0, `.wh..wh..opq` becomes the
//! opaque attribute, an entry replaces what an earlier one left unless both are directories. Every path is resolved inside the tree,
//! whatever links are there: nothing outside can be read, written or linked to.
mod place;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::tar::{Entry, EntryKind, Reader, TarError};
use place::{Existing, Places};

#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error(transparent)]
    Tar(#[from] TarError),
    #[error("could not {action} {path:?}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("invalid whiteout name {name:?}")]
    Whiteout { name: PathBuf },
    #[error("too many links in the way to {path:?}")]
    Links { path: PathBuf },
    #[error("a name of {length} bytes is too long")]
    Length { length: usize },
}

impl UnpackError {
    fn os(action: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> Self {
        let path = Path::new(OsStr::from_bytes(path)).to_owned();
        move |errno| UnpackError::Io { action, path, source: errno.into() }
    }

    fn io(action: &'static str, path: &[u8]) -> impl FnOnce(io::Error) -> Self {
        let path = Path::new(OsStr::from_bytes(path)).to_owned();
        move |source| UnpackError::Io { action, path, source }
    }
}

/// What an unpacked layer needs to know of the layers below, or they of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Unpacked {
    /// Directories that the archive had files in but no entry for: they look like below.
    pub implied: Vec<PathBuf>,
    /// Some directory hides all that is below it.
    pub opaque: bool,
    /// The root does. Overlay does not know opaque roots.
    pub opaque_root: bool,
}

/// Unpacks `archive` into the empty directory `root`.
pub(crate) fn unpack(archive: impl Read, root: &Path, userxattr: bool) -> Result<Unpacked, UnpackError> {
    let root = File::open(root).map_err(UnpackError::io("open", root.as_os_str().as_bytes()))?;
    let mut reader = Reader::new(archive);
    let mut unpack = Unpack {
        places: Places::new(root.into()),
        outcome: Unpacked::default(),
        directories: Vec::new(),
        opaque_name: if userxattr { "user.overlay.opaque" } else { "trusted.overlay.opaque" },
        buffer: vec![0; 256 << 10],
        squashed: false,
    };
    while let Some(entry) = reader.next()? {
        unpack.entry(&entry, &mut reader)?;
    }
    reader.drain()?;
    unpack.finish()
}

struct Unpack {
    places: Places,
    outcome: Unpacked,
    /// Their times are set last: files made in them change them.
    directories: Vec<(Vec<u8>, Timestamps)>,
    opaque_name: &'static str,
    buffer: Vec<u8>,
    /// Some owner is not in this user namespace.
    squashed: bool,
}

/// A name in a directory that exists.
struct Spot<'a> {
    dir: BorrowedFd<'a>,
    name: &'a OsStr,
    path: &'a [u8],
}

impl Unpack {
    fn entry(&mut self, entry: &Entry, data: &mut impl Read) -> Result<(), UnpackError> {
        let Some((parent, name)) = self.places.resolve(&entry.name)? else { return Ok(()) };
        let (dir, made) = self.places.directory(&parent)?;
        self.outcome.implied.extend(made.into_iter().map(|path| Path::new(OsStr::from_bytes(&path)).to_owned()));
        let path = place::join(&parent, &name);
        let spot = Spot { dir: dir.as_fd(), name: OsStr::from_bytes(&name), path: &path };
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            return self.whiteout(entry, &spot, hidden, &parent);
        }
        let existing = self.places.look(spot.dir, &name, &path)?;
        let stays = existing == Existing::Directory && entry.kind == EntryKind::Directory;
        if existing != Existing::Nothing && !stays {
            self.places.remove(spot.dir, &name, &path)?;
        }
        if entry.kind == EntryKind::Directory { self.directory(entry, &spot, existing) } else { self.other(entry, &spot, data) }
    }

    fn directory(&mut self, entry: &Entry, spot: &Spot<'_>, existing: Existing) -> Result<(), UnpackError> {
        if existing != Existing::Directory {
            rustix::fs::mkdirat(spot.dir, spot.name, Mode::from_raw_mode(0o700)).map_err(UnpackError::os("make directory", spot.path))?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(spot.dir, spot.name, flags, Mode::empty()).map_err(UnpackError::os("open", spot.path))?;
        if existing == Existing::Whiteout {
            // Gone below and new here: nothing of what is below may show.
            self.hide_below(dir.as_fd(), spot.path)?;
        }
        let times = times(entry);
        self.attributes_of(entry, dir.as_fd(), spot.path, None)?;
        self.outcome.implied.retain(|path| path.as_os_str().as_bytes() != spot.path);
        self.directories.push((spot.path.to_vec(), times));
        Ok(())
    }

    fn other(&mut self, entry: &Entry, spot: &Spot<'_>, data: &mut impl Read) -> Result<(), UnpackError> {
        match entry.kind {
            EntryKind::File => return self.file(entry, spot, data),
            EntryKind::HardLink => self.hard_link(entry, spot)?,
            EntryKind::Symlink => {
                let target = OsStr::from_bytes(&entry.link);
                rustix::fs::symlinkat(target, spot.dir, spot.name).map_err(UnpackError::os("make symlink", spot.path))?;
            }
            EntryKind::CharDevice | EntryKind::BlockDevice | EntryKind::Fifo => {
                if !self.node(entry, spot)? {
                    return Ok(());
                }
            }
            EntryKind::Directory => unreachable!("directories are made elsewhere"),
        }
        self.attributes_at(entry, spot)
    }

    fn file(&mut self, entry: &Entry, spot: &Spot<'_>, data: &mut impl Read) -> Result<(), UnpackError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file =
            rustix::fs::openat(spot.dir, spot.name, flags, Mode::from_raw_mode(0o600)).map_err(UnpackError::os("create", spot.path))?;
        let mut file = File::from(file);
        let failed = |e| UnpackError::io("write", spot.path)(e);
        match &entry.segments {
            None => self.copy(&mut file, data, entry.size, spot.path)?,
            Some(segments) => {
                for &(offset, length) in segments {
                    io::Seek::seek(&mut file, io::SeekFrom::Start(offset)).map_err(failed)?;
                    self.copy(&mut file, data, length, spot.path)?;
                }
                file.set_len(entry.size).map_err(failed)?;
            }
        }
        self.attributes_of(entry, file.as_fd(), spot.path, Some(times(entry)))
    }

    fn copy(&mut self, file: &mut File, data: &mut impl Read, mut left: u64, path: &[u8]) -> Result<(), UnpackError> {
        while left > 0 {
            let most = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = data.read(&mut self.buffer[..most]).map_err(TarError::Io)?;
            if read == 0 {
                return Err(TarError::Io(io::ErrorKind::UnexpectedEof.into()).into());
            }
            file.write_all(&self.buffer[..read]).map_err(UnpackError::io("write", path))?;
            left -= read as u64;
        }
        Ok(())
    }

    fn hard_link(&mut self, entry: &Entry, spot: &Spot<'_>) -> Result<(), UnpackError> {
        let missing = || UnpackError::os("link to", &entry.link)(Errno::NOENT);
        let (parent, name) = self.places.resolve(&entry.link)?.ok_or_else(missing)?;
        let dir = self.places.existing(&parent)?.ok_or_else(missing)?;
        rustix::fs::linkat(&dir, OsStr::from_bytes(&name), spot.dir, spot.name, AtFlags::empty())
            .map_err(UnpackError::os("link to", &entry.link))
    }

    /// `false` if a device may not be made here.
    fn node(&mut self, entry: &Entry, spot: &Spot<'_>) -> Result<bool, UnpackError> {
        let kind = match entry.kind {
            EntryKind::CharDevice => FileType::CharacterDevice,
            EntryKind::BlockDevice => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        let device = rustix::fs::makedev(entry.device.0, entry.device.1);
        match rustix::fs::mknodat(spot.dir, spot.name, kind, Mode::from_raw_mode(entry.mode), device) {
            Err(Errno::PERM) if kind != FileType::Fifo => {
                tracing::warn!(path = ?spot.name, "a device in a layer is left out: it may not be made in this user namespace");
                Ok(false)
            }
            outcome => outcome.map(|()| true).map_err(UnpackError::os("make device", spot.path)),
        }
    }

    fn whiteout(&mut self, entry: &Entry, spot: &Spot<'_>, hidden: &[u8], parent: &[u8]) -> Result<(), UnpackError> {
        if hidden == b".wh..opq" {
            if parent.is_empty() {
                self.outcome.opaque_root = true;
                return Ok(());
            }
            let (dir, _) = self.places.directory(parent)?;
            return self.hide_below(dir.as_fd(), parent);
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(UnpackError::Whiteout { name: Path::new(OsStr::from_bytes(&entry.name)).to_owned() });
        }
        let path = place::join(parent, hidden);
        match self.places.look(spot.dir, hidden, &path)? {
            Existing::Nothing => {
                let name = OsStr::from_bytes(hidden);
                rustix::fs::mknodat(spot.dir, name, FileType::CharacterDevice, Mode::empty(), 0)
                    .map_err(UnpackError::os("make whiteout", &path))?;
                self.own_at(entry, spot.dir, name, &path)
            }
            // Whiteouts speak of what is below. What this layer itself has put here stays, and shows nothing from below.
            Existing::Directory => {
                let (dir, _) = self.places.directory(&path)?;
                self.hide_below(dir.as_fd(), &path)
            }
            Existing::Whiteout | Existing::Other => Ok(()),
        }
    }

    fn hide_below(&mut self, dir: BorrowedFd<'_>, path: &[u8]) -> Result<(), UnpackError> {
        self.outcome.opaque = true;
        // Through the name in /proc, since the directory may be open for its path only.
        let by_fd = place::by_fd(dir);
        rustix::fs::setxattr(&by_fd, self.opaque_name, b"y", XattrFlags::empty()).map_err(UnpackError::os("make opaque", path))
    }

    /// Owner, attributes, mode and times, in the order in which the kernel does not undo them.
    fn attributes_of(&mut self, entry: &Entry, file: BorrowedFd<'_>, path: &[u8], times: Option<Timestamps>) -> Result<(), UnpackError> {
        let (uid, gid) = owner(entry);
        self.owned(rustix::fs::fchown(file, uid, gid), entry, path)?;
        for (name, value) in wanted_xattrs(entry) {
            ignore_unsupported(rustix::fs::fsetxattr(file, OsStr::from_bytes(name), value, XattrFlags::empty()), entry.kind, name)
                .map_err(UnpackError::os("set attributes of", path))?;
        }
        rustix::fs::fchmod(file, Mode::from_raw_mode(entry.mode)).map_err(UnpackError::os("change mode of", path))?;
        times.map_or(Ok(()), |times| rustix::fs::futimens(file, &times)).map_err(UnpackError::os("set times of", path))
    }

    fn own_at(&mut self, entry: &Entry, dir: BorrowedFd<'_>, name: &OsStr, path: &[u8]) -> Result<(), UnpackError> {
        let (uid, gid) = owner(entry);
        self.owned(rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW), entry, path)
    }

    /// An owner that a user namespace of few ids does not have is its root.
    fn owned(&mut self, outcome: Result<(), Errno>, entry: &Entry, path: &[u8]) -> Result<(), UnpackError> {
        match outcome {
            Err(Errno::INVAL) if entry.uid != u32::MAX && entry.gid != u32::MAX => {
                if !std::mem::replace(&mut self.squashed, true) {
                    let path = String::from_utf8_lossy(path);
                    tracing::warn!(%path, uid = entry.uid, gid = entry.gid, "files of owners that this user namespace does not have are given to root");
                }
                Ok(())
            }
            outcome => outcome.map_err(UnpackError::os("change owner of", path)),
        }
    }

    fn attributes_at(&mut self, entry: &Entry, spot: &Spot<'_>) -> Result<(), UnpackError> {
        self.own_at(entry, spot.dir, spot.name, spot.path)?;
        let by_name = Path::new(&place::by_fd(spot.dir)).join(spot.name);
        for (name, value) in wanted_xattrs(entry) {
            ignore_unsupported(rustix::fs::lsetxattr(&by_name, OsStr::from_bytes(name), value, XattrFlags::empty()), entry.kind, name)
                .map_err(UnpackError::os("set attributes of", spot.path))?;
        }
        let stat = rustix::fs::statat(spot.dir, spot.name, AtFlags::SYMLINK_NOFOLLOW).map_err(UnpackError::os("look at", spot.path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            rustix::fs::chmodat(spot.dir, spot.name, Mode::from_raw_mode(entry.mode), AtFlags::empty())
                .map_err(UnpackError::os("change mode of", spot.path))?;
        }
        rustix::fs::utimensat(spot.dir, spot.name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(UnpackError::os("set times of", spot.path))
    }

    fn finish(mut self) -> Result<Unpacked, UnpackError> {
        for (path, times) in std::mem::take(&mut self.directories) {
            // It may have been replaced since.
            if let Some(dir) = self.places.existing(&path)? {
                rustix::fs::utimensat(&dir, ".", &times, AtFlags::empty()).map_err(UnpackError::os("set times of", &path))?;
            }
        }
        Ok(self.outcome)
    }
}

fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
}

/// Not those that only an administrator may give, nor those by which overlay knows its own.
fn wanted_xattrs(entry: &Entry) -> impl Iterator<Item = (&[u8], &[u8])> {
    let foreign = |name: &[u8]| !name.starts_with(b"trusted.") && !name.starts_with(b"user.overlay.") && name != b"security.selinux";
    entry.xattrs.iter().map(|(name, value)| (name.as_slice(), value.as_slice())).filter(move |(name, _)| foreign(name))
}

/// Some file systems and kinds of files have no attributes, or not these.
fn ignore_unsupported(outcome: Result<(), Errno>, kind: EntryKind, name: &[u8]) -> Result<(), Errno> {
    let has_user_attributes = matches!(kind, EntryKind::File | EntryKind::Directory | EntryKind::HardLink);
    match outcome {
        Err(Errno::NOTSUP) => Ok(()),
        Err(Errno::PERM) if name.starts_with(b"user.") && !has_user_attributes => Ok(()),
        outcome => outcome,
    }
}

/// Times before 1970 or beyond what 64 bits of nanoseconds hold become 1970.
fn times(entry: &Entry) -> Timestamps {
    let bound = |(seconds, nanos): (i64, u32)| match seconds {
        0..9_223_372_036 => Timespec { tv_sec: seconds, tv_nsec: nanos.into() },
        _ => Timespec { tv_sec: 0, tv_nsec: 0 },
    };
    let access = entry.atime.map_or(entry.mtime, |atime| atime.max(entry.mtime));
    Timestamps { last_access: bound(access), last_modification: bound(entry.mtime) }
}
