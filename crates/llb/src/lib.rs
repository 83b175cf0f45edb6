//! A validated build graph: decode, check, digest, build. The only reader of `pb` ops.
//!
//! [`Graph`] is what the rest of kiln works on: vertices in topological order, typed ops, inputs already resolved. [`Graph::load`] makes one from a wire
//! definition; [`Builder`] makes one from scratch (the Dockerfile frontend and tests do) and gives the same bytes and digests
//! that BuildKit's client library would. Cache-key documents, which need the wire's field names, are made in [`cache_key`].
//!
//! This room knows no policy, no worker and no disk: what an op does is `ops`' matter, whether it is allowed `job`'s.
//!
//! Invariants: a vertex's digest is the sha256 of its `encoded` bytes (but see [`Rewrite::proxy_network`]);
//! inputs come before their users; every index that is `Some` is non-negative; loading is not recursive and its work is linear in the size of the definition.
mod builder;
pub mod cache_key;
mod caps;
mod decode;
mod encode;
mod graph;
pub mod json;
mod load;
mod name;
pub mod parts;
pub mod policy;
mod resources;
mod rewrite;
mod types;

pub use builder::Builder;
pub use caps::{CAPABILITIES, CapError};
pub use load::{LoadError, OpError};
pub use rewrite::Rewrite;
pub use types::*;
