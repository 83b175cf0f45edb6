//! Blobs by digest: ingest, verify, read, lease, sweep.
//!
//! Owns a directory of blobs (`blobs/sha256/<hex>`), the partial ones on their way in (`ingest/`), their labels, and which of them the disk
//! is sure to hold. Does not know what a blob means, who references it, or where it comes from.
//!
//! Start at [`Store`]. [`Store::ingest`] gives an [`Ingest`], which hashes while it writes; its `commit` gives a [`Hold`], which keeps the
//! blob from [`Store::sweep`] as long as it lives. [`Watermark`] is how this room and `layers` tell after a power cut what to believe.
//!
//! Invariants:
//! - A blob that [`Store::has`] is whole and has the digest that names it: it was hashed on its way in, and after a power cut only those
//!   blobs stay that were synced before.
//! - A blob that is opened has the bytes that its name says: what an earlier process left is read through before its first use. A damaged
//!   one is moved to `quarantine/`, named in the log, and from then on not there.
//! - Nothing here calls fsync but [`Store::sync`].
//! - A failed or mismatching ingest leaves no blob.
mod error;
mod growing;
mod hold;
mod ingest;
mod read;
mod scratch;
mod store;
mod stream;
mod watermark;

pub use error::{Error, OpenError, Result};
pub use growing::{GivenUp, Growing};
pub use hold::Hold;
pub use ingest::Ingest;
pub use read::Reader;
pub use scratch::Scratch;
pub use store::{Blob, Store, on_disk};
pub use stream::IngestStream;
pub use watermark::{Watermark, boot_id};
