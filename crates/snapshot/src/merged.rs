//! The merge of a stack of directories, name by name, as overlay would show it.
//!
//! What is remembered per directory is which layers contribute to it ([`Dir`]), so that finding a name costs a stat per contributing layer;
//! where these are many, layers whose directory is known to be without the name are not asked. Layers are numbered from the top.
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::io::Errno;

use crate::layer::{self, Layer};
use crate::metadata::{Follow, Metadata};
use crate::{PathError, rel};

/// From this many contributing layers on, small listings are remembered.
const MANY: usize = 8;
/// How many directories are kept open at most.
const OPEN_DIRS: usize = 128;
/// As BuildKit and the kernel's own limit of 40 have one; this is BuildKit's.
const MAX_LINKS: usize = 255;

#[derive(Debug)]
pub(crate) struct Merged {
    /// Topmost first.
    pub(crate) layers: Vec<Arc<Layer>>,
    /// Whether the top layer is a draft that may change under us (only by our own doing).
    pub(crate) writable: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    dirs: BTreeMap<Vec<u8>, Arc<Dir>>,
    /// Per layer.
    open: HashMap<u32, HashMap<Vec<u8>, Arc<OwnedFd>>>,
    open_count: usize,
}

impl State {
    fn close_all(&mut self) {
        self.open.clear();
        self.open_count = 0;
    }
}

/// A directory of the merged tree.
#[derive(Debug, Clone)]
pub(crate) struct Dir {
    pub(crate) path: Vec<u8>,
    /// The layers that contribute, topmost first. Never empty but for the root of an empty stack.
    pub(crate) layers: Vec<u32>,
}

/// What a name in a directory is.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) layer: u32,
    pub(crate) metadata: Metadata,
    /// The contributing layers, of a directory.
    pub(crate) layers: Vec<u32>,
}

pub(crate) enum Resolved {
    /// Without symbolic links before the last component.
    Found(Vec<u8>, Node),
    /// Where it would be: the rest of the path after what exists was applied literally.
    Missing {
        path: Vec<u8>,
        /// Only the last component is missing.
        last: bool,
    },
    /// A component that is not the last is no directory.
    NotDir,
}

impl Merged {
    pub(crate) fn new(layers: Vec<Arc<Layer>>, writable: bool) -> Self {
        Self { layers, writable, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Resolves `path` within the root.
    pub(crate) fn resolve(&self, path: &Path, follow: Follow) -> Result<Resolved, Errno> {
        if let Some(outcome) = self.resolve_known(path, follow)? {
            return Ok(outcome);
        }
        let mut pending: Vec<Vec<u8>> = rel::parts(path).rev().map(<[u8]>::to_vec).collect();
        let mut links = 0;
        let mut here = self.root()?;
        // The last name looked at, if it was not entered.
        let mut last = (Vec::new(), self.root_node(&here)?);
        while let Some(part) = pending.pop() {
            if part == b".." {
                let mut up = here.path.clone();
                rel::pop(&mut up);
                here = self.dir(&up)?.expect("the parent of a directory is a directory");
                last = (here.path.clone(), self.node_of(&here)?);
                continue;
            }
            let Some(node) = self.child(&here, &part)? else {
                let path = literal(&here.path, &part, &pending);
                return Ok(Resolved::Missing { path, last: pending.is_empty() });
            };
            let path = rel::join(&here.path, &part);
            let is_last = pending.is_empty();
            if node.metadata.is_symlink() && (!is_last || follow == Follow::Yes) {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP);
                }
                let target = self.read_link(node.layer, &here.path, &part)?;
                if target.first() == Some(&b'/') {
                    here = self.root()?;
                }
                last = (here.path.clone(), self.node_of(&here)?);
                pending.extend(rel::parts(Path::new(OsStr::from_bytes(&target))).rev().map(<[u8]>::to_vec));
            } else if node.metadata.is_dir() {
                here = self.remember(path.clone(), &node);
                last = (path, node);
            } else if is_last {
                last = (path, node);
            } else {
                return Ok(Resolved::NotDir);
            }
        }
        Ok(Resolved::Found(last.0, last.1))
    }

    /// What is at `path` itself, with the resolved path; it must be there.
    pub(crate) fn require(&self, path: &Path, action: &'static str) -> Result<(Vec<u8>, Node), PathError> {
        match self.resolve(path, Follow::No).map_err(PathError::at(action, path))? {
            Resolved::Found(path, node) => Ok((path, node)),
            Resolved::Missing { .. } => Err(PathError::at(action, path)(Errno::NOENT)),
            Resolved::NotDir => Err(PathError::at(action, path)(Errno::NOTDIR)),
        }
    }

