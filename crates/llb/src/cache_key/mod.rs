//! The definition part of an op's cache key, and what of each input goes into it: digests of JSON documents that BuildKit defines, so that
//! a cache written by either is hit by the other.
//!
//! [`of`] does all ops but sources, whose key is only known once they are resolved ([`source`]).
mod exec;
mod file;
mod json;
mod paths;

use oci::{Digest, Platform};

use crate::encode::index;
use crate::types::*;
use json::Object;

/// What an op contributes to its cache key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheKey {
    pub digest: Digest,
    /// One for each input of the vertex.
    pub deps: Vec<Dep>,
}

/// How an input counts in the key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dep {
    /// Which part of the input is used, where that is known.
    pub selector: Option<Digest>,
    /// The parts whose content may stand for the input; `None` if only the input's own key may.
    pub content: Option<Vec<ContentSelector>>,
}

/// A part of a file tree to take a checksum of. The default is all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContentSelector {
    pub path: String,
    pub wildcard: bool,
    pub follow_links: bool,
    pub include_patterns: Vec<String>,
    pub exclude_patterns: Vec<String>,
    pub required_paths: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("invalid mount input {index} for {dest}")]
    MountInput { dest: String, index: u32 },
    #[error("invalid mount cache content for {dest}: only a mount that is read-only, whole or discarded may be keyed by content")]
    ContentCache { dest: String },
    #[error("invalid input index {index} in file op with {inputs} inputs")]
    FileInput { index: u32, inputs: usize },
    #[error("a source has a cache key only once it is resolved")]
    Source,
}

/// The key of any op but a source. `platform` is the one that the op runs on, normalized.
pub fn of(vertex: &Vertex, platform: &Platform) -> Result<CacheKey, KeyError> {
    let inputs = vertex.inputs.len();
    Ok(match &vertex.op {
        Op::Source(_) => return Err(KeyError::Source),
        Op::Exec(op) => exec(op, inputs, platform)?,
        Op::File(op) => file(op, inputs)?,
        Op::Merge(sources) => merge(sources),
        Op::Diff { lower, upper } => diff(*lower, *upper),
        Op::Build(op) => build(op, inputs),
        Op::Passthrough { id, outputs } => passthrough(id, outputs, inputs),
    })
}

pub use exec::exec;
pub use file::file;

/// The key of a resolved source from its key text, such as a manifest digest's document. A text that starts with `session:` gives a
/// digest that matches nothing outside its session.
pub fn source(text: &str) -> Digest {
    let digest = Digest::of(format!("buildkit.source.v0:{text}"));
    if text.starts_with("session:") { digest.into_random() } else { digest }
}

/// One digest for the checksums of all selectors of an input.
pub fn combine(checksums: &[Digest]) -> Digest {
    joined(checksums.iter().map(Digest::as_str))
}

pub fn merge(inputs: &[Option<u32>]) -> CacheKey {
    let op = Object::new().list("inputs", inputs, |i| Object::new().int("input", index(*i)).finish()).finish();
    plain("buildkit.merge.v0", "Merge", &op, inputs.len())
}

pub fn diff(lower: Option<u32>, upper: Option<u32>) -> CacheKey {
    let side = |i| Object::new().int("input", index(i)).finish();
    let op = Object::new().raw("lower", &side(lower)).raw("upper", &side(upper)).finish();
    plain("buildkit.diff.v0", "Diff", &op, usize::from(lower.is_some()) + usize::from(upper.is_some()))
}

/// A nested definition is part of the key by its bytes. (BuildKit's client never sends one.)
pub fn build(op: &BuildOp, inputs: usize) -> CacheKey {
    let entry = |map: Object, (name, i): (&String, &Option<u32>)| map.raw(name, &Object::new().int("input", index(*i)).finish());
    let named = op.inputs.iter().fold(Object::new(), entry).finish();
    let attrs = op.attrs.iter().fold(Object::new(), |map, (k, v)| map.always(k, v)).finish();
    let json = Object::new()
        .int("builder", index(op.builder))
        .optional("inputs", (!op.inputs.is_empty()).then_some(named))
        .bytes("def", op.def.as_deref().unwrap_or_default())
        .optional("attrs", (!op.attrs.is_empty()).then_some(attrs))
        .finish();
    plain("buildkit.build.v0", "Exec", &json, inputs)
}

pub fn passthrough(id: &str, outputs: &[u32], inputs: usize) -> CacheKey {
    let op = Object::new().string("id", id).list("outputs", outputs, u32::to_string).finish();
    plain("buildkit.passthrough.v0", "Passthrough", &op, inputs)
}

/// An op whose inputs count by their own keys only.
fn plain(kind: &str, name: &str, op: &str, inputs: usize) -> CacheKey {
    let document = Object::new().always("Type", kind).raw(name, op).finish();
    CacheKey { digest: Digest::of(document), deps: vec![Dep::default(); inputs] }
}

fn joined<'a>(parts: impl Iterator<Item = &'a str>) -> Digest {
    Digest::of(parts.collect::<Vec<_>>().join("\0"))
}
