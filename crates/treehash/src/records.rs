use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::ops::Bound;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use oci::Digest;

use crate::header::{FileHash, Header};
use crate::select::{self, Options};
use crate::tree::{Kind, Stat, Tree};

/// More symbolic links than this in one path are taken for a loop.
const MAX_LINKS: usize = 255;

#[derive(Debug, thiserror::Error)]
pub enum ChecksumError {
    #[error("{path:?}: not found")]
    NotFound { path: String },
    #[error("{path}: no such file or directory")]
    NoTree { path: String },
    #[error("too many links")]
    TooManyLinks,
    #[error("{text}")]
    Pattern {
        text: String,
        #[source]
        source: patterns::MatcherError,
    },
    #[error("syntax error in pattern")]
    Wildcard(#[source] patterns::BadPattern),
    #[error("failed to read {}", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What is known of a tree, and the digests found so far.
///
/// Keys are absolute paths with NUL for each slash, so that a directory's children directly follow it whatever is in names. A directory
/// has two records: under its path the digest of its contents, under its path and a NUL the digest of its own header. The root is the empty path.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Records {
    pub(crate) map: BTreeMap<Vec<u8>, Record>,
    /// Digests were added since this was made or read.
    changed: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Record {
    pub(crate) kind: RecordKind,
    pub(crate) digest: Option<Digest>,
    /// What the tree told, until the digest is computed from it.
    pub(crate) stat: Option<Stat>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum RecordKind {
    File,
    /// Contents of a directory. `listed`: all its children have records.
    Dir {
        listed: bool,
    },
    DirHeader,
    Symlink(Vec<u8>),
}

/// A file as it came over the wire, with its finished digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Put {
    File,
    /// Digest of its header.
    Dir,
    Symlink {
        target: Vec<u8>,
    },
}

impl Records {
    /// Knows nothing yet; reads the tree as far as it is asked about.
    pub fn new() -> Self {
        Self::default()
    }

    /// For a tree whose files all pass by: everything in it is given by [`Records::put`], parents first. The root's own header counts as empty.
    pub fn received() -> Self {
        let mut records = Self::default();
        records.map.insert(Vec::new(), Record { kind: RecordKind::Dir { listed: true }, digest: None, stat: None });
        records.map.insert(vec![0], Record { kind: RecordKind::DirHeader, digest: Some(Digest::of(b"")), stat: None });
        records
    }

    /// Adds or replaces one path.
    pub fn put(&mut self, path: &Path, what: Put, digest: Digest) {
        let key = key_of(path);
        self.spoil(&key);
        let was_dir = matches!(self.map.get(&key), Some(Record { kind: RecordKind::Dir { .. }, .. }));
        let kind = match what {
            Put::Dir => {
                let contents = Record { kind: RecordKind::Dir { listed: true }, digest: None, stat: None };
                self.map.insert(key.clone(), contents);
                let header = Record { kind: RecordKind::DirHeader, digest: Some(digest), stat: None };
                self.map.insert(with_nul(&key), header);
                return;
            }
            Put::File => RecordKind::File,
            Put::Symlink { target } => RecordKind::Symlink(target),
        };
        if was_dir {
            self.cut(&key);
        }
        self.map.insert(key, Record { kind, digest: Some(digest), stat: None });
    }

    /// Forgets a path and everything below it, because it is gone.
    pub fn remove(&mut self, path: &Path) {
        let key = key_of(path);
        self.spoil(&key);
        self.cut(&key);
        self.map.remove(&key);
    }

    /// The digest that was put or computed for a file, link or directory header.
    pub fn digest_of(&self, path: &Path) -> Option<&Digest> {
        let key = key_of(path);
        let record = self.map.get(&key)?;
        match record.kind {
            RecordKind::Dir { .. } => self.map.get(&with_nul(&key))?.digest.as_ref(),
            _ => record.digest.as_ref(),
        }
    }

    /// All files, links and directory headers whose digests are known, by absolute path.
    pub fn digests(&self) -> impl Iterator<Item = (PathBuf, &Digest)> {
        self.map.iter().filter_map(|(key, record)| {
            let path = match record.kind {
                RecordKind::Dir { .. } => return None,
                RecordKind::DirHeader => key.strip_suffix(&[0]).unwrap_or(key),
                RecordKind::File | RecordKind::Symlink(_) => key,
            };
            Some((path_of(path), record.digest.as_ref()?))
        })
    }

    /// Whether there is something new to keep since this was made, read or last asked.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// The digest of what `options` select at `path`. A missing path is an error; a wildcard or patterns that select nothing are not.
    pub fn checksum(&mut self, tree: &dyn Tree, path: &str, options: &Options) -> Result<Digest, ChecksumError> {
        if !options.wildcard && options.include_patterns.is_empty() && options.exclude_patterns.is_empty() {
            let key = key_of(Path::new(path));
            return Walk { records: self, tree, buffer: Vec::new() }.digest(&key, options.follow_links).map(|(_, digest)| digest);
        }
        select::checksum(&mut Walk { records: self, tree, buffer: Vec::new() }, path, options)
    }

    /// The contents digests of all directories above `key` are no longer true.
    fn spoil(&mut self, key: &[u8]) {
        self.changed = true;
        let mut at = key;
        while let Some(slash) = at.iter().rposition(|b| *b == 0) {
            at = &at[..slash];
            if let Some(record) = self.map.get_mut(at) {
                record.digest = None;
            }
        }
    }

    fn cut(&mut self, key: &[u8]) {
        let below = with_nul(key);
        let doomed: Vec<Vec<u8>> =
            self.map.range(below.clone()..).map(|(key, _)| key).take_while(|key| key.starts_with(&below)).cloned().collect();
        for key in doomed {
            self.map.remove(&key);
        }
    }
}

/// Records together with the tree that fills their gaps.
pub(crate) struct Walk<'a> {
    pub(crate) records: &'a mut Records,
    pub(crate) tree: &'a dyn Tree,
    buffer: Vec<u8>,
}

impl Walk<'_> {
    /// The record under exactly this key.
    pub(crate) fn get(&mut self, key: &[u8]) -> Result<Option<&Record>, ChecksumError> {
        self.ensure(key)?;
        Ok(self.records.map.get(key))
    }

