//! Turns the packets of one file sync into a directory: compares with the last version, asks for what changed, writes what comes.
//!
//! Nothing is written as long as nothing differs. At the first difference the new directory is begun and what was equal so far is taken over.
use std::cmp::Ordering;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSlice, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use oci::Digest;
use patterns::Matcher;
use session::{Stat, go_mode};
use treehash::{FileHash, Records};

use super::disk::{Disk, Taken};
use super::error::LocalError;
use super::hash;
use super::index::{Index, compare, same};
use super::metadata;
use super::pace::Pace;
use super::validate::Validator;

/// How many files a client may send at the same time; stock clients send four.
const MAX_OPEN: usize = 256;
/// As many bytes of a file, or pieces of it, are written at once. Large writes make large pages in the page cache.
const WRITE: (usize, usize) = (256 << 10, 256);
/// As many bytes of all files may wait for that.
const MAX_HELD: usize = 8 << 20;

/// Where the last version is, and what is in it.
pub(crate) struct Previous {
    pub index: Arc<Index>,
    pub path: PathBuf,
    /// Reads the content digests of the last version; only called if there is a new one.
    pub records: Box<dyn FnOnce() -> Option<Records> + Send>,
}

/// Which content is wanted.
pub(crate) struct Wanted {
    /// Ask for every file, whatever its metadata says.
    pub everything: bool,
    /// Only metadata is wanted, but for what this matches.
    pub metadata_only: Option<Matcher>,
}

/// Begins the new directory; called at most once.
pub(crate) type Begin = Box<dyn FnOnce() -> fault::Result<PathBuf> + Send>;

pub(crate) struct Writer {
    wanted: Wanted,
    previous: Option<Previous>,
    begin: Option<Begin>,
    disk: Option<Disk>,
    validator: Validator,
    /// The new directory so far.
    entries: Vec<Stat>,
    /// Their ids on the wire.
    ids: Vec<u32>,
    pace: Pace,
    /// How far `previous` has been compared.
    compared: usize,
    /// By id on the wire: the place in `entries`.
    files: HashMap<u32, usize>,
    next_id: u32,
    open: HashMap<u32, Incoming>,
    /// Bytes that came and are not yet written.
    held: usize,
    /// Digests of the files that came, by their place in `entries`.
    hashes: HashMap<usize, Digest>,
    /// The inodes that the last version has too, by their place in `entries`.
    linked: Vec<(usize, u64)>,
    /// Requested and not yet complete.
    pending: usize,
    ended: bool,
    metadata: Option<metadata::Listing>,
}

struct Incoming {
    file: File,
    hash: FileHash,
    size: u64,
    /// What is not yet written.
    held: Vec<Bytes>,
    held_bytes: usize,
}

/// What a sync came to.
pub(crate) enum Synced {
    /// The last version is still right.
    Unchanged,
    Changed(Changes),
}

pub(crate) struct Changes {
    pub index: Index,
    /// Content digests of everything, unless that of some file is not known.
    pub records: Option<Records>,
    /// Places in the index of files that are hard links to those of the last version, with their inodes.
    pub linked: Vec<(usize, u64)>,
}

impl Writer {
    pub fn new(previous: Option<Previous>, wanted: Wanted, begin: Begin) -> Self {
        let metadata = wanted.metadata_only.is_some().then(metadata::Listing::default);
        Self {
            wanted,
            previous,
            begin: Some(begin),
            disk: None,
            validator: Validator::default(),
            entries: Vec::new(),
            ids: Vec::new(),
            pace: Pace::default(),
            compared: 0,
            files: HashMap::new(),
            next_id: 0,
            open: HashMap::new(),
            held: 0,
            hashes: HashMap::new(),
            linked: Vec::new(),
            pending: 0,
            ended: false,
            metadata,
        }
    }

    /// The next entry.
    pub fn entry(&mut self, stat: Stat) -> fault::Result<()> {
        let id = self.next_id;
        self.next_id += 1;
        self.validator.check(&stat)?;
        let Some(listing) = &mut self.metadata else { return self.place(stat, id) };
        if stat.path == metadata::FILE {
            return Ok(());
        }
        listing.add(&stat);
        let matched = self.wanted.metadata_only.as_ref().is_some_and(|m| m.matches(&stat.path).unwrap_or(false));
        for parent in listing.parents_to_place(&stat, matched) {
            // Directories are not asked for, so their id does not matter.
            self.place(parent, id)?;
        }
        if matched && stat.mode & go_mode::DIR == 0 { self.place(stat, id) } else { Ok(()) }
    }

