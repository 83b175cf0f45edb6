use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{FlockOperation, XattrFlags};

use crate::dedup::Deduplicated;
use crate::layer::Layer;
use crate::loans::{Ledger, Loans};
use crate::spec::{self, MountSpec};
use crate::trash::Trash;
use crate::usage::{self, Share, Usage};
use crate::{Draft, Editor, Error, OpenError, Result, TreeId, View};

/// How many trees are remembered to exist.
const KNOWN: usize = 1 << 16;
/// How many names in them are remembered, some 40 bytes each.
const NAMES: usize = 1 << 19;

/// How stacks become directories that a process can use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Backend {
    /// Overlay where the kernel and the disk allow it, else native.
    #[default]
    Auto,
    Overlay,
    /// No mounts of stacks: a stack is copied (linked where possible) into one directory. Slow; for systems without overlay.
    Native,
}

#[derive(Default)]
pub struct Options {
    pub backend: Backend,
    /// Called after something went to the trash, to have [`Store::empty_trash`] called by someone. Must not block.
    pub on_trash: Option<Box<dyn Fn() + Send + Sync>>,
}

/// What lies on top of a stack in a mount.
#[derive(Debug, Clone, Copy)]
pub enum Top<'a> {
    ReadOnly,
    /// Changes go here.
    Draft(&'a Draft),
}

/// The trees under one root directory. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    backend: Backend,
    /// Overlay keeps its attributes under `user.` where `trusted.` is not allowed.
    userxattr: bool,
    trash: Trash,
    ledger: Ledger,
    separating: Mutex<()>,
    known: Mutex<HashMap<TreeId, Arc<Layer>>>,
    /// How many names their listings have.
    names: Arc<AtomicUsize>,
    /// Held locked as long as the store is open.
    lock: File,
}

