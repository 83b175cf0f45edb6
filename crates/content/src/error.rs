use std::io;
use std::path::{Path, PathBuf};

use fault::{Classified, Kind};
use oci::Digest;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("could not make directory {path:?} for blobs")]
    Directory { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Database(#[from] kv::Error),
    #[error("could not read the boot id")]
    BootId(#[source] io::Error),
}

impl Classified for OpenError {
    fn kind(&self) -> Kind {
        match self {
            OpenError::Directory { source, .. } | OpenError::BootId(source) => Kind::of_io(source),
            OpenError::Database(source) => source.kind(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("blob {digest} not found")]
    NotFound { digest: Digest },
    #[error("blob {digest} is in use")]
    InUse { digest: Digest },
    #[error("unexpected content: wanted {expected}, got {actual}")]
    Mismatch { expected: Digest, actual: Digest },
    #[error("unexpected size of {digest}: wanted {expected} bytes, got {actual}")]
    Size { digest: Digest, expected: u64, actual: u64 },
    /// Somebody else writes under the same key.
    #[error("ingest {key:?} is already running")]
    Busy { key: String },
    #[error("blobs are named by sha256, not {digest}")]
    Algorithm { digest: Digest },
    #[error("could not {action} {path:?}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Database(#[from] kv::Error),
    /// The thread that writes an [`crate::IngestStream`] ended without a result.
    #[error("the writer of an ingest ended early")]
    Writer,
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Error::Io { action, path, source }
    }
}

impl Classified for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::NotFound { .. } => Kind::NotFound,
            Error::InUse { .. } | Error::Busy { .. } => Kind::Precondition,
            Error::Mismatch { .. } | Error::Size { .. } => Kind::Precondition,
            Error::Algorithm { .. } => Kind::Invalid,
            Error::Io { source, .. } => Kind::of_io(source),
            Error::Database(source) => source.kind(),
            Error::Writer => Kind::Internal,
        }
    }
}
