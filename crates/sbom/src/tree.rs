//! Walks a tree for whatever tells of packages.
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use fault::{Classified, Kind};
use oci::{Digest, Hasher};
use sha1::{Digest as _, Sha1};
use snapshot::{Entry, Follow, PathError, View};

use crate::package::Package;
use crate::release::Release;
use crate::rpm::{self, RpmError};
use crate::{alpine, debian, go_binary, lock};

/// A database or lock file of more bytes is none.
const MAX_TEXT: u64 = 64 << 20;
/// The same for what Go's linker notes.
const MAX_NOTE: usize = 4 << 20;
/// No Go program is smaller than this many bytes.
const MIN_PROGRAM: u64 = 1024;
/// The same for RPM's database, which is read in parts.
const MAX_DATABASE: u64 = 1 << 30;

/// What a tree holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The system's own name for itself; may be empty.
    pub system: String,
    /// In the order of the paths.
    pub evidence: Vec<Evidence>,
    /// What is missing here, for a person to read.
    pub notes: Vec<String>,
}

/// A file that tells of packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// From the root, with a leading slash.
    pub path: String,
    pub sha1: String,
    pub digest: Digest,
    pub packages: Vec<Package>,
}

#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    #[error(transparent)]
    Path(#[from] PathError),
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: std::io::Error },
}

impl Classified for ScanError {
    fn kind(&self) -> Kind {
        match self {
            Self::Path(error) => Kind::of_io(&error.source),
            Self::Read { source, .. } => Kind::of_io(source),
        }
    }
}

/// Reads every file that its name or content shows to be of interest. Blocks on the disk; links are not followed, as what they lead to is in the tree or
/// not of it.
pub fn scan(tree: &View) -> Result<Found, ScanError> {
    let release = release(tree)?;
    let mut found = Found { system: release.pretty.clone(), ..Found::default() };
    tree.walk("/", &mut |entry: &Entry| {
        if entry.metadata().is_file() {
            look(entry, &release, &mut found)?;
        }
        Ok::<_, ScanError>(true)
    })?;
    Ok(found)
}

fn release(tree: &View) -> Result<Release, ScanError> {
    for path in ["/etc/os-release", "/usr/lib/os-release"] {
        if let Some(entry) = tree.lookup(path, Follow::Yes)?.filter(|entry| entry.metadata().is_file() && entry.metadata().size < MAX_TEXT)
        {
            return Ok(Release::parse(&text(&mut open(&entry)?, &entry)?));
        }
    }
    Ok(Release::default())
}

fn look(entry: &Entry, release: &Release, found: &mut Found) -> Result<(), ScanError> {
    let (path, metadata) = (entry.path().to_string_lossy(), entry.metadata());
    let (directory, name) = path.rsplit_once('/').unwrap_or_default();
    let dpkg = path == "/var/lib/dpkg/status" || (directory == "/var/lib/dpkg/status.d" && !name.ends_with(".md5sums"));
    let apk = path == "/lib/apk/db/installed" || path == "/usr/lib/apk/db/installed";
    let reader = lock::reader(directory, name);
    if rpm::is_database(directory, name) {
        if metadata.size > MAX_DATABASE {
            found.notes.push(format!("{path} was not read: it has {} bytes", metadata.size));
            return Ok(());
        }
        let mut file = open(entry)?;
        match rpm::parse(&mut file, release) {
            Ok(packages) => found.add(entry, &mut file, packages)?,
            Err(RpmError::Io(source)) => return Err(failed(entry.path())(source)),
            Err(error) => found.notes.push(format!("{path} was not read: {error}")),
        }
    } else if rpm::is_log(directory, name) {
        if metadata.size > 0 {
            found.notes.push(format!("{path} was not read, so packages that were installed last may be missing here"));
        }
    } else if dpkg || apk || reader.is_some() {
        if metadata.size > MAX_TEXT {
            found.notes.push(format!("{path} was not read: it has {} bytes", metadata.size));
            return Ok(());
        }
        let mut file = open(entry)?;
        let text = text(&mut file, entry)?;
        let packages = match reader {
            _ if dpkg => Ok(debian::parse(&text, release)),
            _ if apk => Ok(alpine::parse(&text, release)),
            Some(read) => read(&text),
            None => Ok(Vec::new()),
        };
        match packages {
            Ok(packages) => found.add(entry, &mut file, packages)?,
            Err(error) => found.notes.push(format!("{path} was not read: {}", fault::chain(&error))),
        }
    } else if metadata.permissions() & 0o111 != 0 && metadata.size >= MIN_PROGRAM {
        let mut file = open(entry)?;
        let Some(note) = note(&mut file, entry)? else { return Ok(()) };
        match go_binary::parse(&note) {
            Ok(packages) => found.add(entry, &mut file, packages)?,
            Err(error) => found.notes.push(format!("{path} was not read: {}", fault::chain(&error))),
        }
    }
    Ok(())
}

impl Found {
    /// A file that names nothing is no evidence of anything.
    fn add(&mut self, entry: &Entry, file: &mut File, packages: Vec<Package>) -> Result<(), ScanError> {
        if packages.is_empty() {
            return Ok(());
        }
        let path = entry.path().to_string_lossy().into_owned();
        let (sha1, digest) = digests(file).map_err(failed(entry.path()))?;
        self.evidence.push(Evidence { path, sha1, digest, packages });
        Ok(())
    }
}

fn open(entry: &Entry) -> Result<File, ScanError> {
    entry.open().map_err(failed(entry.path()))
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> ScanError {
    let path = path.to_owned();
    move |source| ScanError::Read { path, source }
}

fn text(file: &mut File, entry: &Entry) -> Result<String, ScanError> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(failed(entry.path()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn note(file: &mut File, entry: &Entry) -> Result<Option<Vec<u8>>, ScanError> {
    let mut read = |at: u64, length: usize| {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(at))?;
        file.by_ref().take(length.min(MAX_NOTE) as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let place = go_binary::note(&mut read).map_err(failed(entry.path()))?;
    place.map(|(at, length)| read(at, length)).transpose().map_err(failed(entry.path()))
}

fn digests(file: &mut File) -> std::io::Result<(String, Digest)> {
    file.seek(SeekFrom::Start(0))?;
    let (mut sha1, mut sha256, mut chunk) = (Sha1::new(), Hasher::new(), vec![0; 64 << 10]);
    loop {
        let length = file.read(&mut chunk)?;
        if length == 0 {
            break;
        }
        sha1.update(&chunk[..length]);
        sha256.update(&chunk[..length]);
    }
    Ok((sha1.finalize().iter().map(|byte| format!("{byte:02x}")).collect(), sha256.finish()))
}