    /// No more entries.
    pub fn end(&mut self) -> fault::Result<()> {
        self.ended = true;
        let left = self.previous.as_ref().is_none_or(|p| self.compared < p.index.entries.len());
        if left && self.disk.is_none() {
            self.begin(self.entries.len())?;
        }
        Ok(())
    }

    /// The ids of files whose content is wanted now.
    pub fn requests(&mut self) -> Vec<u32> {
        self.pace.next(self.ended)
    }

    pub fn data(&mut self, id: u32, data: Bytes) -> fault::Result<()> {
        let place = *self.files.get(&id).ok_or(LocalError::Id { id })?;
        let (disk, stat) = (self.disk.as_ref().ok_or(LocalError::Id { id })?, &self.entries[place]);
        if !self.open.contains_key(&id) {
            if self.open.len() >= MAX_OPEN {
                return Err(LocalError::Interleaved { limit: MAX_OPEN }.into());
            }
            let incoming = Incoming { file: disk.create(stat)?, hash: hash::begin(stat), size: 0, held: Vec::new(), held_bytes: 0 };
            self.open.insert(id, incoming);
        }
        let incoming = self.open.get_mut(&id).expect("just inserted");
        let failed = |source| LocalError::Io { action: "write", path: stat.path.clone(), source };
        if !data.is_empty() {
            self.held += data.len();
            incoming.take(data);
            if incoming.held_bytes >= WRITE.0 || incoming.held.len() >= WRITE.1 || self.held >= MAX_HELD {
                self.held -= incoming.flush().map_err(failed)?;
            }
            return Ok(());
        }
        let mut done = self.open.remove(&id).expect("just used");
        self.held -= done.flush().map_err(failed)?;
        self.files.remove(&id);
        disk.finish(&done.file, stat)?;
        // A file that changed while it was sent has no digest that fits its size.
        if i64::try_from(done.size) == Ok(stat.size) {
            self.hashes.insert(place, done.hash.finish());
        }
        self.pace.done(stat.size);
        self.pending -= 1;
        Ok(())
    }

    /// Whether everything that was asked for has come.
    pub fn is_complete(&self) -> bool {
        self.ended && self.pending == 0
    }

    pub fn finish(mut self) -> fault::Result<Synced> {
        let listing = self.metadata.take();
        let metadata = listing.as_ref().map_or([0; 32], metadata::Listing::digest);
        if self.disk.is_none() && self.previous.as_ref().is_some_and(|p| p.index.metadata != metadata) {
            self.begin(self.entries.len())?;
        }
        if self.wanted.everything && self.is_as_before(&metadata) {
            return Ok(Synced::Unchanged);
        }
        let Some(disk) = &self.disk else { return Ok(Synced::Unchanged) };
        for stat in self.entries.iter().filter(|s| is_hard_link(s)) {
            disk.hard_link(stat)?;
        }
        if let Some(listing) = &listing {
            let stat = Stat { path: metadata::FILE.into(), mode: 0o644, ..Stat::default() };
            let mut file = disk.create(&stat)?;
            file.write_all(listing.bytes()).map_err(|source| LocalError::Io { action: "write", path: metadata::FILE.into(), source })?;
            disk.finish(&file, &stat)?;
        }
        // Last, and from the bottom up, since every change of a directory moves its time.
        for stat in self.entries.iter().rev().filter(|s| s.mode & go_mode::DIR != 0) {
            disk.settle(stat)?;
        }
        let records = if listing.is_none() { self.records() } else { None };
        Ok(Synced::Changed(Changes { index: Index { entries: self.entries, metadata }, records, linked: self.linked }))
    }

    /// Whether what was asked for anew is what the last version has: else each build would add a version.
    fn is_as_before(&mut self, metadata: &[u8; 32]) -> bool {
        let Some(Previous { index, .. }) = &self.previous else { return false };
        let alike = |(old, new): (&Stat, &Stat)| old.path == new.path && same(old, new);
        let lists = index.metadata == *metadata && index.entries.len() == self.entries.len();
        if !lists || !index.entries.iter().zip(&self.entries).all(alike) {
            return false;
        }
        let Some(before) = self.previous.take().and_then(|previous| (previous.records)()) else { return false };
        let mut files = self.entries.iter().enumerate().filter(|(_, stat)| is_regular(stat) && stat.linkname.is_empty());
        files.all(|(place, stat)| {
            let old = before.digest_of(&Path::new("/").join(&stat.path));
            old.is_some() && old == self.hashes.get(&place)
        })
    }

