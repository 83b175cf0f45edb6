//! Caches elsewhere: in registries, directories of clients, images and object stores.
//!
//! A cache is a config ([`document`]: which keys lead where, which layers results consist of) and blobs. It is read into [`RemoteCache`], which the
//! solver asks like the local index; nothing of its blobs is fetched before a step needs files. It is written from what a build's result is known by:
//! `collect` finds the keys and packs the layers, `chains` makes the config. The formats are BuildKit's, so that each side hits what the other wrote.
//!
//! Start at [`Remotes`], which turns a kind and attributes into an [`Exporter`] or an [`Importer`].
mod attrs;
mod chains;
mod collect;
mod depot;
pub mod document;
mod exporter;
mod import;
mod inline;
pub mod keys;
mod local;
mod manifest;
mod object;
mod registry_cache;
mod remotes;

pub use attrs::OnError;
pub use collect::{Collector, Mode};
pub use exporter::{Context, Exporter, Found, Importer, Subject};
pub use import::{Depot, RemoteCache};
pub use inline::InlineCache;
pub use object::Environment;
pub use remotes::{Remotes, name_of};
