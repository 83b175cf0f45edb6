//! Archives that are copied by their content (Dockerfile's ADD).
//!
//! As Docker's `archive` package: the destination is the root for everything in the archive, also for absolute links.
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;
use snapshot::{Attributes, Editor, Follow, Time, View};
use tar::{Archive, Entry, EntryType};
use task::Cancel;

use super::actions::{fix_times, make_dirs};
use super::error::ActionError;
use super::owner::Ids;
use super::{decompress, wildcard};

/// Of directories that an archive implies by what is in them.
const IMPLIED_MODE: u32 = 0o755;
const MAX_LINKS: usize = 255;

/// Unpacks the file at `src` into `dest`; false if it is no archive.
pub(super) fn unpack(
    source: &View,
    src: &str,
    editor: &mut Editor<'_>,
    dest: &str,
    owner: Option<Ids>,
    time: Option<Time>,
    cancel: &Cancel,
) -> Result<bool, ActionError> {
    let place = wildcard::place(source, src, true)?;
    let Some(file) = source.lookup(&place, Follow::No)?.filter(|entry| entry.metadata().is_file()) else { return Ok(false) };
    if !is_archive(source, file.path()) {
        return Ok(false);
    }
    let root = editor.resolve(dest, Follow::Yes)?;
    let made = make_dirs(editor, &root, IMPLIED_MODE, owner)?;
    let reader = decompress::open(source.open(file.path())?).map_err(|error| damaged(src, error))?;
    Unpacker { editor, root: &root, owner, src }.run(reader, cancel)?;
    fix_times(editor, &made, time)?;
    Ok(true)
}

/// Whether a first entry can be read.
fn is_archive(source: &View, path: &Path) -> bool {
    let Ok(file) = source.open(path) else { return false };
    let Ok(reader) = decompress::open(file) else { return false };
    let mut archive = Archive::new(reader);
    archive.entries().ok().and_then(|mut entries| entries.next()).is_some_and(|first| first.is_ok())
}

struct Unpacker<'a, 'e> {
    editor: &'a mut Editor<'e>,
    root: &'a Path,
    owner: Option<Ids>,
    src: &'a str,
}

/// What an entry's header says, extensions included.
struct Header {
    name: PathBuf,
    link: Vec<u8>,
    kind: EntryType,
    attributes: Attributes,
    rdev: u64,
    xattrs: Vec<(OsString, Vec<u8>)>,
}

impl Unpacker<'_, '_> {
    fn run(mut self, reader: impl Read, cancel: &Cancel) -> Result<(), ActionError> {
        let mut archive = Archive::new(reader);
        let mut dirs: Vec<(PathBuf, (Time, Time))> = Vec::new();
        for entry in archive.entries().map_err(|error| damaged(self.src, error))? {
            cancel.check()?;
            let mut entry = entry.map_err(|error| damaged(self.src, error))?;
            if entry.header().entry_type().is_pax_global_extensions() {
                continue;
            }
            let header = Header::read(&mut entry, self.owner).map_err(|error| damaged(self.src, error))?;
            let path = self.place(&header.name)?;
            if let (Some(path), true, Some(times)) = (self.extract(&header, path, entry)?, header.kind.is_dir(), header.attributes.times) {
                dirs.push((path, times));
            }
        }
        // Last, because what was unpacked into them changed them.
        for (path, (access, modification)) in dirs {
            if self.editor.lookup(&path, Follow::No)?.is_some() {
                self.editor.set_times(&path, access, modification)?;
            }
        }
        Ok(())
    }

    /// Where a name of the archive is, with links followed as if the destination were the root. Missing parents are made.
    fn place(&mut self, name: &Path) -> Result<PathBuf, ActionError> {
        let Some(last) = name.file_name() else { return Ok(self.root.to_owned()) };
        let parent = self.follow(name.parent().unwrap_or(Path::new("")))?;
        self.editor.mkdir_all(&parent, IMPLIED_MODE)?;
        Ok(parent.join(last))
    }

    fn follow(&self, dir: &Path) -> Result<PathBuf, ActionError> {
        let parts = |path: &Path| path.components().rev().map(|part| part.as_os_str().to_owned()).collect::<Vec<_>>();
        let mut pending = parts(dir);
        let mut here = PathBuf::new();
        let mut links = 0;
        while let Some(part) = pending.pop() {
            match Path::new(&part).components().next() {
                Some(Component::ParentDir) => _ = here.pop(),
                Some(Component::Normal(name)) => {
                    let next = self.root.join(&here).join(name);
                    match self.editor.lookup(&next, Follow::No)? {
                        Some(entry) if entry.metadata().is_symlink() => {
                            links += 1;
                            if links > MAX_LINKS {
                                return Err(ActionError::os("lstat", next, Errno::LOOP));
                            }
                            let target = self.editor.read_link(&next)?;
                            if target.is_absolute() {
                                here.clear();
                            }
                            pending.extend(parts(&target));
                        }
                        _ => here.push(name),
                    }
                }
                _ => {}
            }
        }
        Ok(self.root.join(here))
    }

