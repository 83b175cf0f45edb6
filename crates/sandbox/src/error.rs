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
    #[error("failed to {action}: {reason}")]
    Network { action: String, reason: String, kind: Kind },
    #[error("CNI setup error: plugin type={plugin:?} failed ({command}): {message}")]
    Plugin { plugin: String, command: &'static str, message: String },
    #[error("{runtime} failed to {action}: {output}")]
    Runtime { runtime: String, action: &'static str, output: String },
}

impl SandboxError {
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action: action.into(), source }
    }

    pub(crate) fn network(action: String, error: io::Error) -> Self {
        let kind = Kind::of_io(&error);
        let mut reason = crate::helper::describe(&error);
        if error.raw_os_error() == Some(libc::EPERM) {
            reason.push_str(if crate::rootless::in_user_namespace() {
                " (the network that the daemon is in belongs to the machine: give steps one of their own with --rootless-net=pasta \
                 (Debian's package passt) or --rootless-net=slirp4netns, or set networkMode to \"host\")"
            } else {
                " (that takes CAP_NET_ADMIN over the network that the daemon is in: run it as root, or set networkMode to \"host\")"
            });
        }
        Self::Network { action, reason, kind }
    }
}

impl Classified for SandboxError {
    fn kind(&self) -> Kind {
        match self {
            Self::Invalid(_) | Self::Nameserver { .. } => Kind::Invalid,
            Self::Setup { kind, .. } | Self::Network { kind, .. } => *kind,
            Self::Cancelled(_) => Kind::Canceled,
            Self::Io { source, .. } => Kind::of_io(source),
            Self::Helper(_) => Kind::Internal,
            Self::Gone => Kind::Precondition,
            Self::Runtime { .. } | Self::Plugin { .. } | Self::Program { .. } => Kind::Unknown,
        }
    }
}