impl Store {
    /// Opens or creates the store at `root` and takes its lock. Drafts that a previous process left uncommitted go to the trash. Does not
    /// look at any tree.
    pub fn open(root: &Path, options: Options) -> Result<Self, OpenError> {
        fs::create_dir_all(root).map_err(Error::io("create", root))?;
        let root = &fs::canonicalize(root).map_err(Error::io("open", root))?;
        fs::set_permissions(root, fs::Permissions::from_mode(0o711)).map_err(Error::io("open", root))?;
        let lock = lock(root)?;
        for dir in ["trees", "drafts", "cells", "trash", "empty"] {
            let path = root.join(dir);
            match fs::create_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(Error::io("create", &path)(error).into()),
                _ => {}
            }
        }
        spread(&root.join("drafts"));
        let userxattr = !may_set_trusted(&root.join("empty"));
        let backend = choose_backend(root, options.backend, userxattr)?;
        let trash = Trash::new(root.join("trash"), options.on_trash);
        let store = Self(Arc::new(Shared {
            root: root.clone(),
            backend,
            userxattr,
            trash,
            ledger: Ledger::default(),
            separating: Mutex::default(),
            known: Mutex::default(),
            names: Arc::default(),
            lock,
        }));
        store.drop_abandoned()?;
        Ok(store)
    }

    /// A new empty draft; its root is owned by 0:0 with mode 0755.
    pub fn create(&self) -> Result<Draft> {
        let (id, path) = loop {
            let id = TreeId::fresh();
            let path = self.0.root.join("drafts").join(id.as_str());
            match fs::create_dir(&path) {
                Ok(()) if !self.dir_of(&id).exists() => break (id, path),
                Ok(()) => fs::remove_dir(&path).map_err(Error::io("remove", &path))?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io("create", &path)(error)),
            }
        };
        let draft = Draft::new(self.clone(), id, path, false);
        let fs = draft.fs();
        fs::create_dir(&fs).map_err(Error::io("create", &fs))?;
        fs::set_permissions(&fs, fs::Permissions::from_mode(0o755)).map_err(Error::io("create", &fs))?;
        Ok(draft)
    }

    /// Makes the draft an immutable tree. Nothing may have it mounted writable any more.
    pub fn commit(&self, mut draft: Draft) -> Result<TreeId> {
        self.native_settle(&mut draft)?;
        let id = draft.id();
        let work = draft.work();
        if work.exists() {
            self.0.trash.throw(&work)?;
        }
        let loans = draft.links().loans();
        if !loans.is_empty() {
            loans.save(draft.path())?;
            self.0.ledger.put(id, Arc::new(loans));
        }
        let target = self.0.root.join("trees").join(id.as_str());
        fs::rename(draft.path(), &target).map_err(Error::io("commit", draft.path()))?;
        draft.disarm();
        Ok(id)
    }

    /// Makes the draft outlive its handle and this process (a *cell*); [`Store::reopen`] gives it back. Its id stays.
    pub fn keep(&self, draft: Draft) -> Result<Draft> {
        if draft.is_kept() {
            return Ok(draft);
        }
        let id = draft.id();
        draft.mark_links()?;
        let target = self.0.root.join("cells").join(id.as_str());
        fs::rename(draft.path(), &target).map_err(Error::io("keep", draft.path()))?;
        draft.disarm();
        Ok(Draft::new(self.clone(), id, target, true))
    }

    /// A kept draft. The caller sees to it that two handles of one draft do not get in each other's way.
    pub fn reopen(&self, id: &TreeId) -> Result<Draft> {
        let path = self.0.root.join("cells").join(id.as_str());
        if !path.join("fs").is_dir() {
            return Err(Error::NoTree { id: *id });
        }
        Ok(Draft::new(self.clone(), *id, path, true))
    }

    /// Removes a tree or a kept draft: at once from sight, later from disk. A tree that is mounted keeps working until unmounted.
    pub fn remove(&self, id: &TreeId) -> Result<()> {
        let path = self.existing(id)?;
        for copy in self.native_without(id)? {
            self.remove(&copy)?;
        }
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        self.0.ledger.forget(*id);
        self.0.trash.throw(&path)
    }

    /// Disk use of a tree or a kept draft with all that is kept for it, by a walk. Of an inode that is in several trees, the tree where it was made has all of it; once
    /// that is gone, those that are left share it evenly.
    pub fn usage(&self, id: &TreeId) -> Result<Usage> {
        let path = self.existing(id)?;
        let loans = self.0.ledger.of(*id, &path)?;
        let mut owners: HashMap<u64, bool> = HashMap::new();
        for loan in loans.iter() {
            owners.entry(loan.owner).or_insert_with(|| self.dir_of(&TreeId::encode(loan.owner)).exists());
        }
        usage::measure(&path, |ino| match loans.get(ino).map(|loan| owners[&loan.owner]) {
            None => Share::Own,
            Some(true) => Share::Lent,
            Some(false) => Share::Orphan,
        })
    }

    /// The trees, gone ones among them, that inodes of this one were made in.
    pub fn owners(&self, id: &TreeId) -> Result<Vec<TreeId>> {
        Ok(self.0.ledger.of(*id, &self.existing(id)?)?.owners().collect())
    }

    /// Numbers that stand for a committed tree: trees with many equal files have many of them in common. By a walk.
    pub fn sketch(&self, id: &TreeId) -> Result<Vec<u64>> {
        let tree = self.committed(id)?;
        crate::dedup::sketch(&tree.join("fs")).map_err(Error::io("read", &tree))
    }

    /// Makes files of the tree `id` that equal files of `other` share their inodes. Nobody may have `id` mounted.
    pub fn deduplicate(&self, id: &TreeId, other: &TreeId) -> Result<Deduplicated> {
        let (tree, other_tree) = (self.committed(id)?, self.committed(other)?);
        let _alone = self.0.separating.lock().unwrap_or_else(PoisonError::into_inner);
        let (own, theirs) = (self.0.ledger.of(*id, &tree)?, self.0.ledger.of(*other, &other_tree)?);
        let linked = crate::dedup::link_equal(&tree, &own, (*other, &other_tree, &theirs));
        let Some((done, loans)) = linked.map_err(Error::io("link files of", &tree))? else { return Ok(Deduplicated::default()) };
        self.0.ledger.forget(*id);
        self.0.ledger.put(*id, Arc::new(loans));
        Ok(done)
    }

    fn committed(&self, id: &TreeId) -> Result<PathBuf> {
        let tree = self.dir_of(id);
        if tree.is_dir() { Ok(tree) } else { Err(Error::NoTree { id: *id }) }
    }

    /// Bytes on disk of the drafts that are being written and of what waits for its deletion, by a walk.
    pub fn in_flight(&self) -> Result<u64> {
        let mut bytes = 0;
        for dir in ["drafts", "trash"] {
            let path = self.0.root.join(dir);
            for entry in fs::read_dir(&path).map_err(Error::io("read", &path))?.flatten() {
                // What goes meanwhile takes nothing.
                bytes += usage::measure(&entry.path(), |_| Share::Lent).map_or(0, |usage| usage.bytes);
            }
        }
        Ok(bytes)
    }

    /// The directory with a tree's own files, as an overlay upper directory has them. Never to be written to.
    pub fn files(&self, id: &TreeId) -> Result<PathBuf> {
        Ok(self.existing(id)?.join("fs"))
    }

    pub fn contains(&self, id: &TreeId) -> bool {
        self.existing(id).is_ok()
    }

    /// All committed trees, for reconciliation at start-up.
    pub fn trees(&self) -> Result<Vec<TreeId>> {
        self.ids_in("trees")
    }

    /// All kept drafts.
    pub fn cells(&self) -> Result<Vec<TreeId>> {
        self.ids_in("cells")
    }

    /// What to mount to see `stack` (lowest first) with `top` above it. Plain data, to be used by any process of this machine as long as
    /// the trees exist.
    pub fn mount_spec(&self, stack: &[TreeId], top: Top<'_>) -> Result<MountSpec> {
        let layers = self.layers(stack)?;
        self.keep_apart(&layers)?;
        let mut lowers: Vec<PathBuf> = layers.iter().map(|layer| layer.fs.clone()).collect();
        match top {
            Top::Draft(draft) => {
                draft.part()?;
                draft.adopt_root(&layers)?;
                if lowers.is_empty() {
                    return Ok(MountSpec::Bind { path: draft.fs(), readonly: false });
                }
                if self.0.backend == Backend::Native {
                    return self.native_writable(stack, draft);
                }
                let work = draft.work();
                match fs::create_dir(&work) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(Error::io("create", &work)(error)),
                    _ => {}
                }
                Ok(MountSpec::Overlay { lowers, upper_work: Some((draft.fs(), work)), userxattr: self.0.userxattr })
            }
            Top::ReadOnly if lowers.is_empty() => Ok(MountSpec::Bind { path: self.0.root.join("empty"), readonly: true }),
            Top::ReadOnly if self.0.backend == Backend::Native => self.native_readonly(stack),
            Top::ReadOnly => {
                if lowers.len() == 1 {
                    // Overlay wants two; a plain bind would show the whiteouts of a lone diff as devices.
                    lowers.push(self.0.root.join("empty"));
                }
                Ok(MountSpec::Overlay { lowers, upper_work: None, userxattr: self.0.userxattr })
            }
        }
    }

    /// The merged view of `stack` (lowest first), read without mounting.
    pub fn view(&self, stack: &[TreeId]) -> Result<View> {
        Ok(View::new(self.layers(stack)?, false))
    }

    /// The merged view of `stack` with what is in a draft on top by now. What it shows of a draft that is being written may be out of date.
    pub fn view_with(&self, stack: &[TreeId], draft: &Draft) -> Result<View> {
        let mut layers = self.layers(stack)?;
        layers.insert(0, Arc::new(Layer::new(draft.id(), draft.fs(), false)));
        Ok(View::new(layers, false))
    }

    /// The merged view of `stack` with a draft on top that takes the changes.
    pub fn edit<'a>(&self, stack: &[TreeId], draft: &'a mut Draft) -> Result<Editor<'a>> {
        self.native_settle(draft)?;
        let lowers = self.layers(stack)?;
        draft.adopt_root(&lowers)?;
        Ok(Editor::new(lowers, draft))
    }

    /// Topmost first, without earlier occurrences of a tree.
    pub(crate) fn layers(&self, stack: &[TreeId]) -> Result<Vec<Arc<Layer>>> {
        let mut seen = HashSet::with_capacity(stack.len());
        let mut layers = Vec::with_capacity(stack.len() + 1);
        for id in stack.iter().rev().filter(|id| seen.insert(**id)) {
            layers.push(self.layer(id)?);
        }
        Ok(layers)
    }

    /// Returns once everything committed so far is on the disk.
    pub fn sync(&self) -> Result<()> {
        rustix::fs::syncfs(&self.0.lock).map_err(Error::os("sync", &self.0.root))
    }

    /// Deletes what was removed; returns how many trees. Meant for a background thread.
    pub fn empty_trash(&self) -> Result<usize> {
        self.0.trash.empty()
    }

    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// What was chosen: overlay or native, never auto.
    pub fn backend(&self) -> Backend {
        self.0.backend
    }

    pub fn userxattr(&self) -> bool {
        self.0.userxattr
    }

    pub(crate) fn trash(&self) -> &Trash {
        &self.0.trash
    }

    /// A tree, known from memory if it can be: committed ones go only through [`Store::remove`].
    fn layer(&self, id: &TreeId) -> Result<Arc<Layer>> {
        let known = || self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(layer) = known().get(id) {
            return Ok(Arc::clone(layer));
        }
        let path = self.existing(id)?;
        if path.parent() != Some(&self.0.root.join("trees")) {
            return Ok(Arc::new(Layer::new(*id, path.join("fs"), false)));
        }
        let layer = Arc::new(Layer::tree(*id, path.join("fs"), Arc::clone(&self.0.names)));
        let mut known = known();
        if known.len() >= KNOWN || self.0.names.load(Ordering::Relaxed) > NAMES {
            known.clear();
        }
        known.insert(*id, Arc::clone(&layer));
        Ok(layer)
    }

    /// The loans of the tree whose content is at `fs`.
    pub(crate) fn loans(&self, id: TreeId, fs: &Path) -> Result<Arc<Loans>> {
        self.0.ledger.of(id, fs.parent().expect("content is in the tree's directory"))
    }

    /// Sees to it that no inode is in the stack (topmost first) under two names: the upper one becomes a file of its own. Copies avoid
    /// this when they link; a merge brings trees together that did not know of each other.
    fn keep_apart(&self, layers: &[Arc<Layer>]) -> Result<()> {
        let loans = |layer: &Arc<Layer>| Ok((layer.id, self.loans(layer.id, &layer.fs)?));
        let stack = layers.iter().rev().filter(|layer| layer.committed).map(loans).collect::<Result<Vec<_>>>()?;
        for (id, inodes) in self.0.ledger.twins(&stack) {
            let _alone = self.0.separating.lock().unwrap_or_else(PoisonError::into_inner);
            let tree = self.dir_of(&id);
            crate::editor::separate(&tree.join("fs"), &inodes).map_err(Error::os("copy linked files of", &tree))?;
            let rest = self.0.ledger.of(id, &tree)?.without(&inodes);
            rest.save(&tree)?;
            self.0.ledger.forget(id);
        }
        Ok(())
    }

    fn dir_of(&self, id: &TreeId) -> PathBuf {
        self.0.root.join("trees").join(id.as_str())
    }

    fn existing(&self, id: &TreeId) -> Result<PathBuf> {
        let tree = self.dir_of(id);
        if tree.exists() {
            return Ok(tree);
        }
        let cell = self.0.root.join("cells").join(id.as_str());
        if cell.exists() { Ok(cell) } else { Err(Error::NoTree { id: *id }) }
    }

    fn ids_in(&self, dir: &str) -> Result<Vec<TreeId>> {
        let path = self.0.root.join(dir);
        let mut ids = Vec::new();
        for entry in fs::read_dir(&path).map_err(Error::io("read", &path))? {
            let name = entry.map_err(Error::io("read", &path))?.file_name();
            ids.extend(name.to_str().and_then(|text| text.parse::<TreeId>().ok()));
        }
        ids.sort();
        Ok(ids)
    }

    fn drop_abandoned(&self) -> Result<()> {
        for id in self.ids_in("drafts")? {
            self.0.trash.throw(&self.0.root.join("drafts").join(id.as_str()))?;
        }
        Ok(())
    }
}

