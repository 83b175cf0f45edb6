//! Digests, references, platforms, descriptors, manifests and image configs: the words of the OCI specifications.
//!
//! No I/O and no clock. Start at [`Reference`], [`Descriptor`] and [`ImageConfig`].
//!
//! Invariants: a [`Digest`] and a [`Reference`] are well formed by construction; what is written ([`gojson`], `to_bytes`) is byte for byte what
//! BuildKit writes for the same value, since these bytes are digested.
mod config;
mod digest;
pub mod gojson;
mod manifest;
mod matching;
pub mod media;
mod nullable;
mod platform;
mod reference;
mod time;

pub use config::{ContainerConfig, Healthcheck, History, ImageConfig, ImageConfigError, RootFs};
pub use digest::{Digest, DigestError, Hasher};
pub use manifest::{
    ATTESTATION_MANIFEST, Annotations, Descriptor, Document, DocumentError, Index, Manifest, REFERENCE_DIGEST, REFERENCE_TYPE,
};
pub use platform::{Platform, PlatformError};
pub use reference::{Reference, ReferenceError};
pub use time::{Timestamp, TimestampError};
