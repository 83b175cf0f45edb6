//! `local://`: directories of a client.
mod disk;
mod error;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod hash;
mod index;
mod metadata;
mod pace;
mod receive;
mod request;
mod sync;
#[cfg(test)]
mod tests;
mod validate;
mod writer;

pub use error::LocalError;
pub(crate) use index::Index;
pub(crate) use request::Request;
pub(crate) use sync::{fetch, key};
