use std::path::{Path, PathBuf};

use fault::{Classified, Fault, Kind};
use oci::Digest;

use crate::LayerId;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Database(#[from] kv::Error),
    #[error(transparent)]
    Content(#[from] content::Error),
    #[error(transparent)]
    Snapshot(#[from] snapshot::Error),
    /// The layer's files are not on this machine yet.
    #[error("layer {id} is not realized")]
    Lazy { id: LayerId },
    /// The layer was left lazy, and whoever knew where its blob comes from is gone.
    #[error("layer {id} needs blob {digest}, which has no source")]
    NoSource { id: LayerId, digest: Digest },
    #[error("layer {id} has neither files nor a blob")]
    Lost { id: LayerId },
    #[error("could not {action} {path:?}")]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("failed to unpack layer {digest}")]
    Unpack { digest: Digest, source: crate::unpack::UnpackError },
    #[error("layer {digest} does not have the content it is said to have: wanted {expected}, got {actual}")]
    DiffId { digest: Digest, expected: Digest, actual: Digest },
    #[error("unsupported layer media type {media_type:?}")]
    MediaType { media_type: String },
    /// Another room's failure that ended the work on a layer.
    #[error("{0}")]
    Fault(Fault),
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Error::Io { action, path, source }
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        Error::Fault(fault)
    }
}

impl Classified for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Database(e) => e.kind(),
            Error::Content(e) => e.kind(),
            Error::Snapshot(snapshot::Error::Io { source, .. }) | Error::Io { source, .. } => Kind::of_io(source),
            Error::Snapshot(_) => Kind::Internal,
            Error::Lazy { .. } | Error::NoSource { .. } | Error::Lost { .. } => Kind::NotFound,
            Error::Unpack { .. } | Error::DiffId { .. } | Error::MediaType { .. } => Kind::Invalid,
            Error::Fault(fault) => fault.kind(),
        }
    }

    fn details(&self) -> Vec<fault::Detail> {
        match self {
            Error::Fault(fault) => fault.details().into_iter().cloned().collect(),
            _ => Vec::new(),
        }
    }
}
