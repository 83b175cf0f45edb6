//! Dockerfile text to syntax to LLB; no I/O.
//!
//! [`syntax`] cuts text into instructions, [`shell`] is the word grammar.
mod error;
mod location;
pub mod shell;
pub mod syntax;
pub mod text;

pub use error::{Cause, Error, Result, Suggested};
pub use location::Lines;
