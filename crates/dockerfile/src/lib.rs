//! Dockerfile text to syntax to LLB; no I/O.
//!
//! [`syntax`] cuts text into instructions, [`shell`] is the word grammar, [`instruction`] gives every instruction a type, [`lint`] warns.
mod error;
pub mod instruction;
pub mod lint;
mod location;
pub mod shell;
pub mod syntax;
pub mod text;

pub use error::{Cause, Error, Result, Suggested};
pub use location::Lines;
