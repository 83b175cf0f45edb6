//! Which inodes of a tree came into it by hard link, from which tree, and under which name.
//!
//! Two names of one inode within one stack are to be avoided: to processes in a container they are one file (`cp` refuses to copy one over
//! the other, `tar` stores one as a link to the other), which the copy that made them did not say.
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::{Error, Result, TreeId};

/// Beside a tree's content.
const FILE: &str = "loans";
const MAGIC: &[u8; 8] = b"kilnln01";
const ENTRY: usize = 32;
/// How many entries stay in memory.
const KEEP: usize = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Loan {
    pub(crate) ino: u64,
    /// [`TreeId::number`] of the tree where the inode was made.
    pub(crate) owner: u64,
    /// Its name there, as [`name_of`].
    pub(crate) owner_name: u64,
    /// Its name here.
    pub(crate) name: u64,
}

/// A tree's loans, sorted by inode.
#[derive(Debug, Default)]
pub(crate) struct Loans {
    list: Vec<Loan>,
    /// Each once, sorted.
    owners: Vec<u64>,
}

/// Stands for a path; the same one gives the same number.
pub(crate) fn name_of(path: &[u8]) -> u64 {
    // FNV-1a: stable, as the numbers are stored.
    path.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

impl Loans {
    pub(crate) fn new(mut list: Vec<Loan>) -> Self {
        list.sort_unstable_by_key(|loan| loan.ino);
        let mut owners: Vec<u64> = list.iter().map(|loan| loan.owner).collect();
        owners.sort_unstable();
        owners.dedup();
        Self { list, owners }
    }

    pub(crate) fn get(&self, ino: u64) -> Option<&Loan> {
        self.list.binary_search_by_key(&ino, |loan| loan.ino).ok().map(|at| &self.list[at])
    }

    /// The trees that the inodes were made in, each once.
    pub(crate) fn owners(&self) -> impl Iterator<Item = TreeId> {
        self.owners.iter().map(|number| TreeId::encode(*number))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Loan> {
        self.list.iter()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    fn is_owner(&self, id: TreeId) -> bool {
        self.owners.binary_search(&id.number()).is_ok()
    }

    /// What has another name in the tree where it was made, `owner`.
    fn drawn_from(&self, owner: TreeId) -> impl Iterator<Item = u64> {
        let number = if self.is_owner(owner) { Some(owner.number()) } else { None };
        let theirs = self.list.iter().filter(move |loan| Some(loan.owner) == number && loan.owner_name != loan.name);
        theirs.map(|loan| loan.ino)
    }

    pub(crate) fn without(&self, inodes: &HashSet<u64>) -> Self {
        Self::new(self.list.iter().filter(|loan| !inodes.contains(&loan.ino)).copied().collect())
    }

    pub(crate) fn save(&self, tree: &Path) -> Result<()> {
        let path = tree.join(FILE);
        if self.is_empty() {
            return match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", &path)(error)),
                _ => Ok(()),
            };
        }
        let mut bytes = Vec::with_capacity(MAGIC.len() + self.list.len() * ENTRY);
        bytes.extend_from_slice(MAGIC);
        for loan in &self.list {
            for number in [loan.ino, loan.owner, loan.owner_name, loan.name] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
        }
        let fresh = tree.join("loans.new");
        fs::write(&fresh, bytes).and_then(|()| fs::rename(&fresh, &path)).map_err(Error::io("write", &path))
    }

    fn load(tree: &Path) -> Result<Self> {
        let path = tree.join(FILE);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            other => other.map_err(Error::io("read", &path))?,
        };
        // A file that a power cut left unfinished costs nothing but the knowledge.
        let list = bytes.strip_prefix(MAGIC.as_slice()).unwrap_or_default();
        let number = |entry: &[u8], at: usize| u64::from_le_bytes(entry[at * 8..][..8].try_into().expect("eight bytes"));
        let entries = list.chunks_exact(ENTRY);
        let loan = |e: &[u8]| Loan { ino: number(e, 0), owner: number(e, 1), owner_name: number(e, 2), name: number(e, 3) };
        Ok(Self::new(entries.map(loan).collect()))
    }
}

/// The loans of trees, as far as they were asked for.
#[derive(Debug, Default)]
pub(crate) struct Ledger(Mutex<Pages>);

#[derive(Debug, Default)]
struct Pages {
    trees: HashMap<TreeId, Arc<Loans>>,
    size: usize,
    /// Pairs of trees that were found to share no inode under different names.
    clean: HashSet<(TreeId, TreeId)>,
}

impl Ledger {
    pub(crate) fn of(&self, id: TreeId, tree: &Path) -> Result<Arc<Loans>> {
        if let Some(loans) = self.pages().trees.get(&id) {
            return Ok(Arc::clone(loans));
        }
        let loans = Arc::new(Loans::load(tree)?);
        self.put(id, Arc::clone(&loans));
        Ok(loans)
    }

    pub(crate) fn put(&self, id: TreeId, loans: Arc<Loans>) {
        let mut pages = self.pages();
        if pages.size > KEEP {
            pages.trees.clear();
            pages.size = 0;
        }
        pages.size += loans.list.len() + 1;
        pages.trees.insert(id, loans);
    }

    pub(crate) fn forget(&self, id: TreeId) {
        let mut pages = self.pages();
        if let Some(loans) = pages.trees.remove(&id) {
            pages.size = pages.size.saturating_sub(loans.list.len() + 1);
        }
        pages.clean.retain(|(a, b)| *a != id && *b != id);
    }

    /// The inodes that are in the stack (lowest first) under several names, by the trees where they should become files of their own.
    pub(crate) fn twins(&self, stack: &[(TreeId, Arc<Loans>)]) -> HashMap<TreeId, HashSet<u64>> {
        let lends = |id: TreeId| stack.iter().any(|(_, loans)| loans.is_owner(id));
        let involved: Vec<_> = stack.iter().filter(|(id, loans)| !loans.is_empty() || lends(*id)).collect();
        let mut found: HashMap<TreeId, HashSet<u64>> = HashMap::new();
        for (at, (upper, above)) in involved.iter().enumerate() {
            for (lower, below) in &involved[..at] {
                if self.pages().clean.contains(&(*lower, *upper)) {
                    continue;
                }
                // Made in the one, linked by the other: the link goes. Linked by both: the upper link goes.
                let mut of_upper: HashSet<u64> = above.drawn_from(*lower).collect();
                of_upper.extend(
                    above.iter().filter(|loan| below.get(loan.ino).is_some_and(|other| other.name != loan.name)).map(|loan| loan.ino),
                );
                let of_lower: HashSet<u64> = below.drawn_from(*upper).collect();
                if of_upper.is_empty() && of_lower.is_empty() {
                    self.pages().clean.insert((*lower, *upper));
                    continue;
                }
                for (id, inodes) in [(upper, of_upper), (lower, of_lower)] {
                    if !inodes.is_empty() {
                        found.entry(*id).or_default().extend(inodes);
                    }
                }
            }
        }
        found
    }

    fn pages(&self) -> std::sync::MutexGuard<'_, Pages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a draft must know of the stack below it before it links a file.
#[derive(Debug, Default)]
pub(crate) struct Below {
    trees: HashSet<u64>,
    names: HashMap<u64, u64>,
}

impl Below {
    pub(crate) fn new(stack: impl Iterator<Item = (TreeId, Arc<Loans>)>) -> Self {
        let mut below = Self::default();
        for (id, loans) in stack {
            below.trees.insert(id.number());
            below.names.extend(loans.iter().map(|loan| (loan.ino, loan.name)));
        }
        below
    }

    /// Whether the stack has the inode under another name.
    pub(crate) fn conflicts(&self, loan: &Loan, source: TreeId, source_name: u64) -> bool {
        self.names.get(&loan.ino).is_some_and(|name| *name != loan.name)
            || self.trees.contains(&loan.owner) && loan.owner_name != loan.name
            || self.trees.contains(&source.number()) && source_name != loan.name
    }
}

/// A draft's loans by inode.
pub(crate) type Drawn = BTreeMap<u64, Loan>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn are_kept_beside_the_tree() {
        let dir = tempfile::tempdir().unwrap();
        let loan = |ino| Loan { ino, owner: 1, owner_name: name_of(b"a"), name: name_of(b"b") };
        Loans::new(vec![loan(9), loan(3)]).save(dir.path()).unwrap();
        let read = Loans::load(dir.path()).unwrap();
        assert_eq!((read.get(3), read.get(9), read.get(5)), (Some(&loan(3)), Some(&loan(9)), None));
        read.without(&HashSet::from([3, 9])).save(dir.path()).unwrap();
        assert!(Loans::load(dir.path()).unwrap().is_empty());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