    /// Returns the path if something was made there.
    fn extract(&mut self, header: &Header, path: PathBuf, mut content: impl Read) -> Result<Option<PathBuf>, ActionError> {
        let existing = self.editor.lookup(&path, Follow::No)?;
        let mut is_there = false;
        if let Some(existing) = &existing {
            let is_dir = existing.metadata().is_dir();
            if is_dir && path == self.root {
                return Ok(None);
            }
            is_there = is_dir && header.kind.is_dir();
            if !is_there {
                self.editor.remove(&path)?;
            }
        }
        let permissions = header.attributes.permissions.unwrap_or(0);
        match header.kind {
            EntryType::Directory if is_there => {}
            EntryType::Directory => self.editor.mkdir(&path, permissions)?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let mut file = self.editor.create_file(&path, permissions)?;
                io::copy(&mut content, &mut file).map_err(|error| damaged(self.src, error))?;
            }
            EntryType::Symlink => self.editor.symlink(OsStr::from_bytes(&header.link), &path)?,
            EntryType::Link => {
                let target = Path::new(OsStr::from_bytes(&header.link));
                let target = match target.file_name() {
                    Some(last) => self.follow(target.parent().unwrap_or(Path::new("")))?.join(last),
                    None => self.root.to_owned(),
                };
                self.editor.hard_link(&target, &path)?;
            }
            EntryType::Char => self.editor.mknod(&path, 0o020_000 | permissions, header.rdev)?,
            EntryType::Block => self.editor.mknod(&path, 0o060_000 | permissions, header.rdev)?,
            EntryType::Fifo => self.editor.mknod(&path, 0o010_000 | permissions, 0)?,
            other => return Err(ActionError::text(format!("unhandled tar header type {}", other.as_byte()))),
        }
        // A change of owner takes capabilities away, so attributes come after it; permissions and times last.
        self.editor.set(&path, &Attributes { owner: header.attributes.owner, ..Attributes::default() })?;
        for (name, value) in &header.xattrs {
            if let Err(error) = self.editor.set_xattr(&path, name, value) {
                tracing::debug!(path = %path.display(), %error, "an extended attribute of an archive was left out");
            }
        }
        self.editor.set(&path, &Attributes { owner: None, ..header.attributes })?;
        Ok(Some(path))
    }
}

impl Header {
    fn read(entry: &mut Entry<'_, impl Read>, owner: Option<Ids>) -> io::Result<Self> {
        let mut xattrs = Vec::new();
        let (mut modified, mut accessed) = (None, None);
        if let Some(extensions) = entry.pax_extensions()? {
            for extension in extensions {
                let extension = extension?;
                match extension.key_bytes() {
                    b"mtime" => modified = seconds(extension.value_bytes()),
                    b"atime" => accessed = seconds(extension.value_bytes()),
                    key => {
                        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                            xattrs.push((OsString::from_vec(name.to_vec()), extension.value_bytes().to_vec()));
                        }
                    }
                }
            }
        }
        let header = entry.header();
        let plain = i64::try_from(header.mtime()?).unwrap_or(0);
        let modified = bound(modified.unwrap_or(Time { seconds: plain, nanos: 0 }));
        let accessed = bound(accessed.unwrap_or_default()).max(modified);
        let owner = match owner {
            Some(owner) => owner,
            None => (header.uid()? as u32, header.gid()? as u32),
        };
        let old_style_dir = header.as_bytes()[156] == 0 && entry.path_bytes().ends_with(b"/");
        let is_device = matches!(header.entry_type(), EntryType::Char | EntryType::Block);
        Ok(Self {
            kind: if old_style_dir { EntryType::Directory } else { header.entry_type() },
            attributes: Attributes { owner: Some(owner), permissions: Some(header.mode()? & 0o7777), times: Some((accessed, modified)) },
            rdev: if is_device { rustix::fs::makedev(header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0)) } else { 0 },
            name: cleaned(&entry.path_bytes()),
            link: entry.link_name_bytes().map(|link| link.into_owned()).unwrap_or_default(),
            xattrs,
        })
    }
}

/// Relative to the destination, without `.` and `..`: those do not lead out of it.
fn cleaned(name: &[u8]) -> PathBuf {
    let mut path = PathBuf::new();
    for part in Path::new(OsStr::from_bytes(name)).components() {
        match part {
            Component::ParentDir => _ = path.pop(),
            Component::Normal(name) => path.push(name),
            _ => {}
        }
    }
    path
}

/// Decimal seconds with a fraction.
fn seconds(text: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanos = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    Some(Time { seconds: whole.parse().ok()?, nanos })
}

/// Times that a file cannot have become 1970.
fn bound(time: Time) -> Time {
    if (0..=i64::MAX / 1_000_000_000).contains(&time.seconds) { time } else { Time::default() }
}

fn damaged(src: &str, source: io::Error) -> ActionError {
    ActionError::Read { message: format!("failed to unpack {src}"), source }
}
