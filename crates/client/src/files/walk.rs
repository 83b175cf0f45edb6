//! Walks a directory in the protocol's order: by path components, parents before children.
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use patterns::Parent;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat as Metadata};
use rustix::io::Errno;
use session::{Stat, go_mode};

use super::filter::{Filter, Verdict};

#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    #[error("cannot read {}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("the name of {} is not UTF-8, which the protocol cannot carry", path.display())]
    Name { path: PathBuf },
    #[error(transparent)]
    Pattern(#[from] patterns::MatcherError),
    #[error("the receiver is gone")]
    Stopped,
}

/// Calls `found` for everything below `root` that `filter` lets through, with the directories above it. Owners are shown as root. Blocking.
pub fn walk(root: &Path, filter: &Filter, mut found: impl FnMut(Stat) -> Result<(), WalkError>) -> Result<(), WalkError> {
    let failed = |source| WalkError::Io { path: root.to_owned(), source };
    let handle = open(CWD, root, OFlags::empty()).map_err(|e| failed(e.into()))?;
    let mut walk = Walk { place: root.to_owned(), filter, inodes: HashMap::new(), open: Vec::new(), found: &mut found };
    walk.directory("", &handle, &(Parent::default(), Parent::default()))
}

struct Walk<'a, F> {
    /// Where it is now, from the root on.
    place: PathBuf,
    filter: &'a Filter,
    /// First path of each file with several links.
    inodes: HashMap<(u64, u64), String>,
    /// Directories on the way down that were not let through by themselves and are shown only if something in them is.
    open: Vec<Option<Stat>>,
    found: &'a mut F,
}

impl<F: FnMut(Stat) -> Result<(), WalkError>> Walk<'_, F> {
    fn directory(&mut self, directory: &str, handle: &OwnedFd, above: &(Parent, Parent)) -> Result<(), WalkError> {
        let mut entries = entries(handle).map_err(|e| self.failed(e))?;
        entries.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        for (name, kind) in entries {
            self.place.push(OsStr::from_bytes(&name));
            let name = String::from_utf8(name).map_err(|_| WalkError::Name { path: self.place.clone() })?;
            let path = if directory.is_empty() { name.clone() } else { format!("{directory}/{name}") };
            self.entry(path, handle, &name, kind, above)?;
            self.place.pop();
        }
        Ok(())
    }

    fn entry(&mut self, path: String, at: &OwnedFd, name: &str, kind: FileType, above: &(Parent, Parent)) -> Result<(), WalkError> {
        let mut metadata = None;
        let mut is_dir = kind == FileType::Directory;
        // Not all file systems say so in a listing.
        if kind == FileType::Unknown {
            let Some(found) = self.look(at, name)? else { return Ok(()) };
            is_dir = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
            metadata = Some(found);
        }
        let (verdict, below) = self.filter.judge(&path, is_dir, above)?;
        if verdict == Verdict::Skip || verdict == Verdict::Pass && !is_dir {
            return Ok(());
        }
        let Some(metadata) = (if metadata.is_some() { metadata } else { self.look(at, name)? }) else { return Ok(()) };
        let stat = self.stat(&path, at, name, &metadata).map_err(|e| self.failed(e))?;
        let mut held = None;
        if verdict == Verdict::Take {
            for stat in self.open.iter_mut().filter_map(Option::take) {
                (self.found)(stat)?;
            }
            (self.found)(stat)?;
        } else {
            held = Some(stat);
        }
        if is_dir {
            let handle = match open(at, name, OFlags::NOFOLLOW) {
                // Gone since it was seen.
                Err(Errno::NOENT) => return Ok(()),
                handle => handle.map_err(|e| self.failed(e.into()))?,
            };
            self.open.push(held);
            self.directory(&path, &handle, &below)?;
            self.open.pop();
        }
        Ok(())
    }

    /// `None` if it is gone since it was listed.
    fn look(&self, at: &OwnedFd, name: &str) -> Result<Option<Metadata>, WalkError> {
        match rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(metadata) => Ok(Some(metadata)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(self.failed(e.into())),
        }
    }

    fn failed(&self, source: io::Error) -> WalkError {
        WalkError::Io { path: self.place.clone(), source }
    }

    fn stat(&mut self, path: &str, at: &OwnedFd, name: &str, metadata: &Metadata) -> io::Result<Stat> {
        let mode = go_mode::from_posix(metadata.st_mode) & !go_mode::SOCKET;
        let is_dir = mode & go_mode::DIR != 0;
        let mut stat = Stat {
            path: path.to_owned(),
            mode,
            size: if is_dir { 0 } else { metadata.st_size },
            mod_time: metadata.st_mtime.saturating_mul(1_000_000_000).saturating_add_unsigned(metadata.st_mtime_nsec),
            xattrs: xattrs(&self.place)?,
            ..Stat::default()
        };
        if mode & go_mode::SYMLINK != 0 {
            let target = rustix::fs::readlinkat(at, name, Vec::new())?;
            stat.linkname = target.into_string().map_err(|_| io::Error::other("the link's target is not UTF-8"))?;
        }
        if mode & go_mode::DEVICE != 0 {
            stat.devmajor = rustix::fs::major(metadata.st_rdev).into();
            stat.devminor = rustix::fs::minor(metadata.st_rdev).into();
        }
        if !is_dir && metadata.st_nlink > 1 {
            match self.inodes.entry((metadata.st_dev, metadata.st_ino)) {
                std::collections::hash_map::Entry::Occupied(first) => {
                    stat.linkname = first.get().clone();
                    stat.size = 0;
                }
                std::collections::hash_map::Entry::Vacant(place) => {
                    place.insert(path.to_owned());
                }
            }
        }
        Ok(stat)
    }
}

