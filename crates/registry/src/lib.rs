//! OCI distribution client: resolve, fetch and push, with mirrors and authentication.
//!
//! Owns connections, retries, redirects, tokens and the number of transfers to a registry at a time. Knows nothing of layers, caches or what is
//! done with the bytes; blobs come out as streams whose digest the receiver checks, documents come out verified.
//!
//! Start at [`Client::repository`]: a [`Repository`] is one image name used on behalf of some [`Credentials`] (a `session::Group`, say).
//!
//! Invariants: a credential never follows a redirect to another host; no answer is read beyond its bound; mirrors are for pulls only; tokens are shared
//! between clients only if these proved the same identity, and never if they may push. HTTP/1.1 only, as flow control of HTTP/2 limits uploads.
mod auth;
mod client;
mod config;
mod connect;
pub mod date;
mod endpoint;
mod error;
mod fetch;
mod payload;
mod push;
mod referrers;
mod resolve;
mod stream;
mod tls;
mod traffic;
mod transport;
mod web;

pub use auth::{Anonymous, Credentials, Holder};
pub use client::{Access, Client, Repository};
pub use config::{Config, Host, Keypair, Proxy, Retry, Timeouts};
pub use error::{RegistryError, TransportError};
pub use fetch::BlobStream;
pub use payload::{Payload, Progress};
pub use push::{Pushed, SOURCE_ANNOTATION, mount_candidate};
pub use resolve::MAX_MANIFEST;
pub use tls::{ROOT_BUNDLES, system_roots};
pub use traffic::Traffic;
pub use web::{Web, WebAnswer};