    /// The short way: the directory is known as a real one, the name is no link to follow.
    fn resolve_known(&self, path: &Path, follow: Follow) -> Result<Option<Resolved>, Errno> {
        let Some((dir, name)) = self.known_parent(path) else { return Ok(None) };
        match self.child(&dir, &name)? {
            None => Ok(Some(Resolved::Missing { path: rel::join(&dir.path, &name), last: true })),
            Some(node) if node.metadata.is_symlink() && follow == Follow::Yes => Ok(None),
            Some(node) => Ok(Some(Resolved::Found(rel::join(&dir.path, &name), node))),
        }
    }

    /// The directory of a plain path, if it is known as a real one, and the name in it.
    pub(crate) fn known_parent(&self, path: &Path) -> Option<(Arc<Dir>, Vec<u8>)> {
        let mut plain = Vec::with_capacity(path.as_os_str().len());
        for part in rel::parts(path) {
            if part == b".." {
                return None;
            }
            rel::push(&mut plain, part);
        }
        let (dir, name) = rel::split(&plain)?;
        let dir = self.state().dirs.get(dir).cloned()?;
        Some((dir, name.to_vec()))
    }

    fn root(&self) -> Result<Arc<Dir>, Errno> {
        if let Some(dir) = self.state().dirs.get([].as_slice()) {
            return Ok(Arc::clone(dir));
        }
        // Overlay does not know of opaque roots either.
        let layers = (0..self.layers.len() as u32).collect();
        Ok(self.insert(Dir { path: Vec::new(), layers }))
    }

    fn root_node(&self, root: &Dir) -> Result<Node, Errno> {
        let Some(top) = root.layers.first() else { return Ok(Node { layer: 0, metadata: empty_root(), layers: Vec::new() }) };
        let stat = rustix::fs::fstat(&*self.open_dir(*top, b"")?)?;
        Ok(Node { layer: *top, metadata: Metadata::of(&stat), layers: root.layers.clone() })
    }

    pub(crate) fn node_of(&self, dir: &Dir) -> Result<Node, Errno> {
        if dir.path.is_empty() {
            return self.root_node(dir);
        }
        let top = *dir.layers.first().ok_or(Errno::NOENT)?;
        let stat = rustix::fs::fstat(&*self.open_dir(top, &dir.path)?)?;
        Ok(Node { layer: top, metadata: Metadata::of(&stat), layers: dir.layers.clone() })
    }

    /// The directory at a path without symbolic links; `None` if there is none.
    pub(crate) fn dir(&self, path: &[u8]) -> Result<Option<Arc<Dir>>, Errno> {
        if let Some(dir) = self.state().dirs.get(path) {
            return Ok(Some(Arc::clone(dir)));
        }
        let Some((parent, name)) = rel::split(path) else { return self.root().map(Some) };
        let Some(parent) = self.dir(parent)? else { return Ok(None) };
        match self.child(&parent, name)? {
            Some(node) if node.metadata.is_dir() => Ok(Some(self.remember(path.to_vec(), &node))),
            _ => Ok(None),
        }
    }

    pub(crate) fn remember(&self, path: Vec<u8>, node: &Node) -> Arc<Dir> {
        if let Some(dir) = self.state().dirs.get(&path) {
            return Arc::clone(dir);
        }
        self.insert(Dir { path, layers: node.layers.clone() })
    }

    pub(crate) fn insert(&self, dir: Dir) -> Arc<Dir> {
        let dir = Arc::new(dir);
        self.state().dirs.insert(dir.path.clone(), Arc::clone(&dir));
        dir
    }

    /// Finds `name` in `dir`: the topmost layer that has it decides, unless it has a whiteout.
    pub(crate) fn child(&self, dir: &Dir, name: &[u8]) -> Result<Option<Node>, Errno> {
        let candidates = self.candidates(dir, name)?;
        self.merge_name(&dir.path, name, &candidates)
    }

    /// As [`Merged::child`], below the draft only.
    pub(crate) fn child_below(&self, dir: &Dir, name: &[u8]) -> Result<Option<Node>, Errno> {
        let candidates = self.candidates(dir, name)?;
        let from = usize::from(self.writable && candidates.first() == Some(&0));
        self.merge_name(&dir.path, name, &candidates[from..])
    }

    fn merge_name(&self, dir: &[u8], name: &[u8], candidates: &[u32]) -> Result<Option<Node>, Errno> {
        let mut found: Option<Node> = None;
        for (at, number) in candidates.iter().enumerate() {
            let Some(stat) = layer::stat(&*self.open_dir(*number, dir)?, name)? else { continue };
            let metadata = Metadata::of(&stat);
            if metadata.is_whiteout() {
                break;
            }
            if !metadata.is_dir() {
                return Ok(found.or(Some(Node { layer: *number, metadata, layers: Vec::new() })));
            }
            found.get_or_insert(Node { layer: *number, metadata, layers: Vec::new() }).layers.push(*number);
            if at + 1 < candidates.len() && layer::is_opaque(&*self.open_dir(*number, &rel::join(dir, name))?)? {
                break;
            }
        }
        Ok(found)
    }

