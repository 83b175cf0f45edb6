//! Path patterns as BuildKit's clients and daemon match them: single globs, ignore files, include and exclude lists.
//!
//! Owns the exact matching rules, because they decide what a build context holds and what a content digest covers:
//! [`Glob`] is Go's `path.Match`, [`Matcher`] is moby's pattern matcher (`.dockerignore`, include and exclude lists of copies and of file
//! sync), [`Filters`] are containerd's field filters, [`ignore_file`] reads the lines of a `.dockerignore`. Knows no file system: paths are slash-separated text, as on the wire.
//!
//! Invariants: matching is linear in pattern length times path length, whatever the pattern; no input panics.
//! Start at [`Matcher`].
mod filter;
mod glob;
mod ignore_file;
mod matcher;
mod path;
mod regex;

pub use filter::{FilterError, Filters};
pub use glob::{BadPattern, Glob};
pub use ignore_file::parse as parse_ignore_file;
pub use matcher::{Matcher, MatcherError, Parent, Pattern};
pub use path::{base, clean, dir, join};