    fn ensure(&mut self, key: &[u8]) -> Result<(), ChecksumError> {
        if self.records.map.contains_key(key) {
            return Ok(());
        }
        let Some(slash) = key.iter().rposition(|b| *b == 0) else {
            let root = Path::new("/");
            if let Some(stat) = self.tree.stat(root).map_err(read_error(root))? {
                self.insert(Vec::new(), stat)?;
            }
            return Ok(());
        };
        let parent = &key[..slash];
        self.ensure(parent)?;
        if slash + 1 == key.len() || !matches!(self.records.map.get(parent), Some(Record { kind: RecordKind::Dir { listed: false }, .. })) {
            return Ok(());
        }
        let path = path_of(key);
        if let Some(stat) = self.tree.stat(&path).map_err(read_error(&path))? {
            self.insert(key.to_vec(), stat)?;
        }
        Ok(())
    }

    fn insert(&mut self, key: Vec<u8>, stat: Stat) -> Result<(), ChecksumError> {
        let kind = match stat.kind {
            Kind::Dir => {
                let header = Record { kind: RecordKind::DirHeader, digest: None, stat: Some(stat) };
                self.records.map.insert(with_nul(&key), header);
                self.records.map.insert(key, Record { kind: RecordKind::Dir { listed: false }, digest: None, stat: None });
                return Ok(());
            }
            Kind::Symlink => {
                let path = path_of(&key);
                RecordKind::Symlink(self.tree.read_link(&path).map_err(read_error(&path))?)
            }
            _ => RecordKind::File,
        };
        self.records.map.insert(key, Record { kind, digest: None, stat: Some(stat) });
        Ok(())
    }

    /// Sees to it that all children of a directory have records.
    pub(crate) fn list(&mut self, key: &[u8]) -> Result<(), ChecksumError> {
        if !matches!(self.records.map.get(key), Some(Record { kind: RecordKind::Dir { listed: false }, .. })) {
            return Ok(());
        }
        let path = path_of(key);
        for (name, stat) in self.tree.read_dir(&path).map_err(read_error(&path))? {
            let mut child = with_nul(key);
            child.extend_from_slice(&name);
            if !self.records.map.contains_key(&child) {
                self.insert(child, stat)?;
            }
        }
        self.records.map.get_mut(key).expect("looked up above").kind = RecordKind::Dir { listed: true };
        Ok(())
    }

    /// Follows the symbolic links in a path, and the last one too if asked. Returns the key where that leads, whether or not something is there.
    pub(crate) fn follow(&mut self, key: &[u8], follow_last: bool) -> Result<(Vec<u8>, Option<RecordKind>), ChecksumError> {
        match self.get(key)? {
            Some(record) if !follow_last || !matches!(record.kind, RecordKind::Symlink(_)) => {
                return Ok((key.to_vec(), Some(record.kind.clone())));
            }
            _ if key.is_empty() => return Ok((Vec::new(), None)),
            _ => {}
        }
        let mut here: Vec<u8> = Vec::new();
        let mut pending: Vec<Vec<u8>> = key.split(|b| *b == 0).rev().map(<[u8]>::to_vec).collect();
        let mut links = 0;
        let mut found = None;
        while let Some(part) = pending.pop() {
            let next = applied(&here, &part);
            found = self.get(&next)?.map(|record| record.kind.clone());
            let Some(RecordKind::Symlink(target)) = &found else {
                here = next;
                continue;
            };
            if !follow_last && pending.is_empty() {
                here = next;
                break;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(ChecksumError::TooManyLinks);
            }
            if target.starts_with(b"/") {
                here.clear();
            }
            pending.extend(target.split(|b| *b == b'/').rev().filter(|part| !part.is_empty()).map(<[u8]>::to_vec));
            if pending.is_empty() {
                found = self.get(&here)?.map(|record| record.kind.clone());
            }
        }
        Ok((here, found))
    }

