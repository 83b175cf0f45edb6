//! Stacks without overlay: whole copies.
//!
//! A writable mount is a copy of the stack in the draft's directory (`whole/`); what was changed in it is found by comparison when the
//! draft is committed or edited, and put into the draft as the diff that overlay would have made. A read-only mount is a tree with hard links
//! to the stack's files, made once for each stack and dropped with the first of its trees.
use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::layer::Layer;
use crate::store::Store;
use crate::{Attributes, Draft, Editor, Entry, Error, Follow, MountSpec, PathError, Result, TreeId, View};

/// In a draft's directory: the copy, and beside it the ids of the stack that it was made from.
const WHOLE: &str = "whole";
const STACK: &str = "stack";
/// In the store: one file for each read-only stack that was copied, named after the copy, with the ids that went into it.
const FLAT: &str = "flat";

impl Store {
    /// The mount of a stack for reading.
    pub(crate) fn native_readonly(&self, stack: &[TreeId]) -> Result<MountSpec> {
        let key = ids(stack);
        let dir = self.root().join(FLAT);
        fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        for (flat, members) in self.flats()? {
            if members == key {
                return Ok(MountSpec::Bind { path: self.files(&flat)?, readonly: true });
            }
        }
        tracing::warn!(trees = stack.len(), "no overlay: linking all files of a stack into one directory");
        let mut draft = self.create()?;
        let view = self.view(stack)?;
        let mut editor = self.edit(&[], &mut draft)?;
        fill(&view, &mut editor, true).map_err(Error::path)?;
        drop(editor);
        let flat = self.commit(draft)?;
        let note = dir.join(flat.as_str());
        fs::write(&note, key).map_err(Error::io("write", &note))?;
        Ok(MountSpec::Bind { path: self.files(&flat)?, readonly: true })
    }

    /// A draft with a copy of all that a stack shows: it has nothing below and may be mounted in several places at once.
    pub fn copied(&self, stack: &[TreeId]) -> Result<Draft> {
        let mut draft = self.create()?;
        let view = self.view(stack)?;
        let mut editor = Editor::new(Vec::new(), &mut draft);
        fill(&view, &mut editor, false).map_err(Error::path)?;
        drop(editor);
        Ok(draft)
    }

    /// Copies that have the files of `id`, which is about to go.
    pub(crate) fn native_without(&self, id: &TreeId) -> Result<Vec<TreeId>> {
        if self.backend() != crate::Backend::Native {
            return Ok(Vec::new());
        }
        let mut gone = Vec::new();
        for (flat, members) in self.flats()? {
            if members.split(' ').any(|member| member == id.as_str()) {
                let note = self.root().join(FLAT).join(flat.as_str());
                fs::remove_file(&note).map_err(Error::io("remove", &note))?;
                gone.push(flat);
            }
        }
        Ok(gone)
    }

