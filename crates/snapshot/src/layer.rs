//! One directory of a stack, and safe access to what is in it.
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::{TreeId, rel, xattr};

/// Beside a kept draft's content: other trees have inodes of it.
pub(crate) const LINKED: &str = "linked";

#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) id: TreeId,
    /// The content. The store's root is canonical, so that no symbolic link is on the way there.
    pub(crate) fs: PathBuf,
    /// A committed tree; else a draft, whose files may change later.
    pub(crate) committed: bool,
    /// Small directories of a committed tree, as far as they were asked for.
    listings: Mutex<HashMap<Vec<u8>, Listing>>,
    /// How many names all listings of a store have.
    names: Arc<AtomicUsize>,
    /// Of a draft: that files of it are linked into other trees has been written down.
    pub(crate) marked: AtomicBool,
}

/// What is remembered of a directory.
#[derive(Debug)]
enum Listing {
    /// Its names, sorted.
    Small(Box<[Box<[u8]>]>),
    /// Too many to keep.
    Large,
}

/// More names are not kept.
const SMALL: usize = 64;
/// Of how many directories of one tree listings are kept.
const LISTINGS: usize = 256;

impl Layer {
    pub(crate) fn new(id: TreeId, fs: PathBuf, committed: bool) -> Self {
        Self { id, fs, committed, listings: Mutex::default(), names: Arc::default(), marked: AtomicBool::new(committed) }
    }

    /// A committed tree whose remembered names are counted in `names`.
    pub(crate) fn tree(id: TreeId, fs: PathBuf, names: Arc<AtomicUsize>) -> Self {
        let mut tree = Self::new(id, fs, true);
        tree.names = names;
        tree
    }

    /// Stands for the root of an empty stack.
    pub(crate) fn none() -> Arc<Self> {
        let id = TreeId::NONE;
        Arc::new(Self::new(id, PathBuf::new(), true))
    }

    /// A directory by itself.
    pub(crate) fn at(fs: &Path) -> Self {
        Self::new(TreeId::NONE, fs.to_owned(), false)
    }

    /// A kept draft.
    pub(crate) fn is_cell(&self) -> bool {
        self.fs.ancestors().nth(2).and_then(|dir| dir.file_name()) == Some(OsStr::new("cells"))
    }

    /// Writes down that inodes of this draft are in other trees now, so that no one may write to it without parting first.
    pub(crate) fn mark_linked(&self) -> Result<(), Errno> {
        let mark = self.fs.with_file_name(LINKED);
        rustix::fs::open(mark, OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)?;
        self.marked.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// False only if the directory `path`, which must be one here, is without `name`.
    pub(crate) fn may_have(&self, path: &[u8], name: &[u8]) -> Result<bool, Errno> {
        if !self.committed {
            return Ok(true);
        }
        let known = || self.listings.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(listing) = known().get(path) {
            return Ok(listing.may_have(name));
        }
        let (mut names, mut count) = (Vec::new(), 0);
        self.list(path, |name| {
            count += 1;
            if count <= SMALL {
                names.push(Box::from(name));
            }
        })?;
        names.sort_unstable();
        let listing = if count <= SMALL { Listing::Small(names.into()) } else { Listing::Large };
        let may_have = listing.may_have(name);
        let mut known = known();
        if known.len() < LISTINGS {
            self.names.fetch_add(listing.len(), Ordering::Relaxed);
            let before = known.insert(path.to_vec(), listing);
            self.names.fetch_sub(before.map_or(0, |listing| listing.len()), Ordering::Relaxed);
        }
        Ok(may_have)
    }

    /// Calls `each` for every name in a directory.
    pub(crate) fn list(&self, path: &[u8], mut each: impl FnMut(&[u8])) -> Result<(), Errno> {
        // A descriptor of its own: listing moves the position.
        let handle = self.open_dir(path)?;
        let mut buffer = Vec::with_capacity(32 * 1024);
        let mut entries = RawDir::new(handle, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                each(name);
            }
        }
        Ok(())
    }

    /// Opens the directory `path` for listing, without following any symbolic link.
    pub(crate) fn open_dir(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC)
    }

    pub(crate) fn open_file(&self, path: &[u8]) -> io::Result<File> {
        // NONBLOCK: a fifo that took the file's place must not hang us.
        Ok(self.open_at(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK)?.into())
    }

    fn open_at(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        // Reading a tree must not write to the disk; only the owner of a file may ask for that.
        let mut flags = flags | OFlags::NOFOLLOW | OFlags::NOATIME;
        let full = self.fs.join(OsStr::from_bytes(path));
        loop {
            match rustix::fs::openat2(CWD, &full, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::PERM) if flags.contains(OFlags::NOATIME) => flags.remove(OFlags::NOATIME),
                // Old kernels, and sandboxes that do not know the call.
                Err(Errno::NOSYS | Errno::PERM) => return self.open_by_parts(path, flags),
                other => return other,
            }
        }
    }

    fn open_by_parts(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let Some((dir, name)) = rel::split(path) else { return rustix::fs::open(&self.fs, flags, Mode::empty()) };
        let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut at = rustix::fs::open(&self.fs, step, Mode::empty())?;
        for part in dir.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
            at = rustix::fs::openat(&at, part, step, Mode::empty())?;
        }
        rustix::fs::openat(&at, name, flags, Mode::empty())
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        let listings = self.listings.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.names.fetch_sub(listings.values().map(Listing::len).sum(), Ordering::Relaxed);
    }
}

impl Listing {
    /// The directory itself counts too.
    fn len(&self) -> usize {
        match self {
            Self::Small(names) => names.len() + 1,
            Self::Large => 1,
        }
    }

    fn may_have(&self, name: &[u8]) -> bool {
        match self {
            Self::Small(names) => names.binary_search_by(|known| (**known).cmp(name)).is_ok(),
            Self::Large => true,
        }
    }
}

/// Opens the file `name` of a directory for reading, without following it.
pub(crate) fn open_in(dir: impl AsFd, name: &[u8]) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(&dir, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => rustix::fs::openat(&dir, name, flags, Mode::empty()),
        other => other,
    };
    Ok(file?.into())
}

pub(crate) fn stat(dir: impl AsFd, name: &[u8]) -> Result<Option<Stat>, Errno> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// A path that names `name` in `dir` for the calls that take no directory descriptor. Not to be resolved further than its last part.
pub(crate) fn proc_path(dir: impl AsFd, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(if name.is_empty() { b"." } else { name });
    path
}

pub(crate) fn is_opaque(dir: impl AsFd) -> Result<bool, Errno> {
    for name in xattr::OPAQUE {
        let mut value = [0_u8; 4];
        match rustix::fs::fgetxattr(&dir, name, &mut value[..]) {
            Ok(1) if value[0] == b'y' => return Ok(true),
            Ok(_) | Err(Errno::NODATA | Errno::RANGE | Errno::NOTSUP | Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(false)
}
