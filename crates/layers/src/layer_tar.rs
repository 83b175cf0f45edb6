//! The tar of a layer: byte for byte what BuildKit with containerd's change writer makes of the same files, so that digests agree.
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::FileType;
use snapshot::View;
use task::Cancel;

use crate::changes::{Change, changes};
use crate::error::{Error, Result};
use crate::same::Item;
use crate::tar::{EntryKind, Header, Writer};

/// Writes what `tree` changes of `below`, with times no later than `latest` in seconds since 1970; `compared` as for [`changes`].
pub(crate) fn write(tree: &Path, below: &View, compared: bool, latest: Option<i64>, cancel: &Cancel, out: &mut dyn Write) -> Result<()> {
    let mut tar = LayerTar {
        tree,
        latest,
        cancel,
        out: Writer::new(out),
        first_names: HashMap::new(),
        kept_names: HashMap::new(),
        listed: HashSet::new(),
        buffer: vec![0; 256 << 10],
    };
    changes(tree, below, compared, cancel, &mut |path, change| tar.change(path.as_os_str().as_bytes(), change))?;
    tar.out.finish().map_err(failed(tree))?;
    Ok(())
}

struct LayerTar<'a, W> {
    tree: &'a Path,
    latest: Option<i64>,
    cancel: &'a Cancel,
    out: Writer<W>,
    /// By inode, the name under which a file with several was written.
    first_names: HashMap<u64, Vec<u8>>,
    /// Names of unchanged files, in case another name of theirs is written.
    kept_names: HashMap<u64, Vec<Vec<u8>>>,
    /// Directories that are written, or were looked at for that.
    listed: HashSet<Vec<u8>>,
    buffer: Vec<u8>,
}

impl<W: Write> LayerTar<'_, W> {
    fn change(&mut self, path: &[u8], change: Change) -> Result<()> {
        match change {
            Change::Deleted => self.deletion(path),
            Change::Written(item) => self.item(path, &item, false),
            Change::Kept(item) => self.item(path, &item, true),
        }
    }

    fn deletion(&mut self, path: &[u8]) -> Result<()> {
        let at = path.iter().rposition(|&b| b == b'/').map_or(0, |at| at + 1);
        let header = Header {
            kind: EntryKind::File,
            name: [&path[..at], b".wh.", &path[at..]].concat(),
            link: Vec::new(),
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: 0,
            device: (0, 0),
            xattrs: BTreeMap::new(),
        };
        self.header(&header)
    }

    fn item(&mut self, path: &[u8], item: &Item, kept: bool) -> Result<()> {
        let kind = match item.kind() {
            FileType::RegularFile => EntryKind::File,
            FileType::Directory => EntryKind::Directory,
            FileType::Symlink => EntryKind::Symlink,
            FileType::CharacterDevice => EntryKind::CharDevice,
            FileType::BlockDevice => EntryKind::BlockDevice,
            FileType::Fifo => EntryKind::Fifo,
            // Sockets mean nothing without their process.
            _ => return Ok(()),
        };
        let is_device = matches!(kind, EntryKind::CharDevice | EntryKind::BlockDevice);
        let mut header = Header {
            kind,
            name: if kind == EntryKind::Directory { [path, b"/"].concat() } else { path.to_vec() },
            link: if kind == EntryKind::Symlink { item.target()? } else { Vec::new() },
            mode: item.mode & 0o7777,
            uid: item.uid,
            gid: item.gid,
            size: if kind == EntryKind::File { item.size } else { 0 },
            mtime: self.latest.map_or(item.mtime.0, |latest| item.mtime.0.min(latest)),
            device: if is_device { (rustix::fs::major(item.rdev), rustix::fs::minor(item.rdev)) } else { (0, 0) },
            xattrs: BTreeMap::new(),
        };
        let mut others = Vec::new();
        if item.is_linked() {
            if let Some(first) = self.first_names.get(&item.ino) {
                header.kind = EntryKind::HardLink;
                header.link = first.clone();
                header.size = 0;
            } else if kept {
                self.kept_names.entry(item.ino).or_default().push(header.name);
                return Ok(());
            } else {
                self.first_names.insert(item.ino, header.name.clone());
                others = self.kept_names.remove(&item.ino).unwrap_or_default();
            }
        } else if kept {
            return Ok(());
        }
        let file = if header.kind == EntryKind::File && header.size > 0 { Some(item.open()?) } else { None };
        let capabilities = file.as_ref().map_or_else(|| item.capabilities(), |file| item.capabilities_of(file))?;
        if !capabilities.is_empty() {
            header.xattrs.insert(b"security.capability".to_vec(), capabilities);
        }
        self.header(&header)?;
        if let Some(file) = file {
            self.content(item, file)?;
        }
        for name in others {
            let link = Header { kind: EntryKind::HardLink, link: std::mem::take(&mut header.name), size: 0, name, ..header.clone() };
            self.header(&link)?;
            header.name = link.link;
        }
        Ok(())
    }

    fn header(&mut self, header: &Header) -> Result<()> {
        self.parents(header)?;
        self.out.header(header).map_err(failed(self.tree))
    }

    /// Lists the directory that an entry is in, with all above it, before the entry.
    fn parents(&mut self, header: &Header) -> Result<()> {
        let name = trim_slashes(&header.name);
        if let Some(at) = name.iter().rposition(|&b| b == b'/')
            && !self.listed.contains(&name[..at])
        {
            let parent = name[..at].to_vec();
            let item = Item::at(&self.tree.join(Path::new(std::ffi::OsStr::from_bytes(&parent))))?;
            self.listed.insert(parent.clone());
            self.item(&parent, &item, false)?;
        }
        if header.kind == EntryKind::Directory {
            self.listed.insert(name.to_vec());
        }
        Ok(())
    }

    fn content(&mut self, item: &Item, mut file: File) -> Result<()> {
        let mut left = item.size;
        while left > 0 {
            self.cancel.check()?;
            let most = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = file.read(&mut self.buffer[..most]).map_err(Error::io("read", &item.path))?;
            if read == 0 {
                return Err(Error::io("read", &item.path)(std::io::ErrorKind::UnexpectedEof.into()));
            }
            self.out.data(&self.buffer[..read]).map_err(failed(self.tree))?;
            left -= read as u64;
        }
        Ok(())
    }
}

fn trim_slashes(name: &[u8]) -> &[u8] {
    let end = name.iter().rposition(|&b| b != b'/').map_or(0, |at| at + 1);
    &name[..end]
}

/// The sink of an archive fails: a full disk, or a cancelled compression.
fn failed(tree: &Path) -> impl FnOnce(std::io::Error) -> Error {
    Error::io("archive", tree)
}