    /// What came was hashed; what did not change is as it was.
    fn records(&mut self) -> Option<Records> {
        let mut hashes = std::mem::take(&mut self.hashes);
        let files = self.entries.iter().filter(|s| is_regular(s) && s.linkname.is_empty()).count();
        let previous = if hashes.len() < files { (self.previous.take()?.records)()? } else { Records::new() };
        hash::records(&self.entries, |place, stat| {
            hashes.remove(&place).or_else(|| previous.digest_of(&Path::new("/").join(&stat.path)).cloned())
        })
    }

    /// Adds an entry to the new directory.
    fn place(&mut self, stat: Stat, id: u32) -> fault::Result<()> {
        let (equal, skipped) = self.compare(&stat);
        self.entries.push(stat);
        self.ids.push(id);
        let place = self.entries.len() - 1;
        if self.disk.is_none() {
            if equal && !skipped {
                return Ok(());
            }
            self.begin(place)?;
        }
        self.write(place, equal)
    }

    /// Moves on in the last version to `stat`. Whether it has the same entry, and whether it has others before that are gone.
    fn compare(&mut self, stat: &Stat) -> (bool, bool) {
        let Some(previous) = &self.previous else { return (false, false) };
        let mut skipped = false;
        while let Some(old) = previous.index.entries.get(self.compared) {
            match compare(&old.path, &stat.path) {
                Ordering::Less => skipped = true,
                Ordering::Equal => {
                    self.compared += 1;
                    let asked = self.wanted.everything && stat.mode & go_mode::DIR == 0;
                    return (same(old, stat) && !asked, skipped);
                }
                Ordering::Greater => break,
            }
            self.compared += 1;
        }
        (false, skipped)
    }

    /// Begins the new directory with the first `equal` entries, none of which differs from the last version.
    fn begin(&mut self, equal: usize) -> fault::Result<()> {
        let begin = self.begin.take().expect("the directory is begun once");
        let root = begin()?;
        self.disk = Some(Disk::open(&root, self.previous.as_ref().map(|p| p.path.as_path()))?);
        (0..equal).try_for_each(|place| self.write(place, true))
    }

    fn write(&mut self, place: usize, equal: bool) -> fault::Result<()> {
        let disk = self.disk.as_mut().expect("only called once begun");
        let stat = &self.entries[place];
        if stat.mode & go_mode::DIR != 0 {
            disk.mkdir(stat)?;
        } else if is_regular(stat) {
            if !stat.linkname.is_empty() {
                // Made at the end, when its target has its content.
                return Ok(());
            }
            match if equal { disk.take_over(stat)? } else { Taken::Gone } {
                Taken::Linked { ino } => self.linked.push((place, ino)),
                Taken::Copied => {}
                Taken::Gone => {
                    self.files.insert(self.ids[place], place);
                    self.pace.want(self.ids[place], stat.size);
                    self.pending += 1;
                }
            }
        } else if stat.mode & go_mode::SOCKET == 0 {
            disk.special(stat)?;
        }
        Ok(())
    }
}

impl Incoming {
    fn take(&mut self, data: Bytes) {
        self.hash.update(&data);
        self.size += data.len() as u64;
        self.held_bytes += data.len();
        self.held.push(data);
    }

    /// Writes what is held; returns how many bytes.
    fn flush(&mut self) -> io::Result<usize> {
        let mut slices: Vec<IoSlice<'_>> = self.held.iter().map(|data| IoSlice::new(data)).collect();
        let mut rest = slices.as_mut_slice();
        while !rest.is_empty() {
            match self.file.write_vectored(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => IoSlice::advance_slices(&mut rest, count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.held.clear();
        Ok(std::mem::take(&mut self.held_bytes))
    }
}

fn is_regular(stat: &Stat) -> bool {
    const SPECIAL: u32 = go_mode::DIR
        | go_mode::SYMLINK
        | go_mode::DEVICE
        | go_mode::NAMED_PIPE
        | go_mode::SOCKET
        | go_mode::CHAR_DEVICE
        | go_mode::IRREGULAR;
    stat.mode & SPECIAL == 0
}

fn is_hard_link(stat: &Stat) -> bool {
    is_regular(stat) && !stat.linkname.is_empty()
}
