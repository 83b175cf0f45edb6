//! File trees on their way to a client, whatever they are made of.
mod files;
mod layer;
mod merged;
mod split;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fault::{Fault, Result};
use session::{Stat, go_mode};

use crate::tar::{Header, Kind};

pub use files::WithFiles;
pub use layer::{Empty, LayerTree};
pub use merged::Merged;
pub use split::{Directory, Split};

/// Plain blocking code, used by one walk and several readers at a time.
pub trait Tree: Send + Sync {
    /// Visits all entries but the root: parents first, names in byte order, directories with what is in them before the next name. A hard link's first
    /// path comes before the others.
    fn walk(&self, visit: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()>;

    /// Opens a regular file.
    fn open(&self, path: &Path) -> Result<Box<dyn Read + Send>>;
}

pub type Shared = Arc<dyn Tree>;

/// One file, without its content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// Relative and clean.
    pub path: PathBuf,
    /// As in `st_mode`. Sockets appear as empty files, because neither packets nor tars can say what they are.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bytes; 0 for a directory.
    pub size: u64,
    /// Unix nanoseconds.
    pub mtime: i64,
    /// A symbolic link's target, or of a hard link the path that came first.
    pub link: OsString,
    /// Major and minor.
    pub device: (u32, u32),
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
}

const TYPE: u32 = 0o170000;
const SOCKET: u32 = 0o140000;
const SYMLINK: u32 = 0o120000;
const REGULAR: u32 = 0o100000;
const BLOCK_DEVICE: u32 = 0o060000;
const DIRECTORY: u32 = 0o040000;
const CHAR_DEVICE: u32 = 0o020000;
const FIFO: u32 = 0o010000;

impl Entry {
    pub fn directory(path: impl Into<PathBuf>, permissions: u32, mtime: i64) -> Self {
        Self { path: path.into(), mode: DIRECTORY | permissions, mtime, ..Self::default() }
    }

    pub fn file(path: impl Into<PathBuf>, permissions: u32, mtime: i64, size: u64) -> Self {
        Self { path: path.into(), mode: REGULAR | permissions, mtime, size, ..Self::default() }
    }

    pub fn is_dir(&self) -> bool {
        self.mode & TYPE == DIRECTORY
    }

    pub fn is_symlink(&self) -> bool {
        self.mode & TYPE == SYMLINK
    }

    /// Also true for further hard links to a file.
    pub fn is_file(&self) -> bool {
        self.mode & TYPE == REGULAR
    }

    /// As the client's protocol has it, which knows names in UTF-8 only.
    pub fn into_stat(self) -> Result<Stat> {
        let text = |name: OsString| {
            name.into_string()
                .map_err(|n| Fault::invalid(format!("cannot send {}: the file transfer protocol knows UTF-8 names only", n.display())))
        };
        let xattrs = self.xattrs.into_iter().map(|(key, value)| Ok((text(key)?, value.into()))).collect::<Result<_>>()?;
        Ok(Stat {
            path: text(self.path.into_os_string())?,
            mode: go_mode::from_posix(self.mode),
            uid: self.uid,
            gid: self.gid,
            size: i64::try_from(self.size).unwrap_or(i64::MAX),
            mod_time: self.mtime,
            linkname: text(self.link)?,
            devmajor: self.device.0.into(),
            devminor: self.device.1.into(),
            xattrs,
        })
    }

    pub fn into_header(self) -> Header {
        let linked = !self.link.is_empty();
        let kind = match self.mode & TYPE {
            SYMLINK => Kind::Symlink,
            _ if linked => Kind::HardLink,
            DIRECTORY => Kind::Directory,
            CHAR_DEVICE => Kind::CharDevice,
            BLOCK_DEVICE => Kind::BlockDevice,
            FIFO => Kind::Fifo,
            _ => Kind::File,
        };
        let mut name = self.path.into_os_string().into_vec();
        if kind == Kind::Directory {
            name.push(b'/');
        }
        Header {
            kind,
            uid: self.uid,
            gid: self.gid,
            size: if kind == Kind::File { self.size } else { 0 },
            // Rounded as Go rounds: a half goes up.
            mtime: self.mtime.saturating_add(500_000_000).div_euclid(1_000_000_000),
            link: self.link.into_vec(),
            device: self.device,
            xattrs: self.xattrs.into_iter().map(|(key, value)| (key.into_vec(), value)).collect(),
            ..Header::new(name, kind, self.mode & 0o7777)
        }
    }
}

