use std::process::ExitStatus;

use fault::{Classified, Kind};

/// Why a repository does not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    #[error("invalid git remote {remote:?}")]
    Remote { remote: String },
    #[error("invalid git ref {reference:?}")]
    Reference { reference: String },
    #[error("invalid checksum {checksum} for Git URL, expected hex commit hash")]
    Checksum { checksum: String },
    #[error("{0}")]
    Options(&'static str),
    #[error("expected checksum to match {expected}, got {actual}")]
    Mismatch { expected: String, actual: String },
    #[error("fetch-by-commit requires a full commit SHA checksum, got {checksum:?}")]
    ShortChecksum { checksum: String },
    #[error("repository does not contain ref {reference}, output: {output:?}")]
    NoReference { reference: String, output: String },
    #[error("invalid commit sha {commit:?}")]
    Commit { commit: String },
    #[error("could not find default branch for repository: {remote}")]
    NoDefaultBranch { remote: String },
    #[error("fetched ref {reference} does not match expected commit {commit} and commit can not be found in the repository")]
    Moved { reference: String, commit: String },
    #[error("expected commit or tag object, got {kind}")]
    Object { kind: String },
    #[error("failed to parse commit timestamp {text:?}")]
    Time { text: String },
    #[error("no SSH key {id:?} forwarded from the client")]
    NoAgent { id: String },
    #[error("git subpath {subdir:?} contains non-directory {path:?}")]
    NotADirectory { subdir: String, path: String },
    #[error("failed to find git binary: install git where the daemon runs")]
    NoGit { source: std::io::Error },
    #[error("failed to parse git.bundle locator {locator:?}: {problem}")]
    Bundle { locator: String, problem: &'static str },
    #[error("failed to inspect git bundle {locator}: no refs found")]
    EmptyBundle { locator: String },
    #[error("commit {commit} not found in bundle {locator}")]
    NotInBundle { commit: String, locator: String },
    #[error("git stderr:\n{stderr}: {status}")]
    Failed { stderr: String, status: Status },
}

/// How a program ended, in the words that Go uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status(pub ExitStatus);

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.code() {
            Some(code) => write!(f, "exit status {code}"),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Classified for GitError {
    fn kind(&self) -> Kind {
        match self {
            Self::NoReference { .. } | Self::NoDefaultBranch { .. } | Self::NotInBundle { .. } => Kind::NotFound,
            Self::Mismatch { .. } | Self::Moved { .. } => Kind::Precondition,
            Self::NoGit { .. } | Self::Failed { .. } => Kind::Unknown,
            _ => Kind::Invalid,
        }
    }
}

impl GitError {
    /// The remote's references moved so that this repository can no longer follow them.
    pub fn needs_fresh_repository(&self) -> bool {
        let Self::Failed { stderr, .. } = self else { return false };
        let has = |text: &str| stderr.contains(text);
        (has("rejected") && has("(would clobber existing tag)"))
            || (has("some local refs could not be updated;") && (has("(unable to update local ref)") || has("refname conflict")))
    }
}
