use std::fmt;

use fault::{Classified, Fault, Kind};
use snapshot::PathError;

/// An action failed.
#[derive(Debug, thiserror::Error)]
pub enum ActionError {
    #[error(transparent)]
    Path(PathError),
    #[error("{0}")]
    Text(String),
    #[error("{message}")]
    Within {
        message: String,
        #[source]
        source: Box<ActionError>,
    },
    #[error("{message}")]
    Read {
        message: String,
        #[source]
        source: std::io::Error,
    },
    /// Of the workspace, or the end of a cancelled action.
    #[error("{0}")]
    Fault(Fault),
}

impl ActionError {
    pub(super) fn text(message: impl Into<String>) -> Self {
        Self::Text(message.into())
    }

    /// A system call that failed as far as the user can tell.
    pub(super) fn os(action: &'static str, path: impl AsRef<std::path::Path>, errno: rustix::io::Errno) -> Self {
        PathError { action, path: path.as_ref().to_owned(), source: errno.into() }.into()
    }

    pub(super) fn within(self, message: impl Into<String>) -> Self {
        Self::Within { message: message.into(), source: Box::new(self) }
    }
}

impl From<PathError> for ActionError {
    fn from(error: PathError) -> Self {
        // Resolving a path is not a system call here, and upstream has its own word for this.
        if error.action == "lstat" && error.errno() == Some(rustix::io::Errno::LOOP.raw_os_error()) {
            return Self::text("too many links");
        }
        Self::Path(error)
    }
}

impl From<Fault> for ActionError {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl Classified for ActionError {
    fn kind(&self) -> Kind {
        match self {
            Self::Fault(fault) => fault.kind(),
            Self::Within { source, .. } => source.kind(),
            Self::Path(error) => storage(&error.source),
            Self::Read { source, .. } => storage(source),
            Self::Text(_) => Kind::Unknown,
        }
    }
}

/// Upstream gives failed steps no code of their own; a full disk is worth telling.
fn storage(error: &std::io::Error) -> Kind {
    match Kind::of_io(error) {
        Kind::Exhausted => Kind::Exhausted,
        _ => Kind::Unknown,
    }
}

/// A file op failed: where, and what there was by then.
pub struct FileOpError<S> {
    /// The action that failed; `None` if the op as a whole is not valid.
    pub action: Option<usize>,
    /// The action that makes the output that could not be made.
    pub output_action: Option<usize>,
    /// What the failed action worked on, as far as it was changed.
    pub target: Option<S>,
    /// The failed action's secondary input with its action, where that is an action's result.
    pub secondary: Option<(usize, S)>,
    pub error: ActionError,
}

impl<S> FileOpError<S> {
    pub(super) fn invalid(error: ActionError) -> Self {
        Self { action: None, output_action: None, target: None, secondary: None, error }
    }

    pub(super) fn at(action: usize, error: ActionError) -> Self {
        Self { action: Some(action), ..Self::invalid(error) }
    }

    pub(super) fn with_state(self, target: Option<S>, secondary: Option<(usize, S)>) -> Self {
        Self { target, secondary, ..self }
    }

    pub(super) fn for_output(self, action: usize) -> Self {
        Self { output_action: Some(action), ..self }
    }
}

impl<S> fmt::Display for FileOpError<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&fault::chain(&self.error))
    }
}

impl<S> fmt::Debug for FileOpError<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileOpError").field("action", &self.action).field("error", &self.error).finish_non_exhaustive()
    }
}
