//! Equal files of different trees become one inode.
//!
//! Only where nobody can tell: content, owner, mode, times and attributes are equal; the file has no other name in either tree; and nobody
//! has the tree mounted, as its owner sees to. Each file is replaced at once, by a rename, so that a crash leaves either.
use std::collections::{HashMap, HashSet};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD};
use rustix::io::Errno;

use crate::loans::{Loan, Loans, name_of};
use crate::{Result, TreeId, xattr};

/// What was found and linked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Deduplicated {
    pub files: u64,
    pub bytes: u64,
}

/// Smaller files are not worth the look: they take a block at most.
const SMALLEST: u64 = 1024;
/// Files of this size on are remembered one by one.
const LARGE: u64 = 1 << 20;
/// As many fingerprints stand for a tree, besides those of large files; the smallest, so that equal trees have equal ones.
const SKETCH: usize = 64;
/// ext4 allows 65,000 names; some are left to others.
const MOST_NAMES: u64 = 60_000;

/// Equal files have an equal one; others hardly ever.
type Fingerprint = u64;

fn fingerprint(metadata: &Metadata) -> Fingerprint {
    let mut bytes = Vec::with_capacity(40);
    for number in [metadata.size(), u64::from(metadata.mode()), u64::from(metadata.uid()), u64::from(metadata.gid())] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.extend_from_slice(&metadata.mtime().to_le_bytes());
    bytes.extend_from_slice(&metadata.mtime_nsec().to_le_bytes());
    name_of(&bytes)
}

/// A regular file with one name in its tree.
struct Candidate {
    /// In the tree.
    path: PathBuf,
    metadata: Metadata,
}

/// Files below `root` worth a look, but those with several names here; and the inodes of all.
fn candidates(root: &Path) -> io::Result<(Vec<Candidate>, HashSet<u64>)> {
    let mut found: HashMap<u64, Candidate> = HashMap::new();
    let mut twins = HashSet::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(root.join(&dir))? {
            let entry = entry?;
            let path = dir.join(entry.file_name());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                pending.push(path);
            } else if kind.is_file() {
                let metadata = entry.metadata()?;
                if metadata.size() >= SMALLEST && found.insert(metadata.ino(), Candidate { path, metadata: metadata.clone() }).is_some() {
                    twins.insert(metadata.ino());
                }
            }
        }
    }
    let all = found.keys().copied().collect();
    found.retain(|ino, _| !twins.contains(ino));
    Ok((found.into_values().collect(), all))
}

/// What stands for a tree when others like it are looked for.
pub(crate) fn sketch(root: &Path) -> io::Result<Vec<u64>> {
    let (files, _) = candidates(root)?;
    let mut all: Vec<Fingerprint> = files.iter().map(|file| fingerprint(&file.metadata)).collect();
    all.sort_unstable();
    all.dedup();
    all.truncate(SKETCH);
    let large = files.iter().filter(|file| file.metadata.size() >= LARGE).map(|file| fingerprint(&file.metadata));
    all.extend(large.take(4 * SKETCH));
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

/// A file to be replaced by another name of `source`.
struct Plan {
    path: PathBuf,
    source: PathBuf,
    loan: Loan,
    bytes: u64,
}

/// Links files of the tree in the directory `tree` to equal ones of the tree `other` (id, directory, loans). Returns what was done, and the
/// tree's loans from now on.
pub(crate) fn link_equal(tree: &Path, own: &Loans, other: (TreeId, &Path, &Loans)) -> Result<Option<(Deduplicated, Loans)>, io::Error> {
    let (other_id, other_tree, other_loans) = other;
    let (root, other_root) = (tree.join("fs"), other_tree.join("fs"));
    let mut wanted: HashMap<Fingerprint, Vec<Candidate>> = HashMap::new();
    // What is shared already stays so.
    let (files, mut taken) = candidates(&root)?;
    for file in files.into_iter().filter(|file| file.metadata.nlink() == 1) {
        wanted.entry(fingerprint(&file.metadata)).or_default().push(file);
    }
    taken.extend(own.iter().map(|loan| loan.ino));
    let mut plans = Vec::new();
    for source in candidates(&other_root)?.0 {
        let Some(equals) = wanted.get_mut(&fingerprint(&source.metadata)) else { continue };
        let ino = source.metadata.ino();
        if source.metadata.nlink() > MOST_NAMES || taken.contains(&ino) {
            continue;
        }
        // The one with the same name first: it can share a stack with the other.
        equals.sort_by_key(|file| file.path == source.path);
        let from = other_root.join(&source.path);
        let Some(at) = equals.iter().rposition(|file| is_equal(&root.join(&file.path), &from).unwrap_or(false)) else { continue };
        let file = equals.remove(at);
        let name = name_of(file.path.as_os_str().as_bytes());
        let (owner, owner_name) = match other_loans.get(ino) {
            Some(loan) => (loan.owner, loan.owner_name),
            None => (other_id.number(), name_of(source.path.as_os_str().as_bytes())),
        };
        taken.insert(ino);
        plans.push(Plan {
            path: file.path,
            source: from,
            loan: Loan { ino, owner, owner_name, name },
            bytes: file.metadata.blocks() * 512,
        });
    }
    if plans.is_empty() {
        return Ok(None);
    }
    let loans = Loans::new(own.iter().copied().chain(plans.iter().map(|plan| plan.loan)).collect());
    // Before the links: one that nobody knows of would be counted twice, a loan without a link does nothing.
    loans.save(tree).map_err(io::Error::other)?;
    let aside = tree.join("aside");
    fs::create_dir_all(&aside)?;
    let mut done = Deduplicated::default();
    for plan in plans {
        match replace(&root, &aside, &plan) {
            Ok(()) => {
                done.files += 1;
                done.bytes += plan.bytes;
            }
            Err(errno) => tracing::debug!(path = ?plan.path, %errno, "an equal file cannot be linked"),
        }
    }
    fs::remove_dir_all(&aside)?;
    Ok(Some((done, loans)))
}

fn replace(root: &Path, aside: &Path, plan: &Plan) -> std::result::Result<(), Errno> {
    let fresh = aside.join("link");
    rustix::fs::linkat(CWD, &plan.source, CWD, &fresh, AtFlags::empty())?;
    let target = root.join(&plan.path);
    let dir: OwnedFd =
        File::open(target.parent().expect("a file is in a directory")).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?.into();
    crate::editor::keeping_times(&dir, || rustix::fs::renameat(CWD, &fresh, CWD, &target))
}

/// Whether the rest of what can be seen of two files with equal fingerprints is equal.
fn is_equal(a: &Path, b: &Path) -> io::Result<bool> {
    let (mut a, mut b) = (File::open(a)?, File::open(b)?);
    let (of_a, of_b) = (a.metadata()?, b.metadata()?);
    if fingerprint(&of_a) != fingerprint(&of_b) || of_a.size() != of_b.size() || of_a.mtime_nsec() != of_b.mtime_nsec() {
        return Ok(false);
    }
    if xattr::read_open(&a)? != xattr::read_open(&b)? {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; 128 << 10], vec![0; 128 << 10]);
    loop {
        let (read_a, read_b) = (fill(&mut a, &mut left)?, fill(&mut b, &mut right)?);
        if left[..read_a] != right[..read_b] {
            return Ok(false);
        }
        if read_a < left.len() {
            return Ok(true);
        }
    }
}

fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}
