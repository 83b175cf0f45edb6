//! One tree in place of several that lie on each other.
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, XattrFlags};
use rustix::io::Errno;

use crate::editor::{copy_file, copy_root, dress_dir};
use crate::layer::{self, Layer};
use crate::loans::{Loan, Loans, name_of};
use crate::metadata::{Follow, Metadata};
use crate::store::Store;
use crate::{Draft, Error, Result, TreeId, View, xattr};

impl Store {
    /// Makes one tree of trees that lie on each other in a stack (lowest first), to be put in their place on `below`: what they hide and
    /// delete of that, it hides and deletes too. Its files are hard links to theirs; files with several names in one of the trees keep them.
    pub fn squash(&self, run: &[TreeId], below: &[TreeId]) -> Result<TreeId> {
        let layers = self.layers(run)?;
        let mut draft = self.create()?;
        let root = draft.fs();
        let loans = layers.iter().map(|layer| self.loans(layer.id, &layer.fs)).collect::<Result<_>>()?;
        let (below, opaque) = (self.view(below)?, xattr::opaque_name(self.userxattr()));
        let mut squash = Squash { draft: &mut draft, below, opaque, loans, copies: HashMap::new(), layers: &layers };
        let failed = |path: PathBuf| move |errno| Error::os("squash", &path)(errno);
        let all: Vec<usize> = (0..layers.len()).collect();
        let is_alone = squash.below.trees().is_empty();
        squash.fill(&root, &[], &all, is_alone).map_err(failed(root.clone()))?;
        if let Some(top) = layers.first() {
            copy_root(top, &root).map_err(failed(root))?;
        }
        self.commit(draft)
    }
}

struct Squash<'a> {
    draft: &'a mut Draft,
    below: View,
    /// The attribute of directories that hide what is below.
    opaque: &'static str,
    /// Topmost first.
    layers: &'a [Arc<Layer>],
    /// Of each layer.
    loans: Vec<Arc<Loans>>,
    /// Where files that could not be linked were copied to.
    copies: HashMap<u64, PathBuf>,
}

/// What the trees make of one name.
enum Merged {
    /// The layer that has it.
    File(usize, Metadata),
    Deleted,
    Dir {
        /// Those that contribute, topmost first.
        from: Vec<usize>,
        hides: bool,
    },
}

impl Squash<'_> {
    /// Fills the directory `to` with what `path` is in the layers `from`, topmost first. `is_alone`: nothing shows through from below. There
    /// the kernel would show deletions as what they are made of.
    fn fill(&mut self, to: &Path, path: &[u8], from: &[usize], is_alone: bool) -> Result<(), Errno> {
        let dirs: Vec<OwnedFd> = from.iter().map(|number| self.layers[*number].open_dir(path)).collect::<Result<_, _>>()?;
        let mut names: BTreeMap<OsString, Vec<usize>> = BTreeMap::new();
        for (at, number) in from.iter().enumerate() {
            for name in list(&self.layers[*number], path)? {
                names.entry(name).or_default().push(at);
            }
        }
        let target: OwnedFd = File::open(to).map_err(errno)?.into();
        for (name, holders) in names {
            let inner = crate::rel::join(path, name.as_bytes());
            match self.merge(&inner, name.as_bytes(), &holders, &dirs, from)? {
                Merged::File(at, metadata) => self.place(from[at], &dirs[at], &inner, &target, to, &metadata)?,
                Merged::Deleted if is_alone || self.below(&inner)?.is_none() => {}
                Merged::Deleted => rustix::fs::mknodat(&target, &name, FileType::CharacterDevice, Mode::empty(), 0)?,
                Merged::Dir { from: inside, hides } => {
                    rustix::fs::mkdirat(&target, &name, Mode::RWXU)?;
                    let place = to.join(&name);
                    let covers = !is_alone && self.below(&inner)?.is_some_and(|is_dir| is_dir);
                    self.fill(&place, &inner, &inside, hides || !covers)?;
                    if hides && covers {
                        rustix::fs::lsetxattr(&place, self.opaque, b"y", XattrFlags::empty())?;
                    }
                    let top = self.layers[inside[0]].open_dir(&inner)?;
                    dress_dir(&top, &target, name.as_bytes())?;
                }
            }
        }
        Ok(())
    }

    /// Whether there is a directory below, or something else.
    fn below(&self, path: &[u8]) -> Result<Option<bool>, Errno> {
        let entry = self.below.lookup(crate::rel::absolute(path), Follow::No).map_err(|error| errno(error.source))?;
        Ok(entry.map(|entry| entry.metadata().is_dir()))
    }

    /// `holders` are positions in `dirs` and `from`.
    fn merge(&self, inner: &[u8], name: &[u8], holders: &[usize], dirs: &[OwnedFd], from: &[usize]) -> Result<Merged, Errno> {
        let mut found: Vec<usize> = Vec::new();
        let mut hides = false;
        for at in holders.iter().copied() {
            let stat = layer::stat(&dirs[at], name)?.ok_or(Errno::NOENT)?;
            let metadata = Metadata::of(&stat);
            if !metadata.is_dir() {
                match found.is_empty() {
                    true if metadata.is_whiteout() => return Ok(Merged::Deleted),
                    true => return Ok(Merged::File(at, metadata)),
                    // The directories above are in the place of it, and of whatever it was in the place of.
                    false => hides = true,
                }
                break;
            }
            found.push(from[at]);
            if layer::is_opaque(self.layers[from[at]].open_dir(inner)?)? {
                hides = true;
                break;
            }
        }
        Ok(Merged::Dir { from: found, hides })
    }

    fn place(&mut self, number: usize, dir: &OwnedFd, inner: &[u8], target: &OwnedFd, to: &Path, metadata: &Metadata) -> Result<(), Errno> {
        let (_, name) = crate::rel::split(inner).expect("a name in a directory is not the root");
        if let Some(copy) = self.copies.get(&metadata.ino) {
            return rustix::fs::linkat(CWD, copy, target, name, AtFlags::empty());
        }
        match rustix::fs::linkat(dir, name, target, name, AtFlags::empty()) {
            Ok(()) => {
                let own = name_of(inner);
                let origin = self.loans[number].get(metadata.ino).map(|loan| (loan.owner, loan.owner_name));
                let (owner, owner_name) = origin.unwrap_or((self.layers[number].id.number(), own));
                self.draft.links_mut().note_linked(metadata, Loan { ino: metadata.ino, owner, owner_name, name: own });
                Ok(())
            }
            Err(Errno::MLINK | Errno::XDEV | Errno::PERM | Errno::ACCESS) => {
                copy_file(dir, target, name, *metadata)?;
                if metadata.nlink > 1 {
                    self.copies.insert(metadata.ino, to.join(std::ffi::OsStr::from_bytes(name)));
                }
                Ok(())
            }
            Err(errno) => Err(errno),
        }
    }
}

fn list(layer: &Layer, path: &[u8]) -> Result<Vec<OsString>, Errno> {
    let dir = layer.fs.join(std::ffi::OsStr::from_bytes(path));
    fs::read_dir(dir).and_then(|entries| entries.map(|entry| entry.map(|e| e.file_name())).collect()).map_err(errno)
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
