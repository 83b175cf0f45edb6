//! Directories of a tree that hide what is below them.
//!
//! The kernel marks every directory that a step makes as hiding, whether there is anything to hide or not. In its own stack that makes no
//! difference. In a merge it would: the mark would hide directories of the same name in the layers that come below only there.
use std::path::Path;

use rustix::io::Errno;
use snapshot::TreeId;

use crate::compare::is_directory;
use crate::error::{Error, Result};
use crate::store::Layers;

const NAMES: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];

/// Takes the mark from directories that hide nothing. Returns whether others are left.
pub(crate) fn tidy(home: &Layers, draft: &snapshot::Draft, stack: &[TreeId]) -> Result<bool> {
    if stack.is_empty() {
        return Ok(false);
    }
    let below = home.trees().view(stack)?;
    let root = draft.fs();
    let mut hides = false;
    let mut pending = vec![root.clone()];
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(&dir).map_err(Error::io("read directory", &dir))? {
            let entry = entry.map_err(Error::io("read directory", &dir))?;
            if !entry.file_type().map_err(Error::io("look at", &entry.path()))?.is_dir() {
                continue;
            }
            let path = entry.path();
            if let Some(name) = mark(&path)? {
                let inside = path.strip_prefix(&root).expect("the walk stays below its root");
                if is_directory(&below, inside)? {
                    hides = true;
                } else {
                    rustix::fs::removexattr(&path, name).map_err(|e| Error::io("change", &path)(e.into()))?;
                }
            }
            pending.push(path);
        }
    }
    Ok(hides)
}

/// The attribute by which the directory hides what is below.
pub(crate) fn mark(dir: &Path) -> Result<Option<&'static str>> {
    let mut value = [0; 2];
    for name in NAMES {
        match rustix::fs::lgetxattr(dir, name, &mut value[..]) {
            Ok(1) if value[0] == b'y' => return Ok(Some(name)),
            Ok(_) | Err(Errno::NODATA | Errno::NOTSUP | Errno::RANGE) => {}
            Err(errno) => return Err(Error::io("read attributes of", dir)(errno.into())),
        }
    }
    Ok(None)
}
