//! The word grammar of Dockerfiles: quotes, escapes and variable substitution, close to a POSIX shell's.
mod cursor;
mod expand;
mod pattern;

use std::collections::BTreeSet;

pub use expand::Lexer;

/// Where variables come from.
pub trait Variables {
    fn get(&self, name: &str) -> Option<&str>;

    /// In order of definition.
    fn names(&self) -> Vec<&str>;
}

/// No variables at all.
pub struct NoVariables;

impl Variables for NoVariables {
    fn get(&self, _: &str) -> Option<&str> {
        None
    }

    fn names(&self) -> Vec<&str> {
        Vec::new()
    }
}

/// A word after expansion.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expanded {
    pub text: String,
    /// The same, split at blanks that are not quoted.
    pub words: Vec<String>,
    /// Variables that were asked for and set.
    pub matched: BTreeSet<String>,
    /// Variables that were asked for and not set.
    pub unmatched: BTreeSet<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("failed to process {}: {reason}", crate::text::quote(word))]
pub struct ExpandError {
    pub word: String,
    pub reason: String,
    /// Variables that were asked for and not set.
    pub unmatched: BTreeSet<String>,
}

impl From<ExpandError> for crate::Error {
    fn from(error: ExpandError) -> Self {
        crate::Error::new(error.to_string())
    }
}
