//! A graph as a whole: look-ups, and the way back to the wire.
use std::collections::HashMap;

use bytes::Bytes;
use oci::Digest;
use prost::Message as _;
use proto::pb;

use crate::encode;
use crate::types::*;

impl Graph {
    /// The wire definition: each vertex's own bytes in order, then the pseudo op that names the result. Empty for scratch.
    pub fn encode(&self) -> pb::Definition {
        let Some(result) = &self.result else { return pb::Definition::default() };
        let terminal = encode::terminal(result);
        let mut metadata: std::collections::BTreeMap<String, pb::OpMetadata> =
            self.vertices.iter().map(|v| (v.digest.to_string(), encode::metadata(&v.metadata))).collect();
        metadata.insert(Digest::of(&terminal).to_string(), encode::metadata(&self.result_metadata));
        pb::Definition {
            def: self.vertices.iter().map(|v| v.encoded.clone()).chain([terminal]).collect(),
            metadata,
            source: Some(encode::source_map(&self.sources)),
        }
    }

    /// The digest of the pseudo op that names the result; `None` for scratch.
    pub fn terminal(&self) -> Option<Digest> {
        self.result.as_ref().map(|result| Digest::of(encode::terminal(result)))
    }

    /// [`Graph::load`] of a marshalled definition.
    pub fn load_bytes(definition: &[u8]) -> Result<Self, crate::LoadError> {
        let definition = pb::Definition::decode(definition).map_err(crate::LoadError::Definition)?;
        Self::load(&definition)
    }

    /// [`Graph::encode`], marshalled.
    pub fn to_bytes(&self) -> Bytes {
        self.encode().encode_to_vec().into()
    }

    /// Linear; use [`Graph::index`] for more than a few look-ups.
    pub fn vertex(&self, digest: &Digest) -> Option<&Vertex> {
        self.vertices.iter().find(|v| v.digest == *digest)
    }

    /// Position of each vertex in `vertices`.
    pub fn index(&self) -> HashMap<&Digest, usize> {
        self.vertices.iter().enumerate().map(|(at, v)| (&v.digest, at)).collect()
    }

    /// The digest by which the client knows a vertex of this graph.
    pub fn original<'a>(&'a self, digest: &'a Digest) -> &'a Digest {
        self.originals.get(digest).unwrap_or(digest)
    }

    /// The places in the user's files that a vertex stems from.
    pub fn locations(&self, digest: &Digest) -> &[Location] {
        let find = |d| self.sources.locations.get(d);
        find(digest).or_else(|| find(self.original(digest))).map_or(&[], Vec::as_slice)
    }
}
