use std::io;
use std::path::{Path, PathBuf};

use crate::TreeId;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Opening a store failed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the snapshot store {} is in use by another process", .root.display())]
    Locked { root: PathBuf },
    #[error("overlay mounts do not work in {}", .root.display())]
    NoOverlay {
        root: PathBuf,
        #[source]
        source: crate::MountError,
    },
    #[error(transparent)]
    Store(#[from] Error),
}

/// A store operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to {action} {}", .path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the tree {id} does not exist")]
    NoTree { id: TreeId },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn path(error: crate::PathError) -> Self {
        Self::Io { action: error.action, path: error.path, source: error.source }
    }

    pub(crate) fn os(action: &'static str, path: &Path) -> impl FnOnce(rustix::io::Errno) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source: source.into() }
    }
}
