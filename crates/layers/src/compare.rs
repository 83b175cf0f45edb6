//! A tree that turns one layer into another, found by comparing the two.
use std::path::Path;

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
    Comparison { old: &old, new: &new, editor: &mut editor, cancel }.directory(Path::new("/"))?;
    drop(editor);
    crate::opaque::tidy(home, &draft, &before)?;
    Ok(home.trees().commit(draft)?)
}

struct Comparison<'a, 'b> {
    old: &'a View,
    new: &'a View,
    editor: &'a mut Editor<'b>,
    cancel: &'a Cancel,
}

impl Comparison<'_, '_> {
    /// Both sides have a directory at `path`.
    fn directory(&mut self, path: &Path) -> Result<()> {
        self.cancel.check()?;
        let (old, new) = (self.old.read_dir(path)?, self.new.read_dir(path)?);
        for gone in old.iter().filter(|entry| new.binary_search_by(|other| by_name(other, entry)).is_err()) {
            self.editor.remove(gone.path())?;
        }
        for entry in &new {
            let before = old.binary_search_by(|other| by_name(other, entry)).ok().map(|at| &old[at]);
            self.entry(before, entry)?;
        }
        Ok(())
    }

    fn entry(&mut self, before: Option<&Entry>, after: &Entry) -> Result<()> {
        match before {
            Some(before) if before.metadata().is_dir() && after.metadata().is_dir() => {
                self.directory(after.path())?;
                if !same::unchanged(&before.into(), &after.into())? {
                    self.dress(after)?;
                }
                Ok(())
            }
            Some(before) if same::unchanged(&before.into(), &after.into())? => Ok(()),
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
            self.editor.link_file(entry, entry.path())?;
            return Ok(());
        }
        self.editor.mkdir(entry.path(), entry.metadata().permissions())?;
        for child in self.new.read_dir(entry.path())? {
            self.add(&child)?;
        }
        self.dress(entry)
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

/// Names of one directory sort as the bytes of the paths do.
fn by_name(a: &Entry, b: &Entry) -> std::cmp::Ordering {
    a.name().cmp(b.name())
}

/// Whether there is a directory at `path`.
pub(crate) fn is_directory(view: &View, path: &Path) -> Result<bool> {
    Ok(view.lookup(path, Follow::No)?.is_some_and(|entry| entry.metadata().is_dir()))
}
