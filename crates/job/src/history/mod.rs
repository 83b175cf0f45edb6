//! The builds of the past: what was asked, how it went, and the blobs that tell the details.
//!
//! A build that is not internal has a record from its start ([`History::begin`]), which is kept in memory while it runs and in the database once it
//! has ended ([`Recording::complete`]). What is large lies in the content store, pinned for as long as the record is there: the log (what its
//! watchers saw), the failure with all its details, the trace, statements about the results.
//!
//! Start at [`History`]. [`Record`] is what clients see; [`Findings`] is where a running build puts what it learns about its results;
//! `filter` is the language of `ListenBuildHistory`; [`Encoding`] is how the blobs look, which is the wire's business.
//! Invariants: nothing here waits for the disk to sync (whoever answers the client flushes once); what a record names is there, or the record is
//! dropped at the next start; a record that somebody listens to by its name is not taken away under him.
mod clean;
mod event;
mod filter;
mod findings;
mod queue;
mod record;
mod recording;
mod store;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use fault::Fault;

pub use clean::Retention;
pub use event::{Change, Event, Listening, Query};
pub use findings::Findings;
pub use queue::History;
pub use record::{Failure, Record, Results, Steps};
pub use recording::{Ended, Recording};

use crate::progress_hub;

/// Of the log of a build: frames, each a length (32 bits, little endian) and a Status message.
pub const LOG: &str = "application/vnd.buildkit.status.v0";
/// Of a failure with its details. The misspelling is upstream's, and clients look for it.
pub const FAILURE: &str = "application/vnd.googeapis.google.rpc.status+proto";
/// Of a trace: spans as JSON objects, one after the other.
pub const TRACE: &str = "application/vnd.buildkit.otlp.json.v0";
/// Of a statement about a result; the annotation [`PREDICATE_TYPE`] says of which kind.
pub const STATEMENT: &str = "application/vnd.in-toto+json";
pub const PREDICATE_TYPE: &str = "in-toto.io/predicate-type";

/// Writes as the wire does. `grpc` implements it; messages do not come in here.
pub trait Encoding: Send + Sync {
    /// Appends the frames of these events, which are of one batch.
    fn progress(&self, events: Vec<progress_hub::Event>, frames: &mut Vec<u8>);

    /// The failure as records name it, and with all its details.
    fn failure(&self, fault: &Fault) -> (Failure, Bytes);
}

/// What the history is made of.
pub struct Parts {
    pub db: kv::Db,
    pub content: content::Store,
    pub encoding: Arc<dyn Encoding>,
    pub retention: Retention,
}
