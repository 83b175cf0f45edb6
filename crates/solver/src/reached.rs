//! What a vertex that has to run is known by: for those who explain why nothing was found. Not on the way of anything that is found.
use oci::Digest;

use crate::event::VertexId;
use crate::key::{KeyId, Store};
use crate::{MissingOutput, Solver};

/// A vertex that runs, as far as caches could have told it from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    /// Of the op, without its inputs.
    pub digest: Digest,
    pub ignore_cache: bool,
    pub inputs: Vec<ReachedInput>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReachedInput {
    pub vertex: VertexId,
    pub output: u32,
    pub selector: Option<Digest>,
    /// By definition; whoever shares one of them shares the input.
    pub keys: Vec<KeyId>,
    /// By content, where that was looked at.
    pub content: Option<KeyId>,
    /// Made without a look into caches, so that nothing that was made of it before counts.
    pub forced: bool,
}

impl<S: Store, F: Clone + From<MissingOutput>> Solver<S, F> {
    /// `None` for vertices that are not there or not mapped, which do not run.
    pub fn reached(&self, vertex: VertexId) -> Option<Reached> {
        let vertex = self.vertices.get(&vertex)?;
        let map = vertex.map()?;
        let input = |(i, id): (usize, &crate::state::EdgeId)| {
            let edge = &self.edges[id];
            let content = vertex.inspections[i].content.as_ref().map(|key| key.id.clone());
            ReachedInput {
                vertex: edge.vertex,
                output: edge.output,
                selector: map.inputs.get(i).and_then(|m| m.selector.clone()),
                keys: edge.known_by.iter().map(|key| key.id.clone()).collect(),
                forced: edge.keys.is_empty() && content.is_none(),
                content,
            }
        };
        let inputs = vertex.inputs.iter().enumerate().map(input).collect();
        Some(Reached { digest: map.digest.clone(), ignore_cache: vertex.ignore_cache, inputs })
    }
}
