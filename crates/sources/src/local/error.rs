use fault::{Classified, Kind};

/// Why files could not be taken from a client.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    #[error("could not access local files without session")]
    NoSession,
    #[error("invalid value for {attr}: {value:?}")]
    Attr { attr: &'static str, value: String },
    #[error("{problem} {path}: invalid argument")]
    Path { path: String, problem: &'static str },
    #[error("changes out of order: {path:?} {last:?}")]
    Order { path: String, last: String },
    #[error("invalid link {path} to unknown path: {target:?}")]
    Link { path: String, target: String },
    #[error("{path} is a character device 0:0, which layers use for deletions")]
    Whiteout { path: String },
    #[error("invalid file request {id}")]
    Id { id: u32 },
    #[error("the client sends more than {limit} files at the same time")]
    Interleaved { limit: usize },
    #[error("error from sender: {message}")]
    Sender { message: String },
    #[error("the client ended the transfer early")]
    Ended,
    #[error("failed to {action} {path}")]
    Io { action: &'static str, path: String, source: std::io::Error },
}

impl LocalError {
    pub(crate) fn io(action: &'static str, path: &str) -> impl FnOnce(rustix::io::Errno) -> Self {
        let path = path.to_owned();
        move |errno| Self::Io { action, path, source: errno.into() }
    }
}

impl Classified for LocalError {
    fn kind(&self) -> Kind {
        match self {
            Self::NoSession => Kind::Precondition,
            Self::Sender { .. } => Kind::Unknown,
            Self::Ended => Kind::Unavailable,
            Self::Io { source, .. } => Kind::of_io(source),
            _ => Kind::Invalid,
        }
    }
}
