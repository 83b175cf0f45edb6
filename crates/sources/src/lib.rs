//! Image, git, http, local, oci-layout and blob sources: pin a name, then fetch into a layer.
//!
//! Owns what each scheme and attribute of an LLB source op means, its cache keys, and what is remembered between builds to fetch less. Does not
//! know vertices' inputs, the solver, or what is done with the layers.
//!
//! Start at [`Sources`]: [`Sources::cache_key`] pins (a tag becomes a digest, a URL a checksum), [`Sources::fetch`] gives the pinned content as a layer,
//! [`Sources::image_config`] and [`Sources::attestation_chain`] answer frontends and policies.
//!
//! Invariants: keys are those of BuildKit, so that its caches are hit; a key made of a session's files starts with `random:` and matches nowhere else;
//! nothing that a client or server sends is written outside of the new layer's directory.
mod blob;
mod error;
mod git;
mod http;
mod image;
mod key;
mod local;
mod memo;
mod scheme;
mod signature;
mod store;

pub use error::SourceError;
pub use git::{GitError, GitMeta, GitSettings};
pub use http::HttpMeta;
pub use image::{Chain, ImageConfig};
pub use key::Key;
pub use local::LocalError;
pub use scheme::normal_identifier;
pub use signature::SignatureError;
pub use store::{Context, Sources};

/// What fuzz targets call; see `docs/fuzzing.md`.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    pub use crate::local::fuzzing::receive;
    pub use crate::signature::fuzzing::verify as verify_signature;
}
