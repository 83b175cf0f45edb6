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

/// Walks `root` and counts every inode once, `root` included; inodes in `borrowed` belong to another tree.
pub(crate) fn measure(root: &Path, borrowed: &HashSet<u64>) -> Result<Usage> {
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
            } else if metadata.nlink() > 1 && (borrowed.contains(&metadata.ino()) || !seen.insert(metadata.ino())) {
                continue;
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