    fn flats(&self) -> Result<Vec<(TreeId, String)>> {
        let dir = self.root().join(FLAT);
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(Error::io("read", &dir))?,
        };
        let mut flats = Vec::new();
        for entry in entries {
            let path = entry.map_err(Error::io("read", &dir))?.path();
            let id = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<TreeId>().ok());
            if let Some(id) = id.filter(|id| self.contains(id)) {
                flats.push((id, fs::read_to_string(&path).map_err(Error::io("read", &path))?));
            }
        }
        Ok(flats)
    }

    /// The mount of a stack with a draft on top.
    pub(crate) fn native_writable(&self, stack: &[TreeId], draft: &Draft) -> Result<MountSpec> {
        let whole = draft.path().join(WHOLE);
        if !whole.exists() {
            tracing::warn!(trees = stack.len(), "no overlay: copying all files of a stack");
            let note = draft.path().join(STACK);
            fs::write(&note, ids(stack)).map_err(Error::io("write", &note))?;
            fs::create_dir_all(whole.join("fs")).map_err(Error::io("create", &whole))?;
            let mut layers = vec![Arc::new(Layer::at(&draft.fs()))];
            layers.extend(self.layers(stack)?);
            let view = View::new(layers, false);
            let mut copy = Draft::new(self.clone(), draft.id(), whole.clone(), true);
            let mut editor = Editor::new(Vec::new(), &mut copy);
            fill(&view, &mut editor, false).map_err(Error::path)?;
        }
        Ok(MountSpec::Bind { path: whole.join("fs"), readonly: false })
    }

    /// Turns what was done to the copy of a stack into the draft's own diff. Nothing to do for a draft that was never mounted.
    pub(crate) fn native_settle(&self, draft: &mut Draft) -> Result<()> {
        let whole = draft.path().join(WHOLE);
        if !whole.exists() {
            return Ok(());
        }
        let note = draft.path().join(STACK);
        let text = fs::read_to_string(&note).map_err(Error::io("read", &note))?;
        let stack: Vec<TreeId> = text.split(' ').filter_map(|id| id.parse().ok()).collect();
        let fs_dir = draft.fs();
        fs::remove_dir_all(&fs_dir).and_then(|()| fs::create_dir(&fs_dir)).map_err(Error::io("empty", &fs_dir))?;
        let now = View::new(vec![Arc::new(Layer::at(&whole.join("fs")))], false);
        let lowers = self.layers(&stack)?;
        let mut editor = Editor::new(lowers, draft);
        Difference { now: &now, editor: &mut editor, links: HashMap::new() }.run().map_err(Error::path)?;
        drop(editor);
        self.trash().throw(&whole)
    }
}

impl Draft {
    /// Where what is written through the draft's mount lands: its own files, or the copy that stands in for a stack.
    pub fn mounted(&self) -> PathBuf {
        let whole = self.path().join(WHOLE);
        if whole.exists() { whole.join("fs") } else { self.fs() }
    }
}

fn ids(stack: &[TreeId]) -> String {
    stack.iter().map(TreeId::as_str).collect::<Vec<_>>().join(" ")
}

/// Puts all of `view` into an editor of nothing.
fn fill(view: &View, editor: &mut Editor<'_>, link: bool) -> Result<(), PathError> {
    let mut links: HashMap<(TreeId, u64), PathBuf> = HashMap::new();
    fill_dir(view, editor, &view.require("/", Follow::No)?, link, &mut links)
}

fn fill_dir(
    view: &View,
    editor: &mut Editor<'_>,
    dir: &Entry,
    link: bool,
    links: &mut HashMap<(TreeId, u64), PathBuf>,
) -> Result<(), PathError> {
    for entry in view.read_dir(dir.path())? {
        let path = entry.path();
        if entry.metadata().is_dir() {
            editor.mkdir(path, entry.metadata().permissions())?;
            fill_dir(view, editor, &entry, link, links)?;
        } else {
            place(editor, &entry, path, link, links)?;
        }
    }
    dress(view, editor, dir)
}

fn place(
    editor: &mut Editor<'_>,
    entry: &Entry,
    path: &Path,
    link: bool,
    links: &mut HashMap<(TreeId, u64), PathBuf>,
) -> Result<(), PathError> {
    if entry.metadata().nlink > 1 {
        match links.entry((entry.tree(), entry.metadata().ino)) {
            Slot::Occupied(first) => return editor.hard_link(first.get(), path),
            Slot::Vacant(slot) => _ = slot.insert(path.to_owned()),
        }
    }
    if link { editor.link_file(entry, path) } else { editor.copy_file(entry, path, &Attributes::default()) }.map(drop)
}

/// A directory gets the metadata that `entry` has.
fn dress(view: &View, editor: &mut Editor<'_>, entry: &Entry) -> Result<(), PathError> {
    let (wanted, present) = (view.xattrs(entry.path())?, editor.xattrs(entry.path())?);
    for name in present.keys().filter(|name| !wanted.contains_key(*name)) {
        editor.remove_xattr(entry.path(), name)?;
    }
    for (name, value) in &wanted {
        editor.set_xattr(entry.path(), name, value)?;
    }
    let metadata = entry.metadata();
    let owner = Some((metadata.uid, metadata.gid));
    editor
        .set(entry.path(), &Attributes { owner, permissions: Some(metadata.permissions()), times: Some((metadata.atime, metadata.mtime)) })
}

