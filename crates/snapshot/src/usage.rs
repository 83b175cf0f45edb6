use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What a tree takes on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Allocated blocks, in bytes.
    pub bytes: u64,
    pub inodes: u64,
    /// Bytes of files that are here by name and counted elsewhere, because other trees have them, too.
    pub shared: u64,
}

/// Who counts the blocks of an inode with names in several trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// This tree.
    Own,
    /// Another one.
    Lent,
    /// The tree where it was made is gone: those that have it share it evenly.
    Orphan,
}

/// Walks `root` and counts every inode once, `root` included.
pub(crate) fn measure(root: &Path, share: impl Fn(u64) -> Share) -> Result<Usage> {
    let mut usage = Usage::default();
    let mut seen = HashSet::new();
    let mut pending = vec![root.to_owned()];
    add(&mut usage, &fs::symlink_metadata(root).map_err(Error::io("measure", root))?);
    while let Some(dir) = pending.pop() {
        // What goes during the walk, as drafts do, takes nothing.
        let Some(entries) = present(fs::read_dir(&dir)).map_err(Error::io("measure", &dir))? else { continue };
        for entry in entries {
            let entry = entry.map_err(Error::io("measure", &dir))?;
            let Some(metadata) = present(entry.metadata()).map_err(Error::io("measure", &dir))? else { continue };
            if metadata.is_dir() {
                pending.push(entry.path());
            } else if metadata.nlink() > 1 {
                if !seen.insert(metadata.ino()) {
                    continue;
                }
                match share(metadata.ino()) {
                    Share::Own => {}
                    Share::Lent => {
                        usage.shared += metadata.blocks() * 512;
                        continue;
                    }
                    Share::Orphan => {
                        let own = metadata.blocks() * 512 / metadata.nlink();
                        usage.bytes += own;
                        usage.shared += metadata.blocks() * 512 - own;
                        continue;
                    }
                }
            }
            add(&mut usage, &metadata);
        }
    }
    Ok(usage)
}

fn present<T>(found: std::io::Result<T>) -> std::io::Result<Option<T>> {
    match found {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

fn add(usage: &mut Usage, metadata: &fs::Metadata) {
    usage.bytes += metadata.blocks() * 512;
    usage.inodes += 1;
}