fn open(at: impl AsFd, path: impl rustix::path::Arg, more: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(at, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | more, Mode::empty())
}

/// Names in a directory, in no order.
fn entries(handle: &OwnedFd) -> io::Result<Vec<(Vec<u8>, FileType)>> {
    let mut entries = Vec::new();
    for entry in Dir::read_from(handle)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            entries.push((name.to_vec(), entry.file_type()));
        }
    }
    Ok(entries)
}

fn xattrs(path: &Path) -> io::Result<std::collections::BTreeMap<String, bytes::Bytes>> {
    let mut names = [0u8; 4096];
    let mut large = Vec::new();
    let listed = match rustix::fs::llistxattr(path, &mut names) {
        Ok(length) => &names[..length],
        Err(Errno::NOTSUP | Errno::NOENT) => return Ok(Default::default()),
        Err(Errno::RANGE) => {
            large.resize(64 << 10, 0);
            let length = rustix::fs::llistxattr(path, &mut large[..])?;
            &large[..length]
        }
        Err(e) => return Err(e.into()),
    };
    let mut found = std::collections::BTreeMap::new();
    for name in listed.split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let Ok(name) = std::str::from_utf8(name) else { continue };
        if name.starts_with("com.apple.") {
            continue;
        }
        let mut value = vec![0u8; 64 << 10];
        if let Ok(length) = rustix::fs::lgetxattr(path, name, &mut value[..]) {
            value.truncate(length);
            found.insert(name.to_owned(), value.into());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(root: &Path, include: &[&str], exclude: &[&str], follow: &[&str]) -> Vec<String> {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let filter = Filter::new(root, &own(include), &own(exclude), &own(follow)).unwrap();
        let mut found = Vec::new();
        walk(root, &filter, |stat| {
            found.push(stat.path);
            Ok(())
        })
        .unwrap();
        found
    }

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, file).unwrap();
        }
        root
    }

    #[test]
    fn order_is_by_components() {
        let root = tree(&["a/x", "a-b", "a.c/y", "b"]);
        assert_eq!(paths(root.path(), &[], &[], &[]), ["a", "a/x", "a-b", "a.c", "a.c/y", "b"]);
    }

    #[test]
    fn excludes_and_exceptions() {
        let root = tree(&["a/keep/x", "a/drop", "b/c", "d"]);
        assert_eq!(paths(root.path(), &[], &["a", "!a/keep", "d"], &[]), ["a", "a/keep", "a/keep/x", "b", "b/c"]);
        assert_eq!(paths(root.path(), &[], &["*", "!b/c"], &[]), ["b", "b/c"]);
        assert_eq!(paths(root.path(), &[], &["**/x"], &[]), ["a", "a/drop", "a/keep", "b", "b/c", "d"]);
    }

    #[test]
    fn includes_show_the_directories_above_what_they_take() {
        let root = tree(&["a/b/c", "a/b/d", "a/e", "f/g"]);
        assert_eq!(paths(root.path(), &["a/b/c"], &[], &[]), ["a", "a/b", "a/b/c"]);
        assert_eq!(paths(root.path(), &["**/g"], &[], &[]), ["f", "f/g"]);
        assert_eq!(paths(root.path(), &["a"], &["a/b"], &[]), ["a", "a/e"]);
        assert_eq!(paths(root.path(), &["nothing"], &[], &[]), [""; 0]);
    }

    #[test]
    fn followed_links_bring_their_targets() {
        let root = tree(&["real/x", "other"]);
        std::os::unix::fs::symlink("real", root.path().join("link")).unwrap();
        std::os::unix::fs::symlink("/link", root.path().join("again")).unwrap();
        assert_eq!(paths(root.path(), &[], &[], &["again/x"]), ["again", "link", "real", "real/x"]);
        assert_eq!(paths(root.path(), &[], &[], &["oth*"]), ["other"]);
        assert_eq!(paths(root.path(), &[], &[], &["/"]).len(), 5, "following the root is no filter");
        std::os::unix::fs::symlink("loop", root.path().join("loop")).unwrap();
        assert_eq!(paths(root.path(), &[], &[], &["loop/x"]), ["loop"]);
    }

    #[test]
    fn what_a_stat_says() {
        use std::os::unix::fs::PermissionsExt as _;
        let root = tree(&["a", "z"]);
        std::fs::hard_link(root.path().join("a"), root.path().join("b")).unwrap();
        std::os::unix::fs::symlink("a", root.path().join("c")).unwrap();
        std::fs::set_permissions(root.path().join("z"), std::fs::Permissions::from_mode(0o4755)).unwrap();
        let mut stats = Vec::new();
        let all = Filter::new(root.path(), &[], &[], &[]).unwrap();
        walk(root.path(), &all, |stat| {
            stats.push(stat);
            Ok(())
        })
        .unwrap();
        let [a, b, c, z] = stats.as_slice() else { panic!("{stats:?}") };
        assert!(a.size == 1 && a.linkname.is_empty() && a.mod_time > 0 && a.uid == 0);
        assert_eq!((b.linkname.as_str(), b.size), ("a", 0));
        assert!(c.linkname == "a" && c.mode & go_mode::SYMLINK != 0);
        assert_eq!(z.mode, go_mode::SETUID | 0o755);
    }
}
