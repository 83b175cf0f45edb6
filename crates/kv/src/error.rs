use std::path::PathBuf;

use fault::{Classified, Kind};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A read or a commit that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("database I/O failed")]
    Io(#[source] std::io::Error),
    /// The file does not hold what was written to it. It is set aside at the next start.
    #[error("database is damaged: {0}")]
    Damaged(String),
    #[error("database engine failed: {0}")]
    Engine(String),
    #[error("record in table {table:?} cannot be read: {reason}")]
    Decode { table: &'static str, reason: String },
    #[error("database is closed")]
    Closed,
    /// The commit that a flush waited for failed; it is tried again in the background.
    #[error("commit failed: {0}")]
    Commit(String),
}

impl Classified for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Io(e) => Kind::of_io(e),
            Error::Commit(_) | Error::Closed => Kind::Unavailable,
            Error::Damaged(_) | Error::Engine(_) | Error::Decode { .. } => Kind::Internal,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("could not open database {path:?}")]
    Open { path: PathBuf, source: Error },
    #[error("database {path:?} is in use by another process")]
    InUse { path: PathBuf },
    #[error("could not set damaged database {path:?} aside")]
    SetAside { path: PathBuf, source: std::io::Error },
    #[error("could not start the database writer")]
    Thread(#[source] std::io::Error),
}

impl Classified for OpenError {
    fn kind(&self) -> Kind {
        match self {
            OpenError::Open { source, .. } => source.kind(),
            OpenError::InUse { .. } => Kind::Precondition,
            OpenError::SetAside { source, .. } | OpenError::Thread(source) => Kind::of_io(source),
        }
    }
}
