//! Dockerfile text to syntax to LLB; no I/O.
//!
//! Owns the language of Dockerfiles as BuildKit's frontend of version 1.26 reads it, and the graphs and image configs that it makes of it.
//! What it must ask (image configs, contexts, dates) it asks through [`convert::Ask`]; it knows no session, no solver and no protocol.
//!
//! Start at [`convert::convert`]. [`syntax`] cuts text into instructions, [`shell`] is the word grammar, [`instruction`] gives every instruction a
//! type, [`lint`] warns, [`source`] writes source ops.
//!
//! Invariants: vertices are byte for byte those of BuildKit, because their digests are cache keys; the same input gives the same output; no text makes
//! this room panic.
pub mod convert;
mod error;
mod git_ref;
pub mod instruction;
pub mod lint;
mod location;
mod platform;
pub mod shell;
pub mod source;
pub mod syntax;
pub mod text;

pub use convert::{Ask, Converted, Options, convert};
pub use error::{Cause, Error, Result, Suggested};
pub use git_ref::GitRef;
pub use location::Lines;
pub use platform::{PlatformSyntaxError, parse_platform};
