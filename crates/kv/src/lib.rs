//! Transactions, typed tables, schema version and crash safety over the embedded engine.
//!
//! Owns the database file: opening it, setting a damaged one aside, committing in groups on a thread of its own, reopening it after the
//! disk was full. Does not know what its tables mean.
//!
//! Start at [`Db`]. A [`Table`] names a table and the types of its keys and values. Writers [`Db::submit`] a [`Batch`] or run a
//! [`Db::update`]; neither waits for the disk. Whoever must not answer before the data is durable awaits [`Db::flush`].
//!
//! Invariants:
//! - A read sees everything submitted before it, committed or not.
//! - Batches become durable in the order of their submission, each wholly or not at all. What is lost with a crash is a tail that nobody
//!   has flushed.
//! - After `kill -9` or a power cut the database opens at once, without a scan, as of the last commit. (Not so with the engine sled, a
//!   cargo feature, which does not survive power cuts.)
//! - A record whose bytes are not those that were written is never returned: it is put aside ([`QUARANTINE`]), named in the log, and from then
//!   on it was never there.
mod batch;
mod codec;
mod db;
mod engine;
mod error;
mod open;
mod overlay;
mod redb_engine;
#[cfg(feature = "sled")]
mod sled_engine;
mod writer;

pub use batch::{Batch, Op};
pub use codec::{Json, Key, Table, Value};
pub use db::{Db, QUARANTINE, Reader, Update};
pub use engine::{Engine, Snapshot, Visit};
pub use error::{Error, OpenError, Result};
pub use open::{EngineKind, Options};
pub use redb_engine::RedbEngine;
#[cfg(feature = "sled")]
pub use sled_engine::SledEngine;
