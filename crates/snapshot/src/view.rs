use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use crate::layer::{self, Layer};
use crate::merged::{Merged, Node, Resolved};
use crate::metadata::{Entry, Follow};
use crate::xattr::{self, Xattrs};
use crate::{TreeId, rel};

/// A stack as one tree, for reading, without any mount. Cheap to clone; clones share what they learned.
///
/// Paths are taken as absolute within the tree whether or not they start with `/`; symbolic links and `..` never lead out of it.
#[derive(Clone)]
pub struct View {
    pub(crate) merged: Arc<Merged>,
}

/// An operation on a path of a tree failed.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}", .path.display())]
pub struct PathError {
    /// The system call's name, as in `lstat` or `mkdir`.
    pub action: &'static str,
    /// Within the tree.
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

impl PathError {
    pub(crate) fn at(action: &'static str, path: &Path) -> impl FnOnce(Errno) -> Self {
        let path = Path::new("/").join(path);
        move |errno| Self { action, path, source: errno.into() }
    }

    pub(crate) fn rel(action: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> Self {
        let path = rel::absolute(path);
        move |errno| Self { action, path, source: errno.into() }
    }

    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

impl View {
    pub(crate) fn new(layers: Vec<Arc<Layer>>, writable: bool) -> Self {
        Self { merged: Arc::new(Merged::new(layers, writable)) }
    }

    /// A tree with nothing in it.
    pub fn empty() -> Self {
        Self::new(Vec::new(), false)
    }

    /// The entry at `path`; `None` where there is none (also where a parent is missing or no directory).
    pub fn lookup(&self, path: impl AsRef<Path>, follow: Follow) -> Result<Option<Entry>, PathError> {
        let path = path.as_ref();
        match self.merged.resolve(path, follow).map_err(PathError::at("lstat", path))? {
            Resolved::Found(path, node) => Ok(Some(self.entry(&path, &node))),
            Resolved::Missing { .. } | Resolved::NotDir => Ok(None),
        }
    }

    /// As [`View::lookup`], but what is missing is an error.
    pub fn require(&self, path: impl AsRef<Path>, follow: Follow) -> Result<Entry, PathError> {
        let path = path.as_ref();
        let action = if follow == Follow::Yes { "stat" } else { "lstat" };
        match self.merged.resolve(path, follow).map_err(PathError::at(action, path))? {
            Resolved::Found(path, node) => Ok(self.entry(&path, &node)),
            Resolved::Missing { .. } => Err(PathError::at(action, path)(Errno::NOENT)),
            Resolved::NotDir => Err(PathError::at(action, path)(Errno::NOTDIR)),
        }
    }

    /// `path` with the symbolic links of its parents (and of its end, if asked) replaced by where they lead; parts that do not exist are
    /// applied literally. What a chroot would make of it.
    pub fn resolve(&self, path: impl AsRef<Path>, follow: Follow) -> Result<PathBuf, PathError> {
        let path = path.as_ref();
        match self.merged.resolve(path, follow).map_err(PathError::at("lstat", path))? {
            Resolved::Found(path, _) | Resolved::Missing { path, .. } => Ok(rel::absolute(&path)),
            Resolved::NotDir => Err(PathError::at("lstat", path)(Errno::NOTDIR)),
        }
    }

    /// The entries of a directory sorted by the bytes of their names. Symbolic links to the directory are followed.
    pub fn read_dir(&self, path: impl AsRef<Path>) -> Result<Vec<Entry>, PathError> {
        let path = path.as_ref();
        let fail = || PathError::at("open", path);
        let dir = match self.merged.resolve(path, Follow::Yes).map_err(fail())? {
            Resolved::Found(path, node) if node.metadata.is_dir() => self.merged.remember(path, &node),
            Resolved::Missing { .. } => return Err(fail()(Errno::NOENT)),
            _ => return Err(fail()(Errno::NOTDIR)),
        };
        let mut entries: Vec<Entry> = Vec::new();
        for (name, node) in self.merged.entries(&dir).map_err(fail())? {
            entries.push(self.entry(&rel::join(&dir.path, &name), &node));
        }
        // The parents are the same, so that the whole paths sort as the names do.
        entries.sort_unstable_by(|a, b| a.path.as_os_str().cmp(b.path.as_os_str()));
        Ok(entries)
    }

    /// Opens a regular file for reading, following symbolic links.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<File, PathError> {
        let path = path.as_ref();
        let entry = self.require(path, Follow::Yes).map_err(|error| PathError { action: "open", ..error })?;
        if entry.metadata.is_dir() {
            return Err(PathError::at("open", path)(Errno::ISDIR));
        }
        if !entry.metadata.is_file() {
            return Err(PathError::at("open", path)(Errno::INVAL));
        }
        entry.open().map_err(|source| PathError { action: "open", path: entry.path, source })
    }

    /// Opens for reading what a walk or listing showed as a file, where its directory is known and one tree's alone: then this is one system call. `None`
    /// says only that [`View::require`] has to find it.
    pub fn open_known(&self, path: impl AsRef<Path>) -> Option<File> {
        let (dir, name) = self.merged.known_parent(path.as_ref())?;
        let [only] = dir.layers[..] else { return None };
        layer::open_in(&*self.merged.open_dir(only, &dir.path).ok()?, &name).ok()
    }

    /// The target of a symbolic link, as written.
    pub fn read_link(&self, path: impl AsRef<Path>) -> Result<PathBuf, PathError> {
        let path = path.as_ref();
        match self.merged.resolve(path, Follow::No).map_err(PathError::at("readlink", path))? {
            Resolved::Found(path, node) => {
                let (dir, name) = rel::split(&path).ok_or(Errno::INVAL).map_err(PathError::rel("readlink", &path))?;
                let target = self.merged.read_link(node.layer, dir, name).map_err(PathError::rel("readlink", &path))?;
                Ok(OsString::from_vec(target).into())
            }
            Resolved::Missing { .. } => Err(PathError::at("readlink", path)(Errno::NOENT)),
            Resolved::NotDir => Err(PathError::at("readlink", path)(Errno::NOTDIR)),
        }
    }

    /// Extended attributes of the entry itself, without overlay's own.
    pub fn xattrs(&self, path: impl AsRef<Path>) -> Result<Xattrs, PathError> {
        let path = path.as_ref();
        match self.merged.resolve(path, Follow::No).map_err(PathError::at("listxattr", path))? {
            Resolved::Found(path, node) => self.xattrs_of(&path, &node).map_err(PathError::rel("listxattr", &path)),
            Resolved::Missing { .. } => Err(PathError::at("listxattr", path)(Errno::NOENT)),
            Resolved::NotDir => Err(PathError::at("listxattr", path)(Errno::NOTDIR)),
        }
    }

    /// Calls `visit` for everything below `path`, parents first, names sorted; what `visit` returns for a directory says whether to go in.
    pub fn walk<E: From<PathError>>(&self, path: impl AsRef<Path>, visit: &mut impl FnMut(&Entry) -> Result<bool, E>) -> Result<(), E> {
        for entry in self.read_dir(path)? {
            if visit(&entry)? && entry.metadata.is_dir() {
                self.walk(&entry.path, visit)?;
            }
        }
        Ok(())
    }

    /// The trees that are merged here, lowest first (a draft's own id where one is on top).
    pub fn trees(&self) -> Vec<TreeId> {
        self.merged.layers.iter().rev().map(|layer| layer.id).collect()
    }

    pub(crate) fn entry(&self, path: &[u8], node: &Node) -> Entry {
        let layer = self.merged.layers.get(node.layer as usize).cloned().unwrap_or_else(Layer::none);
        Entry { path: rel::absolute(path), metadata: node.metadata, layer }
    }

    pub(crate) fn xattrs_of(&self, path: &[u8], node: &Node) -> Result<Xattrs, Errno> {
        if self.merged.layers.is_empty() {
            return Ok(Xattrs::new());
        }
        let (dir, name) = rel::split(path).unwrap_or((b"", b""));
        let dir = self.merged.open_dir(node.layer, dir)?;
        xattr::read(&layer::proc_path(&*dir, name))
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("View").field(&self.trees()).finish()
    }
}
