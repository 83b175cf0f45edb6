//! Mount points that a container made in its root: they are no part of the result, unless the step put something there.
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use rustix::io::Errno;

/// Removes each stub below `root` that is still an empty file or directory; children come before parents. The parents' times stay. The step may have put
/// links in the way, so nothing is followed.
pub fn remove(root: &Path, stubs: &[PathBuf]) -> io::Result<()> {
    if stubs.is_empty() {
        return Ok(());
    }
    let dir_flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, dir_flags, Mode::empty())?;
    for stub in stubs {
        let relative = stub.strip_prefix("/").unwrap_or(stub);
        let (Some(parent), Some(name)) = (relative.parent(), relative.file_name()) else { continue };
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let parent = match rustix::fs::openat2(&root, parent, dir_flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS) {
            Ok(parent) => parent,
            // The step removed or replaced it, or it was never copied up.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            Err(errno) => return Err(errno.into()),
        };
        let stat = match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno.into()),
        };
        let before = rustix::fs::fstat(&parent)?;
        let removed = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR),
            FileType::RegularFile if stat.st_size == 0 => rustix::fs::unlinkat(&parent, name, AtFlags::empty()),
            _ => continue,
        };
        match removed {
            Ok(()) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => continue,
            Err(errno) => return Err(errno.into()),
        }
        let time = |seconds: i64, nanos| Timespec { tv_sec: seconds, tv_nsec: nanos };
        let times = Timestamps {
            last_access: time(before.st_atime, before.st_atime_nsec as i64),
            last_modification: time(before.st_mtime, before.st_mtime_nsec as i64),
        };
        rustix::fs::futimens(parent.as_fd(), &times)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn removes_what_is_empty_and_follows_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir_all(outside.join("empty")).unwrap();
        fs::create_dir(root.join("kept")).unwrap();
        fs::write(root.join("kept/file"), "x").unwrap();
        fs::write(root.join("stub"), "").unwrap();
        std::os::unix::fs::symlink(&outside, root.join("link")).unwrap();
        let stubs = ["/a/b", "/a", "/kept", "/stub", "/link/empty", "/never/was"].map(PathBuf::from);
        remove(&root, &stubs).unwrap();
        assert!(!root.join("a").exists() && !root.join("stub").exists());
        assert!(root.join("kept/file").exists() && outside.join("empty").exists());
    }
}
