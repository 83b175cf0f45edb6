//! Which key gave which result: the local index, and the caches that are looked into beside it.
//!
//! Owns the index: links from key to key, the results that a key has, and the way back from both. Does not know how a key is made
//! (`solver`, `llb`), nor what a result is: here it is a name, empty for scratch. Whether the named thing still exists is for the caller to say.
//!
//! Start at [`Index`]. An imported cache is another [`KeyStore`] that can also make layers of its results, an [`Import`]; [`Caches`] asks all
//! that a vertex may use. Caches that come from elsewhere, and go there, are in [`remote`].
//!
//! Invariants: no call waits for the disk to sync; looking up writes nothing, and neither does adding what is there already; keys that
//! mean nothing outside their session are never stored; an index that cannot be read is an empty one.
mod caches;
mod index;
mod prune;
pub mod remote;
mod tables;

use async_trait::async_trait;
use layers::Layer;
use oci::Digest;
use session::Group;
use solver::{KeyId, Link};
use task::Cancel;

pub use caches::Caches;
pub use index::Index;

/// A cache that can be asked. All answers come from memory or an embedded database: these calls are on the path of a build.
pub trait KeyStore: Send + Sync {
    /// Where a link leads.
    fn links(&self, from: &KeyId, link: &Link) -> Vec<KeyId>;

    /// The results that a key has.
    fn results(&self, key: &KeyId) -> Vec<Entry>;

    /// What leads to a key; nothing for keys that stand for themselves.
    fn origins(&self, key: &KeyId) -> Vec<Origin>;
}

/// A link, seen from where it leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    pub from: KeyId,
    pub input: u32,
    pub selector: Option<Digest>,
    /// The op's digest and output, in the form of a root key ([`KeyId::root`]).
    pub record: Digest,
}

/// A cache that a build brought with it. It is read before it is asked: none of the questions of [`KeyStore`] may wait for a network.
#[async_trait]
pub trait Import: KeyStore {
    /// Whether an op was ever recorded, whatever its inputs were; `records` are its outputs as [`Origin::record`] has them.
    fn has_recorded(&self, records: &[Digest]) -> bool;

    /// Makes a layer of a result; it may be a lazy one, which comes with the credentials of `sessions`. `None`: it is gone, and the step runs
    /// instead.
    async fn load(&self, result: &str, sessions: &Group, cancel: &Cancel) -> fault::Result<Option<Layer>>;
}

/// A result of a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// For the local index a layer's id, empty for scratch.
    pub result: String,
    /// Unix nanoseconds.
    pub created_at: i64,
}
