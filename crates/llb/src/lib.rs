//! A validated build graph: decode, check, digest, build. The only reader of `pb` ops.
//!
//! [`Graph`] is what the rest of kiln works on: vertices in topological order, typed ops, inputs already resolved. `Graph::load` makes one from a wire
//! definition; [`Builder`] makes one from scratch (the Dockerfile frontend and tests do) and gives the same bytes and digests
//! that BuildKit's client library would. Cache-key documents, which need the wire's field names, are made here too.
pub mod policy;
mod types;

pub use types::*;