    fn candidates<'a>(&self, dir: &'a Dir, name: &[u8]) -> Result<std::borrow::Cow<'a, [u32]>, Errno> {
        if dir.layers.len() < MANY {
            return Ok(dir.layers.as_slice().into());
        }
        let mut having = Vec::new();
        for number in &dir.layers {
            if self.layers[*number as usize].may_have(&dir.path, name)? {
                having.push(*number);
            }
        }
        Ok(having.into())
    }

    /// All names of `dir` with what they are, unsorted. The nodes of directories do not tell their layers.
    pub(crate) fn entries(&self, dir: &Dir) -> Result<Vec<(Vec<u8>, Node)>, Errno> {
        if let [only] = dir.layers[..] {
            let mut names = Vec::new();
            self.list(only, &dir.path, |name| names.push(name.to_vec()))?;
            return self.stat_all(only, dir, names);
        }
        let mut done: HashMap<Vec<u8>, ()> = HashMap::new();
        let mut all = Vec::new();
        for number in &dir.layers {
            let mut names = Vec::new();
            self.list(*number, &dir.path, |name| names.push(name.to_vec()))?;
            names.retain(|name| done.insert(name.clone(), ()).is_none());
            all.extend(self.stat_all(*number, dir, names)?);
        }
        Ok(all)
    }

    fn stat_all(&self, number: u32, dir: &Dir, names: Vec<Vec<u8>>) -> Result<Vec<(Vec<u8>, Node)>, Errno> {
        let handle = self.open_dir(number, &dir.path)?;
        let mut all = Vec::with_capacity(names.len());
        for name in names {
            let Some(stat) = layer::stat(&*handle, &name)? else { continue };
            let metadata = Metadata::of(&stat);
            if !metadata.is_whiteout() {
                all.push((name, Node { layer: number, metadata, layers: Vec::new() }));
            }
        }
        Ok(all)
    }

    fn list(&self, number: u32, path: &[u8], each: impl FnMut(&[u8])) -> Result<(), Errno> {
        self.layers[number as usize].list(path, each)
    }

    pub(crate) fn read_link(&self, number: u32, dir: &[u8], name: &[u8]) -> Result<Vec<u8>, Errno> {
        Ok(rustix::fs::readlinkat(&*self.open_dir(number, dir)?, name, Vec::with_capacity(256))?.into_bytes())
    }

    /// A layer's directory, kept open for the next use.
    pub(crate) fn open_dir(&self, number: u32, path: &[u8]) -> Result<Arc<OwnedFd>, Errno> {
        if let Some(open) = self.state().open.get(&number).and_then(|dirs| dirs.get(path)) {
            return Ok(Arc::clone(open));
        }
        let handle = Arc::new(self.layers[number as usize].open_dir(path)?);
        let mut state = self.state();
        if state.open_count >= OPEN_DIRS {
            state.close_all();
        }
        state.open_count += 1;
        state.open.entry(number).or_default().insert(path.to_vec(), Arc::clone(&handle));
        Ok(handle)
    }

    /// Forgets what is known of `path` and everything below it, after it was replaced or removed.
    pub(crate) fn forget(&self, path: &[u8]) {
        let mut state = self.state();
        state.close_all();
        state.dirs.remove(path);
        let below = rel::join(path, b"");
        let doomed: Vec<Vec<u8>> =
            state.dirs.range(below.clone()..).map(|(key, _)| key).take_while(|key| key.starts_with(&below)).cloned().collect();
        for key in doomed {
            state.dirs.remove(&key);
        }
    }

    /// The draft now contributes to `dir`.
    pub(crate) fn add_draft(&self, dir: &Dir) -> Arc<Dir> {
        let layers = std::iter::once(0).chain(dir.layers.iter().copied()).collect();
        self.insert(Dir { path: dir.path.clone(), layers })
    }
}

impl Dir {
    pub(crate) fn new(path: Vec<u8>, layers: Vec<u32>) -> Self {
        Self { path, layers }
    }
}

fn literal(dir: &[u8], part: &[u8], pending: &[Vec<u8>]) -> Vec<u8> {
    let mut path = rel::join(dir, part);
    for part in pending.iter().rev() {
        if part == b".." {
            rel::pop(&mut path);
        } else {
            rel::push(&mut path, part);
        }
    }
    path
}

fn empty_root() -> Metadata {
    let time = crate::Time::default();
    Metadata { mode: 0o040_755, uid: 0, gid: 0, size: 0, mtime: time, atime: time, rdev: 0, nlink: 2, ino: 0, dev: 0, blocks: 0 }
}