/// `root` joined with a path that may hold `..`, which never leads above `/`; as Go's `path.Join`.
fn join_clean(root: &str, path: &std::ffi::OsStr) -> OsString {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in root.as_bytes().split(|b| *b == b'/').chain(path.as_bytes().split(|b| *b == b'/')) {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let joined = parts.join(&b'/');
    OsString::from_vec(if root.starts_with('/') { [b"/", joined.as_slice()].concat() } else { joined })
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::io::Cursor;

    /// A tree given entry by entry.
    #[derive(Default)]
    pub struct Listed(pub Vec<(Entry, Vec<u8>)>);

    impl Listed {
        pub fn file(mut self, path: &str, data: &[u8]) -> Self {
            self.0.push((Entry::file(path, 0o644, 1_500_000_000, data.len() as u64), data.to_vec()));
            self
        }

        pub fn dir(mut self, path: &str) -> Self {
            self.0.push((Entry::directory(path, 0o755, 0), Vec::new()));
            self
        }

        pub fn link(mut self, path: &str, mode: u32, link: &str) -> Self {
            self.0.push((Entry { mode, link: link.into(), ..Entry::file(path, 0, 0, 0) }, Vec::new()));
            self
        }

        pub fn shared(self) -> Shared {
            Arc::new(self)
        }
    }

    impl Tree for Listed {
        fn walk(&self, visit: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
            self.0.iter().try_for_each(|(entry, _)| visit(entry.clone()))
        }

        fn open(&self, path: &Path) -> Result<Box<dyn Read + Send>> {
            let found =
                self.0.iter().find(|(entry, _)| entry.path == path).ok_or_else(|| Fault::new(fault::Kind::NotFound, "no such file"))?;
            Ok(Box::new(Cursor::new(found.1.clone())))
        }
    }

    pub fn paths(tree: &dyn Tree) -> Vec<String> {
        let mut found = Vec::new();
        tree.walk(&mut |entry| {
            found.push(entry.path.display().to_string());
            Ok(())
        })
        .unwrap();
        found
    }

    pub fn content(tree: &dyn Tree, path: &str) -> String {
        let mut text = String::new();
        tree.open(Path::new(path)).unwrap().read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn links_are_joined_and_stay_inside() {
        for (root, path, want) in [("/r", "/../a", "/a"), ("/r", "/b", "/r/b"), ("r", "a/b", "r/a/b"), ("r", "a//./b", "r/a/b")] {
            assert_eq!(join_clean(root, path.as_ref()), want);
        }
    }

    #[test]
    fn entries_become_packets_and_headers() {
        let entry = Entry { mode: REGULAR | 0o4755, mtime: 1_500_000_000, size: 3, ..Entry::file("a", 0, 0, 0) };
        let stat = entry.clone().into_stat().unwrap();
        assert_eq!((stat.mode, stat.size), (go_mode::SETUID | 0o755, 3));
        let header = entry.clone().into_header();
        assert_eq!((header.kind, header.mode, header.mtime, header.size), (Kind::File, 0o4755, 2, 3));
        let linked = Entry { link: "b".into(), ..entry }.into_header();
        assert_eq!((linked.kind, linked.size), (Kind::HardLink, 0));
        assert_eq!(Entry::directory("d", 0o755, 0).into_header().name, b"d/");
        let odd = Entry::file(OsString::from_vec(vec![0xff]), 0, 0, 0).into_stat().unwrap_err();
        assert!(odd.to_string().contains("UTF-8 names only"), "{odd}");
    }
}
