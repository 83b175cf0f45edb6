//! Digests, references, platforms, descriptors, manifests and image configs: the words of the OCI specifications.
//!
//! No I/O. Start at [`Digest`] and [`Platform`].
mod digest;
mod platform;

pub use digest::{Digest, DigestError, Hasher};
pub use platform::{Platform, PlatformError};
