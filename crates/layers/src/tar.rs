//! The tar format: reading what others write, and writing exactly what Go's `archive/tar` writes.
mod block;
mod pax;
mod reader;
mod retime;
mod sparse;
mod writer;

pub use reader::TarError;
pub(crate) use reader::{Entry, EntryKind, Reader};
pub(crate) use retime::retime;
pub(crate) use writer::{Header, Writer};
