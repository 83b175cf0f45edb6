//! A tree that turns one layer into another, found by comparing the two.
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use snapshot::{Attributes, Editor, Entry, Follow, PathError, TreeId, View};
use task::Cancel;

use crate::error::{Error, Result};
use crate::node::Layer;
use crate::same;
use crate::store::Layers;

impl From<PathError> for Error {
    fn from(error: PathError) -> Self {
        let PathError { action, path, source } = error;
        Error::Io { action, path, source }
    }
}

/// Both sides must be realized; `None` is an empty one.
pub(crate) fn compare(home: &Layers, lower: Option<&Layer>, upper: Option<&Layer>, cancel: &Cancel) -> Result<TreeId> {
    let stack = |side: Option<&Layer>| side.map_or(Ok(Vec::new()), Layer::stack);
    let (before, after) = (stack(lower)?, stack(upper)?);
    let mut draft = home.trees().create()?;
    let (old, new) = (home.trees().view(&before)?, home.trees().view(&after)?);
    let mut editor = home.trees().edit(&before, &mut draft)?;
    let (links, kept, touched) = (HashMap::new(), HashMap::new(), BTreeSet::new());
    Comparison { old: &old, new: &new, editor: &mut editor, cancel, links, kept, touched }.run()?;
    drop(editor);
    crate::opaque::tidy(home, &draft, &before)?;
    Ok(home.trees().commit(draft)?)
}

/// A file of the upper side, whatever its names. Files of different trees that share an inode are two: see the store's hard links.
type Inode = (TreeId, u64);

struct Comparison<'a, 'b> {
    old: &'a View,
    new: &'a View,
    editor: &'a mut Editor<'b>,
    cancel: &'a Cancel,
    /// The name under which a file with several was put into the tree.
    links: HashMap<Inode, PathBuf>,
    /// Names of unchanged files, in case another name of theirs is new.
    kept: HashMap<Inode, Vec<PathBuf>>,
    /// Directories of the upper side that are in the tree, or have something in them that is.
    touched: BTreeSet<PathBuf>,
}

impl Comparison<'_, '_> {
    fn run(mut self) -> Result<()> {
        self.directory(Path::new("/"))?;
        // The deepest first: what happens in a directory changes its times.
        for path in std::mem::take(&mut self.touched).iter().rev() {
            self.dress(&self.new.require(path, Follow::No)?)?;
        }
        Ok(())
    }

    /// Both sides have a directory at `path`.
    fn directory(&mut self, path: &Path) -> Result<()> {
        self.cancel.check()?;
        let (old, new) = (self.old.read_dir(path)?, self.new.read_dir(path)?);
        for gone in old.iter().filter(|entry| new.binary_search_by(|other| by_name(other, entry)).is_err()) {
            self.editor.remove(gone.path())?;
            self.touch(path);
        }
        for entry in &new {
            let before = old.binary_search_by(|other| by_name(other, entry)).ok().map(|at| &old[at]);
            self.entry(before, entry)?;
        }
        Ok(())
    }

    fn entry(&mut self, before: Option<&Entry>, after: &Entry) -> Result<()> {
        let unchanged = match before {
            Some(before) => same::unchanged(&before.into(), &after.into())?,
            None => false,
        };
        match before {
            Some(before) if before.metadata().is_dir() && after.metadata().is_dir() => {
                if !unchanged {
                    self.touch(after.path());
                }
                self.directory(after.path())
            }
            Some(_) if unchanged => self.keep(after),
            before => {
                if before.is_some() {
                    self.editor.remove(after.path())?;
                }
                self.add(after)
            }
        }
    }

    fn add(&mut self, entry: &Entry) -> Result<()> {
        self.cancel.check()?;
        if !entry.metadata().is_dir() {
            self.touch(entry.path().parent().unwrap_or(Path::new("/")));
            return self.file(entry);
        }
        self.touch(entry.path());
        self.editor.mkdir(entry.path(), entry.metadata().permissions())?;
        for child in self.new.read_dir(entry.path())? {
            self.add(&child)?;
        }
        Ok(())
    }

    /// Names of one file stay names of one file.
    fn file(&mut self, entry: &Entry) -> Result<()> {
        let inode = inode(entry);
        if let Some(first) = inode.and_then(|inode| self.links.get(&inode)) {
            return Ok(self.editor.hard_link(first, entry.path())?);
        }
        self.editor.link_file(entry, entry.path())?;
        if let Some(inode) = inode {
            self.links.insert(inode, entry.path().to_owned());
            for other in self.kept.remove(&inode).unwrap_or_default() {
                self.another_name(entry.path(), &other)?;
            }
        }
        Ok(())
    }

    /// An unchanged file counts where it is another name of one that does not.
    fn keep(&mut self, entry: &Entry) -> Result<()> {
        let Some(inode) = inode(entry) else { return Ok(()) };
        match self.links.get(&inode).cloned() {
            Some(first) => self.another_name(&first, entry.path()),
            None => {
                self.kept.entry(inode).or_default().push(entry.path().to_owned());
                Ok(())
            }
        }
    }

    fn another_name(&mut self, first: &Path, path: &Path) -> Result<()> {
        self.editor.remove(path)?;
        self.editor.hard_link(first, path)?;
        self.touch(path.parent().unwrap_or(Path::new("/")));
        Ok(())
    }

    fn touch(&mut self, directory: &Path) {
        let below_root = directory.ancestors().filter(|path| path.parent().is_some());
        for path in below_root {
            if !self.touched.insert(path.to_owned()) {
                break;
            }
        }
    }

    /// Gives a directory the metadata that `entry` has.
    fn dress(&mut self, entry: &Entry) -> Result<()> {
        let metadata = entry.metadata();
        let wanted = self.new.xattrs(entry.path())?;
        let present = self.editor.xattrs(entry.path())?;
        for name in present.keys().filter(|name| !wanted.contains_key(*name)) {
            self.editor.remove_xattr(entry.path(), name)?;
        }
        for (name, value) in wanted.iter().filter(|(name, value)| present.get(*name) != Some(value)) {
            self.editor.set_xattr(entry.path(), name, value)?;
        }
        let attributes = Attributes {
            owner: Some((metadata.uid, metadata.gid)),
            permissions: Some(metadata.permissions()),
            times: Some((metadata.atime, metadata.mtime)),
        };
        Ok(self.editor.set(entry.path(), &attributes)?)
    }
}

/// `None` for what has one name only.
fn inode(entry: &Entry) -> Option<Inode> {
    let metadata = entry.metadata();
    (!metadata.is_dir() && metadata.nlink > 1).then(|| (entry.tree(), metadata.ino))
}

/// Names of one directory sort as the bytes of the paths do.
fn by_name(a: &Entry, b: &Entry) -> std::cmp::Ordering {
    a.name().cmp(b.name())
}

/// Whether there is a directory at `path`.
pub(crate) fn is_directory(view: &View, path: &Path) -> Result<bool> {
    Ok(view.lookup(path, Follow::No)?.is_some_and(|entry| entry.metadata().is_dir()))
}
