//! Finds and makes places in a tree without ever leaving it.
use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::UnpackError;

/// A canonical directory, and a name in it.
pub(crate) type Place = (Vec<u8>, Vec<u8>);

/// Open directories that are kept; then all are closed.
const KEPT: usize = 128;
const MOST_LINKS: usize = 255;
/// As the kernel has it for whole paths.
const LONGEST: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Existing {
    Nothing,
    Directory,
    Whiteout,
    Other,
}

/// Paths here are canonical: relative to the root, without `.`, `..` or a link in them; the root is the empty path.
pub(super) struct Places {
    root: Rc<OwnedFd>,
    open: HashMap<Vec<u8>, Rc<OwnedFd>>,
}

impl Places {
    pub fn new(root: OwnedFd) -> Self {
        Self { root: Rc::new(root), open: HashMap::new() }
    }

    /// The canonical directory and the name that a name in the archive means. Links in the way are followed, as if the root were the root
    /// of the file system. `None` is the root itself.
    pub fn resolve(&mut self, name: &[u8]) -> Result<Option<Place>, UnpackError> {
        let mut components: Vec<&[u8]> = Vec::new();
        for component in name.split(|&b| b == b'/') {
            match component {
                b"" | b"." => {}
                b".." => {
                    components.pop();
                }
                _ => components.push(component),
            }
        }
        let Some((last, parents)) = components.split_last() else { return Ok(None) };
        let fits = |length: usize| if length < LONGEST { Ok(()) } else { Err(UnpackError::Length { length }) };
        fits(name.len())?;
        let parent = self.follow(parents, name)?;
        fits(parent.len() + last.len())?;
        Ok(Some((parent, last.to_vec())))
    }

    fn follow(&mut self, components: &[&[u8]], name: &[u8]) -> Result<Vec<u8>, UnpackError> {
        let mut queue: VecDeque<Vec<u8>> = components.iter().map(|c| c.to_vec()).collect();
        let mut path: Vec<u8> = Vec::new();
        let mut links = 0;
        while let Some(component) = queue.pop_front() {
            match component.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    path.truncate(path.iter().rposition(|&b| b == b'/').unwrap_or(0));
                    continue;
                }
                _ => {}
            }
            let next = join(&path, &component);
            if self.open.contains_key(&next) {
                path = next;
                continue;
            }
            let target = match self.existing(&path)? {
                Some(dir) => rustix::fs::readlinkat(&dir, OsStr::from_bytes(&component), Vec::new()).ok(),
                None => None,
            };
            let Some(target) = target else {
                path = next;
                continue;
            };
            links += 1;
            if links > MOST_LINKS {
                return Err(UnpackError::Links { path: OsStr::from_bytes(name).into() });
            }
            let target = target.into_bytes();
            if target.first() == Some(&b'/') {
                path.clear();
            }
            for component in target.split(|&b| b == b'/').rev() {
                queue.push_front(component.to_vec());
            }
        }
        Ok(path)
    }

    /// Opens a canonical directory if it is there, and a directory.
    pub fn existing(&mut self, path: &[u8]) -> Result<Option<Rc<OwnedFd>>, UnpackError> {
        if path.is_empty() {
            return Ok(Some(self.root.clone()));
        }
        if let Some(dir) = self.open.get(path) {
            return Ok(Some(dir.clone()));
        }
        let (parent, name) = split(path);
        let Some(parent) = self.existing(parent)? else { return Ok(None) };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&parent, OsStr::from_bytes(name), flags, Mode::empty()) {
            Ok(dir) => Ok(Some(self.keep(path, dir))),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => Err(UnpackError::os("open", path)(errno)),
        }
    }

    /// Opens a canonical directory, making what is missing. Also gives what was made.
    pub fn directory(&mut self, path: &[u8]) -> Result<(Rc<OwnedFd>, Vec<Vec<u8>>), UnpackError> {
        if let Some(dir) = self.existing(path)? {
            return Ok((dir, Vec::new()));
        }
        let (parent, name) = split(path);
        let (parent, mut made) = self.directory(parent)?;
        if self.look(parent.as_fd(), name, path)? == Existing::Whiteout {
            self.remove(parent.as_fd(), name, path)?;
        }
        let name = OsStr::from_bytes(name);
        rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)).map_err(|errno| {
            let errno = if errno == Errno::EXIST { Errno::NOTDIR } else { errno };
            UnpackError::os("make directory", path)(errno)
        })?;
        rustix::fs::chmodat(&parent, name, Mode::from_raw_mode(0o755), AtFlags::empty())
            .map_err(UnpackError::os("change mode of", path))?;
        made.push(path.to_vec());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(&parent, name, flags, Mode::empty()).map_err(UnpackError::os("open", path))?;
        Ok((self.keep(path, dir), made))
    }

    pub fn look(&self, dir: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<Existing, UnpackError> {
        let stat = match rustix::fs::statat(dir, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(Existing::Nothing),
            outcome => outcome.map_err(UnpackError::os("look at", path))?,
        };
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Existing::Directory,
            FileType::CharacterDevice if stat.st_rdev == 0 => Existing::Whiteout,
            _ => Existing::Other,
        })
    }

    /// Removes whatever is at a name, with all in it.
    pub fn remove(&mut self, dir: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<(), UnpackError> {
        self.open.retain(|open, _| !is_within(open, path));
        remove_all(dir, OsStr::from_bytes(name)).map_err(UnpackError::os("remove", path))
    }

    fn keep(&mut self, path: &[u8], dir: OwnedFd) -> Rc<OwnedFd> {
        if self.open.len() >= KEPT {
            self.open.clear();
        }
        let dir = Rc::new(dir);
        self.open.insert(path.to_vec(), dir.clone());
        dir
    }
}

fn is_within(path: &[u8], root: &[u8]) -> bool {
    path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

fn remove_all(dir: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        outcome => return outcome,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inner = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    for entry in rustix::fs::Dir::read_from(&inner)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            remove_all(inner.as_fd(), OsStr::from_bytes(name))?;
        }
    }
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}

pub(super) fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// A name for what is only open by its path.
pub(super) fn by_fd(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
