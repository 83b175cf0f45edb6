//! Paths inside a root that is not ours yet: no symlink and no `..` leads out of it.
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;

const MAX_LINKS: usize = 255;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    Directory,
    File,
}

/// Something found or made by [`ensure`].
#[derive(Debug)]
pub(crate) struct Made {
    pub fd: OwnedFd,
    /// What had to be created, outermost first, as absolute paths in the root with all symlinks resolved.
    pub created: Vec<PathBuf>,
}

/// Opens without following anything out of `root`. The descriptor is for use as a place only, unless `flags` say more.
pub(crate) fn open_in(root: BorrowedFd<'_>, path: impl AsRef<Path>, flags: OFlags) -> Result<OwnedFd, Errno> {
    let relative = path.as_ref().as_os_str().as_bytes();
    let relative = OsStr::from_bytes(match relative.iter().position(|b| *b != b'/') {
        Some(start) => &relative[start..],
        None => b".",
    });
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(root, relative, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // The kernel saw a rename go on and cannot promise.
            Err(Errno::AGAIN) => {}
            outcome => return outcome,
        }
    }
}

/// Opens what `path` names inside `root`, first making what is missing: directories on the way with mode 0755, the last one as `want`
/// says. Dangling symlinks are followed, so what they name is made.
pub(crate) fn ensure(root: BorrowedFd<'_>, path: &Path, want: Want) -> Result<Made, Errno> {
    if let Ok(fd) = open_in(root, path, OFlags::PATH) {
        return Ok(Made { fd, created: Vec::new() });
    }
    // Directories from the root to where we are, with their names; names still to go, in reverse.
    let mut here: Vec<(OwnedFd, Vec<u8>)> = Vec::new();
    let mut todo: Vec<Vec<u8>> = names(path.as_os_str().as_bytes());
    let mut created = Vec::new();
    let mut links = 0;
    while let Some(name) = todo.pop() {
        if name == b".." {
            here.pop();
            continue;
        }
        let parent = here.last().map_or(root, |(fd, _)| fd.as_fd());
        let text = OsStr::from_bytes(&name);
        let fd = match open_child(parent, text) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => {
                let before = rustix::fs::fstat(parent)?;
                let made = if todo.is_empty() && want == Want::File {
                    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
                    rustix::fs::openat(parent, text, flags, Mode::from_raw_mode(0o755)).map(drop)
                } else {
                    rustix::fs::mkdirat(parent, text, Mode::from_raw_mode(0o755))
                };
                match made {
                    Ok(()) => {
                        keep_times(parent, &before)?;
                        created.push(absolute(&here, &name));
                    }
                    // Another container that has the same cache mounted was quicker.
                    Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno),
                }
                open_child(parent, text)?
            }
            Err(errno) => return Err(errno),
        };
        match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
            FileType::Symlink => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP);
                }
                let target = rustix::fs::readlinkat(&fd, "", Vec::new())?.into_bytes();
                if target.starts_with(b"/") {
                    here.clear();
                }
                todo.extend(names(&target));
            }
            FileType::Directory => here.push((fd, name)),
            _ if todo.is_empty() => return Ok(Made { fd, created }),
            _ => return Err(Errno::NOTDIR),
        }
    }
    let fd = match here.pop() {
        Some((fd, _)) => fd,
        None => rustix::fs::openat(root, ".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?,
    };
    Ok(Made { fd, created })
}

/// Crosses mount points, follows nothing.
fn open_child(parent: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// A mount point is no change of the directory that it is in.
fn keep_times(dir: BorrowedFd<'_>, before: &Stat) -> Result<(), Errno> {
    let time = |seconds: i64, nanos| Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = Timestamps {
        last_access: time(before.st_atime, before.st_atime_nsec as i64),
        last_modification: time(before.st_mtime, before.st_mtime_nsec as i64),
    };
    rustix::fs::utimensat(dir, ".", &times, AtFlags::empty())
}

fn names(path: &[u8]) -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = path.split(|b| *b == b'/').filter(|name| !name.is_empty() && *name != b".").map(<[u8]>::to_vec).collect();
    names.reverse();
    names
}

fn absolute(here: &[(OwnedFd, Vec<u8>)], name: &[u8]) -> PathBuf {
    let mut path = Vec::new();
    for part in here.iter().map(|(_, name)| name.as_slice()).chain([name]) {
        path.push(b'/');
        path.extend_from_slice(part);
    }
    PathBuf::from(std::ffi::OsString::from_vec(path))
}

/// Reads a regular file of at most `limit` bytes inside `root`.
pub(crate) fn read_in(root: BorrowedFd<'_>, path: &str, limit: u64) -> io::Result<Vec<u8>> {
    use std::io::Read as _;
    let fd = open_in(root, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
    if !FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode).is_file() {
        return Err(io::Error::other(format!("{path} is not a regular file")));
    }
    let mut data = Vec::new();
    std::fs::File::from(fd).take(limit + 1).read_to_end(&mut data)?;
    if data.len() as u64 > limit {
        return Err(io::Error::other(format!("{path:?} exceeds {limit} bytes")));
    }
    Ok(data)
}

pub(crate) fn open_dir(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

pub(crate) fn is_dir(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::statat(fd, "", AtFlags::EMPTY_PATH).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_containers_make_the_same_places() {
        let dir = tempfile::tempdir().unwrap();
        let root = open_dir(dir.path()).unwrap();
        let start = std::sync::Barrier::new(4);
        let made: usize = std::thread::scope(|scope| {
            let make = || {
                let ensure = |n: usize, want| ensure(root.as_fd(), Path::new(&format!("/{n}/place")), want).unwrap().created.len();
                (0..200).map(|n| (start.wait(), ensure(n, if n % 2 == 0 { Want::Directory } else { Want::File })).1).sum()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(make)).collect();
            threads.into_iter().map(|thread| -> usize { thread.join().unwrap() }).sum()
        });
        assert_eq!(made, 400, "each place is made by one");
    }
}
