use std::io;

use fault::{Classified, Kind};

/// Why a process could not be run; a process that ran and failed is an [`Exit`](crate::Exit).
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("invalid container: {0}")]
    Invalid(String),
    /// The container could not be set up; the text says what and why.
    #[error("{message}")]
    Setup { message: String, kind: Kind },
    /// The container stands, but its program cannot be executed.
    #[error("{message}")]
    Program { message: String },
    #[error("{0}")]
    Cancelled(String),
    #[error("failed to {action}")]
    Io {
        action: String,
        #[source]
        source: io::Error,
    },
    #[error("sandbox helper ended early: {0}")]
    Helper(String),
    #[error("the container has ended")]
    Gone,
    #[error("bad nameserver address {address:?}")]
    Nameserver { address: String },
    #[error("{runtime} failed to {action}: {output}")]
    Runtime { runtime: String, action: &'static str, output: String },
}

impl SandboxError {
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action: action.into(), source }
    }
}

impl Classified for SandboxError {
    fn kind(&self) -> Kind {
        match self {
            Self::Invalid(_) | Self::Nameserver { .. } => Kind::Invalid,
            Self::Setup { kind, .. } => *kind,
            Self::Cancelled(_) => Kind::Canceled,
            Self::Io { source, .. } => Kind::of_io(source),
            Self::Helper(_) => Kind::Internal,
            Self::Gone => Kind::Precondition,
            Self::Runtime { .. } | Self::Program { .. } => Kind::Unknown,
        }
    }
}
