//! Walks a directory in the protocol's order: by path components, parents before children.
use std::collections::HashMap;
use std::fs::{DirEntry, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use patterns::Parent;
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
    let metadata = std::fs::metadata(root).map_err(|source| WalkError::Io { path: root.to_owned(), source })?;
    if !metadata.is_dir() {
        return Err(WalkError::Io {
            path: root.to_owned(),
            source: io::Error::from_raw_os_error(rustix::io::Errno::NOTDIR.raw_os_error()),
        });
    }
    let mut walk = Walk { root, filter, inodes: HashMap::new(), open: Vec::new(), found: &mut found };
    walk.directory("", &(Parent::default(), Parent::default()))
}

struct Walk<'a, F> {
    root: &'a Path,
    filter: &'a Filter,
    /// First path of each file with several links.
    inodes: HashMap<(u64, u64), String>,
    /// Directories on the way down that were not let through by themselves and are shown only if something in them is.
    open: Vec<Option<Stat>>,
    found: &'a mut F,
}

impl<F: FnMut(Stat) -> Result<(), WalkError>> Walk<'_, F> {
    fn directory(&mut self, directory: &str, above: &(Parent, Parent)) -> Result<(), WalkError> {
        let place = self.root.join(directory);
        let read = |source| WalkError::Io { path: place.clone(), source };
        let entries = match std::fs::read_dir(&place) {
            // Gone since it was seen.
            Err(e) if e.kind() == io::ErrorKind::NotFound && !directory.is_empty() => return Ok(()),
            entries => entries.map_err(read)?,
        };
        let mut entries = entries.collect::<io::Result<Vec<DirEntry>>>().map_err(read)?;
        entries.sort_unstable_by(|a, b| a.file_name().as_bytes().cmp(b.file_name().as_bytes()));
        for entry in entries {
            self.entry(directory, &entry, above)?;
        }
        Ok(())
    }

    fn entry(&mut self, directory: &str, entry: &DirEntry, above: &(Parent, Parent)) -> Result<(), WalkError> {
        let name = entry.file_name();
        let name = name.to_str().ok_or_else(|| WalkError::Name { path: entry.path() })?;
        let path = if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") };
        let failed = |source| WalkError::Io { path: entry.path(), source };
        let is_dir = entry.file_type().map_err(failed)?.is_dir();
        let (verdict, below) = self.filter.judge(&path, is_dir, above)?;
        if verdict == Verdict::Skip {
            return Ok(());
        }
        if verdict == Verdict::Pass && !is_dir {
            return Ok(());
        }
        let metadata = match entry.metadata() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            metadata => metadata.map_err(failed)?,
        };
        let stat = self.stat(&path, &entry.path(), &metadata).map_err(failed)?;
        if verdict == Verdict::Take {
            for above in &mut self.open {
                if let Some(stat) = above.take() {
                    (self.found)(stat)?;
                }
            }
            (self.found)(stat.clone())?;
        }
        if is_dir {
            self.open.push((verdict == Verdict::Pass).then_some(stat));
            self.directory(&path, &below)?;
            self.open.pop();
        }
        Ok(())
    }

    fn stat(&mut self, path: &str, place: &Path, metadata: &Metadata) -> io::Result<Stat> {
        let mode = go_mode::from_posix(metadata.mode()) & !go_mode::SOCKET;
        let mut stat = Stat {
            path: path.to_owned(),
            mode,
            size: if metadata.is_dir() { 0 } else { metadata.len() as i64 },
            mod_time: metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec()),
            xattrs: xattrs(place)?,
            ..Stat::default()
        };
        if mode & go_mode::SYMLINK != 0 {
            let target = std::fs::read_link(place)?;
            stat.linkname = target.into_os_string().into_string().map_err(|_| io::Error::other("the link's target is not UTF-8"))?;
        }
        if mode & go_mode::DEVICE != 0 {
            stat.devmajor = rustix::fs::major(metadata.rdev()).into();
            stat.devminor = rustix::fs::minor(metadata.rdev()).into();
        }
        if !metadata.is_dir() && metadata.nlink() > 1 {
            match self.inodes.entry((metadata.dev(), metadata.ino())) {
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

fn xattrs(path: &Path) -> io::Result<std::collections::BTreeMap<String, bytes::Bytes>> {
    use rustix::io::Errno;
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
