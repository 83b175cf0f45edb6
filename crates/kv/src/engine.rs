use std::ops::{Bound, ControlFlow};

use crate::batch::Op;
use crate::error::Result;

/// Called with each key and value of a scan, in key order, until it breaks.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// An embedded database: named tables of byte strings in byte order. Everything above goes through [`crate::Db`]; `tests/suite.rs` says
/// what is expected of an engine.
pub trait Engine: Send + Sync + 'static {
    /// An unchanging view of what is committed.
    fn snapshot(&self) -> Result<Box<dyn Snapshot>>;

    /// Makes all changes durable together. Called by one thread at a time. After an error nothing of `ops` may be visible.
    fn commit(&self, ops: &mut dyn Iterator<Item = Op>) -> Result<()>;

    /// Tries to become usable again after an I/O error, such as a full disk.
    fn reopen(&self) -> Result<()>;
}

pub trait Snapshot: Send + Sync {
    fn get(&self, table: &'static str, key: &[u8]) -> Result<Option<Vec<u8>>>;
    fn scan(&self, table: &'static str, range: (Bound<&[u8]>, Bound<&[u8]>), visit: &mut Visit<'_>) -> Result<()>;
}
