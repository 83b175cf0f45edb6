//! What ran, and as what: for those who explain why a step was not found in a cache.
use std::sync::Arc;

use layers::Layer;
use llb::Vertex;
use oci::Digest;
use solver::KeyId;

/// Is told of every vertex that ran for a job, whether it succeeded or not. Not of what was found in a cache.
pub trait Witness: Send + Sync {
    /// Must not wait: the engine's loop calls it.
    fn ran(&self, run: &Arc<Ran>);
}

pub struct Ran {
    pub vertex: Arc<Vertex>,
    /// Of the op, without its inputs.
    pub digest: Digest,
    pub ignore_cache: bool,
    pub inputs: Vec<RanInput>,
    pub succeeded: bool,
}

pub struct RanInput {
    pub vertex: Arc<Vertex>,
    pub output: u32,
    pub selector: Option<Digest>,
    /// What the input is known by: by definition, and by content where that was looked at.
    pub keys: Vec<KeyId>,
    pub content: Option<KeyId>,
    /// Made without a look into caches, so that nothing that was made of it before counts.
    pub forced: bool,
    /// `None` is scratch.
    pub layer: Option<Layer>,
}
