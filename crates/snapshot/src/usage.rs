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
        for entry in fs::read_dir(&dir).map_err(Error::io("measure", &dir))? {
            let entry = entry.map_err(Error::io("measure", &dir))?;
            let metadata = entry.metadata().map_err(Error::io("measure", &dir))?;
            if metadata.is_dir() {
                pending.push(entry.path());
            } else if metadata.nlink() > 1 {
                if !seen.insert(metadata.ino()) {
                    continue;
                }
                match share(metadata.ino()) {
                    Share::Own => {}
                    Share::Lent => continue,
                    Share::Orphan => {
                        usage.bytes += metadata.blocks() * 512 / metadata.nlink();
                        continue;
                    }
                }
            }
            add(&mut usage, &metadata);
        }
    }
    Ok(usage)
}

fn add(usage: &mut Usage, metadata: &fs::Metadata) {
    usage.bytes += metadata.blocks() * 512;
    usage.inodes += 1;
}