/// Makes an editor's tree what `now` is, touching only what differs.
struct Difference<'a, 'e> {
    now: &'a View,
    editor: &'a mut Editor<'e>,
    links: HashMap<(TreeId, u64), PathBuf>,
}

impl Difference<'_, '_> {
    fn run(mut self) -> Result<(), PathError> {
        let root = self.now.require("/", Follow::No)?;
        self.dir(&root)?;
        // The root is always the draft's own.
        dress(self.now, self.editor, &root)
    }

    fn dir(&mut self, dir: &Entry) -> Result<(), PathError> {
        let entries = self.now.read_dir(dir.path())?;
        for old in self.editor.read_dir(dir.path())? {
            if entries.binary_search_by(|entry| entry.name().cmp(old.name())).is_err() {
                self.editor.remove(old.path())?;
            }
        }
        for entry in entries {
            let old = self.editor.lookup(entry.path(), Follow::No)?;
            if entry.metadata().is_dir() {
                self.subdir(&entry, old)?;
            } else {
                self.file(&entry, old)?;
            }
        }
        Ok(())
    }

    fn subdir(&mut self, entry: &Entry, old: Option<Entry>) -> Result<(), PathError> {
        let merges = old.as_ref().is_some_and(|old| old.metadata().is_dir());
        if !merges {
            if old.is_some() {
                self.editor.remove(entry.path())?;
            }
            self.editor.mkdir(entry.path(), entry.metadata().permissions())?;
        }
        self.dir(entry)?;
        let same = merges && {
            let old = self.editor.require(entry.path(), Follow::No)?;
            alike(&old, entry) && self.editor.xattrs(entry.path())? == self.now.xattrs(entry.path())?
        };
        if same { Ok(()) } else { dress(self.now, self.editor, entry) }
    }

    fn file(&mut self, entry: &Entry, old: Option<Entry>) -> Result<(), PathError> {
        if let Some(old) = old {
            if alike(&old, entry) && self.same_content(&old, entry)? {
                return Ok(());
            }
            self.editor.remove(entry.path())?;
        }
        place(self.editor, entry, entry.path(), false, &mut self.links)
    }

    fn same_content(&self, old: &Entry, new: &Entry) -> Result<bool, PathError> {
        let path = new.path();
        if self.editor.xattrs(path)? != self.now.xattrs(path)? {
            return Ok(false);
        }
        if new.metadata().is_symlink() {
            return Ok(self.editor.read_link(path)? == self.now.read_link(path)?);
        }
        if !new.metadata().is_file() {
            return Ok(true);
        }
        let failed = |source| PathError { action: "read", path: path.to_owned(), source };
        same_bytes(old, new).map_err(failed)
    }
}

/// Whether the metadata says that nothing changed. Names of one inode are a change where there was one name each.
fn alike(old: &Entry, new: &Entry) -> bool {
    let (a, b) = (old.metadata(), new.metadata());
    let fixed = (a.mode, a.uid, a.gid, a.mtime, a.rdev) == (b.mode, b.uid, b.gid, b.mtime, b.rdev);
    fixed && (a.is_dir() || a.size == b.size)
}

fn same_bytes(old: &Entry, new: &Entry) -> io::Result<bool> {
    let (mut old, mut new) = (old.open()?, new.open()?);
    let (mut left, mut right) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        let length = old.read(&mut left)?;
        if length == 0 {
            return Ok(new.read(&mut right)? == 0);
        }
        match new.read_exact(&mut right[..length]) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            other => other?,
        }
        if left[..length] != right[..length] {
            return Ok(false);
        }
    }
}
