use std::collections::HashMap;

use oci::Digest;
use prost::Message as _;
use proto::pb;

use crate::types::*;
use crate::{encode, name};

/// Changes that a daemon makes to a client's graph before it runs. Every vertex above a change gets a new digest; [`Graph::originals`] leads back.
#[derive(Debug, Clone, Default)]
pub struct Rewrite {
    /// What source policy puts in the place of a source vertex.
    pub sources: HashMap<Digest, SourceOp>,
    /// Marks exec ops that use the network, so that results made behind the capturing proxy are not mistaken for others.
    /// The mark is hashed but not part of [`Vertex::encoded`].
    pub proxy_network: bool,
}

const PROXY_MARK: &[u8] = b"\0buildkit.proxy-network.v0";

impl Rewrite {
    fn marks(&self, op: &Op) -> bool {
        self.proxy_network && matches!(op, Op::Exec(e) if e.network != NetMode::None)
    }

    /// The new vertex, if anything about it changes. Works on the wire message, so that nothing the typed op does not show is lost.
    fn apply(&self, vertex: &Vertex, renamed: &HashMap<Digest, Digest>) -> Option<Vertex> {
        let source = self.sources.get(&vertex.digest);
        let inputs_change = vertex.inputs.iter().any(|i| renamed.contains_key(&i.vertex));
        if source.is_none() && !inputs_change && !self.marks(&vertex.op) {
            return None;
        }
        let mut message = pb::Op::decode(vertex.encoded.clone()).expect("a loaded vertex was decoded before");
        let mut changed = vertex.clone();
        for (input, wire) in changed.inputs.iter_mut().zip(&mut message.inputs) {
            if let Some(new) = renamed.get(&input.vertex) {
                input.vertex = new.clone();
                wire.digest = new.to_string();
            }
        }
        if let Some(source) = source {
            changed.op = Op::Source(source.clone());
            message.op = Some(encode::op_message(&changed.op));
        }
        changed.encoded = encode::marshal(&message);
        changed.proxied = self.marks(&vertex.op);
        changed.digest = if changed.proxied { Digest::of([&changed.encoded, PROXY_MARK].concat()) } else { Digest::of(&changed.encoded) };
        Some(changed)
    }
}

impl Graph {
    pub fn rewrite(self, rewrite: &Rewrite) -> Graph {
        let mut renamed: HashMap<Digest, Digest> = HashMap::new();
        let mut positions: HashMap<Digest, usize> = HashMap::new();
        let mut graph = Graph { vertices: Vec::with_capacity(self.vertices.len()), ..Default::default() };
        for old in self.vertices {
            let mut vertex = match rewrite.apply(&old, &renamed) {
                Some(new) if new.digest != old.digest => {
                    let original = self.originals.get(&old.digest).unwrap_or(&old.digest).clone();
                    graph.originals.insert(new.digest.clone(), original);
                    renamed.insert(old.digest, new.digest.clone());
                    new
                }
                _ => {
                    graph.originals.extend(self.originals.get(&old.digest).map(|o| (old.digest.clone(), o.clone())));
                    old
                }
            };
            if let Some(at) = positions.get(&vertex.digest) {
                let twin: &mut Vertex = &mut graph.vertices[*at];
                twin.metadata.merge(vertex.metadata);
                continue;
            }
            let input = |i: usize| graph.vertices[positions[&vertex.inputs[i].vertex]].name.as_str();
            vertex.name = name::name(&vertex.op, &vertex.metadata, vertex.inputs.len(), input);
            positions.insert(vertex.digest.clone(), graph.vertices.len());
            graph.vertices.push(vertex);
        }
        graph.result = self.result.map(|edge| match renamed.get(&edge.vertex) {
            Some(new) => Edge { vertex: new.clone(), output: edge.output },
            None => edge,
        });
        graph.result_metadata = self.result_metadata;
        graph.sources = self.sources;
        graph
    }
}