fn lock(root: &Path) -> Result<File, OpenError> {
    let path = root.join("lock");
    let file = File::create(&path).map_err(Error::io("create", &path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::Locked { root: root.to_owned() }),
        Err(errno) => Err(Error::os("lock", &path)(errno).into()),
    }
}

/// Asks ext4 to give each tree a part of the disk of its own. Besides keeping a tree's files together, this keeps new files away from where
/// many were deleted lately: there, for up to six minutes, ext4 looks at all of those again for each new file.
fn spread(dir: &Path) {
    let Ok(dir) = File::open(dir) else { return };
    if let Ok(flags) = rustix::fs::ioctl_getflags(&dir) {
        // Other file systems do not know the flag; nothing depends on it.
        let _ = rustix::fs::ioctl_setflags(&dir, flags | rustix::fs::IFlags::TOPDIR);
    }
}

fn may_set_trusted(probe: &Path) -> bool {
    let set = rustix::fs::lsetxattr(probe, "trusted.kiln.probe", b"1", XattrFlags::empty()).is_ok();
    set && rustix::fs::lremovexattr(probe, "trusted.kiln.probe").is_ok()
}

fn choose_backend(root: &Path, wanted: Backend, userxattr: bool) -> Result<Backend, OpenError> {
    if wanted == Backend::Native {
        return Ok(Backend::Native);
    }
    match (spec::probe_overlay(root, userxattr), wanted) {
        (Ok(()), _) => Ok(Backend::Overlay),
        (Err(error), Backend::Auto) => {
            tracing::warn!(root = %root.display(), %error, "overlay does not work here: using the native backend, which copies every file of every layer and is SLOW");
            Ok(Backend::Native)
        }
        (Err(source), _) => Err(OpenError::NoOverlay { root: root.to_owned(), source }),
    }
}