    /// The digest of the record that a key leads to.
    pub(crate) fn digest(&mut self, key: &[u8], follow_last: bool) -> Result<(RecordKind, Digest), ChecksumError> {
        let (real, kind) = self.follow(key, follow_last)?;
        let kind = kind.ok_or_else(|| ChecksumError::NotFound { path: text_of(key) })?;
        if let Some(digest) = &self.records.map[&real].digest {
            return Ok((kind, digest.clone()));
        }
        let digest = if matches!(kind, RecordKind::Dir { .. }) { self.dir_digest(&real)? } else { self.file_digest(&real)? };
        let record = self.records.map.get_mut(&real).expect("looked up above");
        record.digest = Some(digest.clone());
        record.stat = None;
        self.records.changed = true;
        Ok((kind, digest))
    }

    /// Of the contents: name and digest of the header (whose name is empty) and of each child, sorted by name.
    fn dir_digest(&mut self, key: &[u8]) -> Result<Digest, ChecksumError> {
        self.list(key)?;
        let mut hasher = oci::Hasher::new();
        let below = with_nul(key);
        let mut next = Some(below.clone());
        while let Some(child) = next {
            hasher.update(&child[key.len()..]);
            let (kind, digest) = self.digest(&child, false)?;
            hasher.update(digest.as_str());
            let from = if matches!(kind, RecordKind::Dir { .. }) {
                // Past all that is in there. As upstream, which takes no name to begin with the byte 0xff.
                let mut end = child;
                end.extend_from_slice(&[0, 0xff]);
                Bound::Included(end)
            } else {
                Bound::Excluded(child)
            };
            let following = self.records.map.range((from, Bound::Unbounded)).next();
            next = following.map(|(key, _)| key).filter(|key| key.starts_with(&below)).cloned();
        }
        Ok(hasher.finish())
    }

    fn file_digest(&mut self, key: &[u8]) -> Result<Digest, ChecksumError> {
        let path = path_of(key.strip_suffix(&[0]).unwrap_or(key));
        let failed = || read_error(&path);
        let record = &self.records.map[key];
        let stat = match record.stat {
            Some(stat) => stat,
            None => self.tree.stat(&path).and_then(|stat| stat.ok_or(io::ErrorKind::NotFound.into())).map_err(failed())?,
        };
        let mut header = Header::of(&stat);
        if let RecordKind::Symlink(target) = &record.kind {
            header.link = target;
        }
        let loaded = self.tree.load(&path, &stat).map_err(failed())?;
        let mut hash = FileHash::new(&header, loaded.xattrs.iter().map(|(name, value)| (name.as_slice(), value.as_slice())));
        if let Some(mut content) = loaded.content {
            self.buffer.resize(128 * 1024, 0);
            hash.read(&mut *content, stat.size, &mut self.buffer).map_err(failed())?;
        }
        Ok(hash.finish())
    }
}

/// `part` is one component: a name, nothing, `.` or `..`.
fn applied(here: &[u8], part: &[u8]) -> Vec<u8> {
    match part {
        b"" | b"." => here.to_vec(),
        b".." => here[..here.iter().rposition(|b| *b == 0).unwrap_or(0)].to_vec(),
        name => {
            let mut key = with_nul(here);
            key.extend_from_slice(name);
            key
        }
    }
}

/// The path, cleaned as text.
pub(crate) fn key_of(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().split(|b| *b == b'/').fold(Vec::new(), |key, part| applied(&key, part))
}

pub(crate) fn text_of(key: &[u8]) -> String {
    String::from_utf8_lossy(&slashed(key)).into_owned()
}

pub(crate) fn slashed(key: &[u8]) -> Vec<u8> {
    key.iter().map(|b| if *b == 0 { b'/' } else { *b }).collect()
}

fn path_of(key: &[u8]) -> PathBuf {
    if key.is_empty() { PathBuf::from("/") } else { Path::new(OsStr::from_bytes(&slashed(key))).to_owned() }
}

pub(crate) fn with_nul(key: &[u8]) -> Vec<u8> {
    let mut key = key.to_vec();
    key.push(0);
    key
}

fn read_error(path: &Path) -> impl FnOnce(io::Error) -> ChecksumError {
    let path = path.to_owned();
    move |source| ChecksumError::Read { path, source }
}
