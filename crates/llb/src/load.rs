//! A wire definition -> [`Graph`]. Nothing here recurses over the graph, so its depth is bounded by memory only.
use std::collections::HashMap;

use bytes::Bytes;
use oci::Digest;
use prost::Message as _;
use proto::pb;

use crate::types::*;
use crate::{decode, name};

/// Why a definition was not accepted. The texts are BuildKit's, which clients match on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    #[error("invalid empty definition")]
    Empty,
    #[error("failed to parse definition")]
    Definition(#[source] prost::DecodeError),
    #[error("failed to parse llb proto op")]
    Parse(#[source] prost::DecodeError),
    #[error("invalid input {input} output index {index}")]
    OutputIndex { input: usize, index: i64 },
    #[error("invalid missing input digest {digest}")]
    MissingInput { digest: String },
    #[error("invalid LLB with {count} vertexes")]
    TooFewVertices { count: usize },
    #[error("invalid LLB with no inputs on last vertex")]
    NoResult,
    #[error("{why}")]
    Op { vertex: Digest, why: OpError },
}

impl LoadError {
    /// The vertex at fault, where it is one.
    pub fn vertex(&self) -> Option<&Digest> {
        match self {
            LoadError::Op { vertex, .. } => Some(vertex),
            _ => None,
        }
    }
}

/// What is wrong with one op.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpError {
    #[error("invalid nil op")]
    Nil,
    #[error("invalid exec op with no meta")]
    ExecMeta,
    #[error("invalid exec op with no args")]
    ExecArgs,
    #[error("invalid exec op with no mounts")]
    ExecMounts,
    #[error("invalid exec op with no rootfs")]
    ExecRootfs,
    #[error("invalid mount input {index} for {dest}")]
    MountInput { dest: String, index: i64 },
    #[error("invalid mount options for {dest}")]
    MountOptions { dest: String },
    #[error("invalid file op with no actions")]
    FileActions,
    #[error("invalid nil file action")]
    FileAction,
    #[error("invalid user index {index}")]
    UserIndex { index: i64 },
    #[error("invalid merge input index {index}")]
    MergeInput { index: i64 },
    #[error("invalid diff op with nil lower or upper input")]
    DiffSide,
    #[error("invalid diff input index {index}")]
    DiffInput { index: i64 },
    #[error("invalid passthrough op with no id")]
    PassthroughId,
    #[error("invalid passthrough op with no outputs")]
    PassthroughOutputs,
    #[error("invalid passthrough output input index {index}")]
    PassthroughInput { index: i64 },
    #[error("invalid index {index}")]
    Index { index: i64 },
    #[error("invalid {field} {value}")]
    Enumeration { field: &'static str, value: i32 },
}

struct Entry {
    digest: Digest,
    encoded: Bytes,
    message: pb::Op,
    /// Positions of the inputs among the entries.
    inputs: Vec<usize>,
}

impl Graph {
    /// Loads a marshalled definition.
    pub fn decode(definition: impl Into<Bytes>) -> Result<Self, LoadError> {
        Self::load(&pb::Definition::decode(definition.into()).map_err(LoadError::Definition)?)
    }

    /// Parses, checks and orders a definition. Vertices that the result does not need are checked for form, then dropped.
    pub fn load(definition: &pb::Definition) -> Result<Self, LoadError> {
        let (entries, last) = parse(definition)?;
        let result = entries[last].message.inputs.first().ok_or(LoadError::NoResult)?;
        let result = Edge { vertex: entries[entries[last].inputs[0]].digest.clone(), output: result.index as u32 };

        let order = order(&entries, entries[last].inputs[0]);
        let result_metadata = definition.metadata.get(entries[last].digest.as_str()).map(decode::metadata).unwrap_or_default();
        let digests: Vec<Digest> = entries.iter().map(|e| e.digest.clone()).collect();
        let mut vertices: Vec<Vertex> = Vec::with_capacity(order.len());
        let mut position = vec![usize::MAX; entries.len()];
        let mut entries: Vec<Option<Entry>> = entries.into_iter().map(Some).collect();
        for at in order {
            let entry = entries[at].take().expect("an order names each entry once");
            let named = |input: usize| vertices[position[input]].name.as_str();
            let vertex = vertex(entry, &digests, named, definition)?;
            position[at] = vertices.len();
            vertices.push(vertex);
        }
        Ok(Self {
            vertices,
            result: Some(result),
            result_metadata,
            sources: definition.source.as_ref().map(decode::source_map).unwrap_or_default(),
            originals: Default::default(),
        })
    }
}

fn parse(definition: &pb::Definition) -> Result<(Vec<Entry>, usize), LoadError> {
    if definition.def.is_empty() {
        return Err(LoadError::Empty);
    }
    let mut entries: Vec<Entry> = Vec::with_capacity(definition.def.len());
    let mut positions = HashMap::with_capacity(definition.def.len());
    let mut last = 0;
    for encoded in &definition.def {
        let message = pb::Op::decode(encoded.clone()).map_err(LoadError::Parse)?;
        for (input, i) in message.inputs.iter().enumerate() {
            u32::try_from(i.index).map_err(|_| LoadError::OutputIndex { input, index: i.index })?;
        }
        let digest = Digest::of(encoded);
        last = *positions.entry(digest.as_str().to_owned()).or_insert_with(|| {
            entries.push(Entry { digest, encoded: encoded.clone(), message, inputs: Vec::new() });
            entries.len() - 1
        });
    }
    for entry in &mut entries {
        let find = |i: &pb::Input| positions.get(&i.digest).copied().ok_or_else(|| LoadError::MissingInput { digest: i.digest.clone() });
        entry.inputs = entry.message.inputs.iter().map(find).collect::<Result<_, _>>()?;
    }
    match entries.len() {
        0 | 1 => Err(LoadError::TooFewVertices { count: entries.len() }),
        _ => Ok((entries, last)),
    }
}

/// What `root` needs, inputs first: the client's own order if it is one, else depth first.
fn order(entries: &[Entry], root: usize) -> Vec<usize> {
    let mut finished = Vec::new();
    let mut seen = vec![false; entries.len()];
    let mut stack = vec![(root, 0)];
    seen[root] = true;
    while let Some((at, next)) = stack.pop() {
        match entries[at].inputs.get(next) {
            None => finished.push(at),
            Some(&input) => {
                stack.push((at, next + 1));
                if !std::mem::replace(&mut seen[input], true) {
                    stack.push((input, 0));
                }
            }
        }
    }
    let as_sent = || (0..entries.len()).filter(|at| seen[*at]);
    let is_topological = as_sent().all(|at| entries[at].inputs.iter().all(|input| *input < at));
    if is_topological { as_sent().collect() } else { finished }
}

fn vertex<'a>(
    entry: Entry,
    digests: &[Digest],
    input_name: impl Fn(usize) -> &'a str,
    definition: &pb::Definition,
) -> Result<Vertex, LoadError> {
    let Entry { digest, encoded, message, inputs: positions } = entry;
    let fail = |why| LoadError::Op { vertex: digest.clone(), why };
    let edge = |(i, at): (&pb::Input, &usize)| Edge { vertex: digests[*at].clone(), output: i.index as u32 };
    let inputs: Vec<Edge> = message.inputs.iter().zip(&positions).map(edge).collect();
    let op = message.op.ok_or_else(|| fail(OpError::Nil))?;
    let op = decode::op(op, &decode::Inputs(inputs.len())).map_err(fail)?;
    let metadata = definition.metadata.get(digest.as_str()).map(decode::metadata).unwrap_or_default();
    let name = name::name(&op, &metadata, positions.len(), |i| input_name(positions[i]));
    Ok(Vertex {
        encoded,
        op,
        inputs,
        platform: message.platform.map(decode::platform),
        constraints: message.constraints.unwrap_or_default().filter,
        metadata,
        name,
        digest,
        proxied: false,
    })
}
