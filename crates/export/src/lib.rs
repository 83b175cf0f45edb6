//! Results leave: image, oci and docker tar, local, tar.
//!
//! Owns the form that a result takes outside: manifests, configs and indexes, statements, tars, file transfers, pushes; and the attributes that choose
//! among them. Does not know how a result came about; packing layers is `layers`' business, talking to registries `registry`'s.
//!
//! Start at [`Exporters::resolve`], which turns a kind and attributes into an [`Exporter`]. Images: `image/assemble.rs` writes the documents,
//! `image/push.rs` and `image/archive.rs` take them out. Files: `tree.rs` says what a tree is, `send.rs` and `tarball.rs` take it out.
//!
//! Invariants: for the same layers and attributes the documents are byte for byte those of BuildKit; attributes are checked before any work is done;
//! no manifest is pushed before all exporters of a build are done ([`Exported::finalize`]), though layers may be on their way before that.
mod annotations;
mod api;
mod attestation;
mod attrs;
mod config;
mod exporters;
mod files;
mod image;
mod local;
mod send;
mod tar;
mod tarball;
mod tree;
mod upload;

pub use api::{Author, CacheAuthor, Context, Exported, Exporter, PlatformResult, Predicate, Source, Statement, Subject};
pub use attestation::{escape_query, purl};
pub use exporters::Exporters;
pub use image::without_internals;
