use std::collections::HashMap;

use oci::{Digest, Platform};

use crate::types::*;
use crate::{encode, name};

/// Makes a graph from scratch, with the bytes and digests that BuildKit's client library would give.
///
/// The same op added twice is one vertex; its metadata are merged. Only ops that exist are worth their capabilities: the builder adds
/// none to a vertex, so whoever builds lists them in [`Metadata::caps`].
#[derive(Debug, Clone, Default)]
pub struct Builder {
    vertices: Vec<Vertex>,
    positions: HashMap<Digest, usize>,
    sources: SourceMap,
}

impl Builder {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an op and returns its first output; [`Edge::with_output`] names the others.
    ///
    /// # Panics
    /// If an input was not added before.
    pub fn add(&mut self, op: Op, inputs: Vec<Edge>, platform: Option<Platform>, constraints: Vec<String>, metadata: Metadata) -> Edge {
        let encoded = encode::op(&op, &inputs, platform.as_ref(), &constraints);
        let digest = Digest::of(&encoded);
        // One that stems from no file is listed too.
        self.sources.locations.entry(digest.clone()).or_default();
        self.insert(Vertex {
            digest: digest.clone(),
            encoded,
            op,
            inputs,
            platform,
            constraints,
            metadata,
            name: String::new(),
            proxied: false,
        });
        Edge { vertex: digest, output: 0 }
    }

    /// Adds all vertices of another graph, bytes unchanged, and returns its result.
    pub fn graft(&mut self, graph: &Graph) -> Option<Edge> {
        let sources: Vec<usize> = graph.sources.infos.iter().map(|info| self.source(info.clone())).collect();
        for (digest, locations) in &graph.sources.locations {
            self.sources.locations.entry(digest.clone()).or_default();
            for location in locations.iter().filter(|l| l.source < sources.len()) {
                self.locate(digest, Location { source: sources[location.source], ranges: location.ranges.clone() });
            }
        }
        for vertex in &graph.vertices {
            self.insert(vertex.clone());
        }
        graph.result.clone()
    }

    fn insert(&mut self, mut vertex: Vertex) {
        if let Some(at) = self.positions.get(&vertex.digest) {
            let known = &mut self.vertices[*at];
            known.metadata.merge(vertex.metadata);
            if let Some(custom) = known.metadata.description.get("llb.customname") {
                known.name = custom.clone();
            }
            return;
        }
        let input = |i: usize| {
            let at = self.positions.get(&vertex.inputs[i].vertex).expect("inputs are added before their users");
            self.vertices[*at].name.as_str()
        };
        (0..vertex.inputs.len()).for_each(|i| _ = input(i));
        vertex.name = name::name(&vertex.op, &vertex.metadata, vertex.inputs.len(), input);
        self.positions.insert(vertex.digest.clone(), self.vertices.len());
        self.vertices.push(vertex);
    }

    pub fn vertex(&self, digest: &Digest) -> Option<&Vertex> {
        self.positions.get(digest).map(|at| &self.vertices[*at])
    }

    /// Adds a source file, or finds the equal one, and returns its number for [`Builder::location`].
    pub fn source(&mut self, info: SourceInfo) -> usize {
        self.sources.infos.iter().position(|known| is_same(known, &info)).unwrap_or_else(|| {
            self.sources.infos.push(info);
            self.sources.infos.len() - 1
        })
    }

    /// Says that a vertex stems from these ranges of a source file.
    pub fn location(&mut self, vertex: &Digest, source: usize, ranges: Vec<Range>) {
        self.locate(vertex, Location { source, ranges });
    }

    fn locate(&mut self, vertex: &Digest, location: Location) {
        let all = self.sources.locations.entry(vertex.clone()).or_default();
        if !all.contains(&location) {
            all.push(location);
        }
    }

    /// The graph that `result` needs; other vertices are left out. `None` gives the empty graph. May be called again for another result.
    pub fn finish(&self, result: Option<Edge>) -> Graph {
        let Some(result) = result else { return Graph::default() };
        let vertices = self.vertices.iter().zip(self.needed(&result)).filter(|(_, needed)| *needed).map(|(v, _)| v.clone()).collect();
        graph(vertices, self.sources.clone(), result)
    }

    /// As [`Self::finish`], for the last result.
    pub fn into_graph(mut self, result: Option<Edge>) -> Graph {
        let Some(result) = result else { return Graph::default() };
        let mut needed = self.needed(&result).into_iter();
        self.vertices.retain(|_| needed.next().unwrap_or(false));
        graph(self.vertices, self.sources, result)
    }

    /// For each vertex whether `result` is made from it.
    fn needed(&self, result: &Edge) -> Vec<bool> {
        let last = self.positions[&result.vertex];
        let mut needed = vec![false; self.vertices.len()];
        needed[last] = true;
        for at in (0..=last).rev() {
            if needed[at] {
                self.vertices[at].inputs.iter().for_each(|i| needed[self.positions[&i.vertex]] = true);
            }
        }
        needed
    }
}

/// Clients encode what they were given anew, so the definitions of where a file comes from are compared by what they lead to.
fn is_same(one: &SourceInfo, other: &SourceInfo) -> bool {
    let result = |definition: &[u8]| Graph::load_bytes(definition).ok().and_then(|graph| graph.result);
    let same_origin = || match (&one.definition, &other.definition) {
        (Some(one), Some(other)) => one == other || result(one).is_some_and(|one| Some(one) == result(other)),
        // Whoever does not say where it comes from does not disagree.
        _ => true,
    };
    one.filename == other.filename && one.language == other.language && one.data == other.data && same_origin()
}

/// The last entry of a definition lists what the definition as a whole relies on.
fn graph(vertices: Vec<Vertex>, mut sources: SourceMap, result: Edge) -> Graph {
    let kept: std::collections::HashSet<&Digest> = vertices.iter().map(|v| &v.digest).collect();
    sources.locations.retain(|digest, _| kept.contains(digest));
    let result_metadata = result_metadata(&vertices);
    Graph { vertices, result: Some(result), result_metadata, sources, originals: Default::default() }
}

fn result_metadata(vertices: &[Vertex]) -> Metadata {
    let mut metadata = Metadata::default();
    let mut need = |cap: &str| _ = metadata.caps.insert(cap.to_owned(), true);
    need("constraints");
    need("platform");
    for Vertex { metadata: m, .. } in vertices {
        if m.ignore_cache {
            need("meta.ignorecache");
        }
        if !m.description.is_empty() {
            need("meta.description");
        }
        if m.export_cache.is_some() {
            need("meta.exportcache");
        }
    }
    metadata
}

impl Metadata {
    /// What holds for a vertex that two definitions, or two places of one, describe.
    pub fn merge(&mut self, other: Metadata) {
        self.ignore_cache |= other.ignore_cache;
        self.description.extend(other.description);
        self.caps.extend(other.caps);
        self.export_cache = other.export_cache.or(self.export_cache);
        self.progress_group = other.progress_group.or(self.progress_group.take());
        self.linux_resources = other.linux_resources.or(self.linux_resources.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(identifier: &str, description: &str) -> bytes::Bytes {
        let mut builder = Builder::new();
        let op = SourceOp { identifier: identifier.into(), attrs: Default::default() };
        let metadata = Metadata { description: [("k".to_owned(), description.to_owned())].into(), ..Metadata::default() };
        let edge = builder.add(Op::Source(op), Vec::new(), None, Vec::new(), metadata);
        builder.finish(Some(edge)).to_bytes()
    }

    #[test]
    fn a_source_file_counts_once_however_its_origin_is_encoded() {
        let info = |data: &'static str, definition: Option<bytes::Bytes>| SourceInfo {
            filename: "Dockerfile".into(),
            data: data.into(),
            language: "Dockerfile".into(),
            definition,
        };
        let mut builder = Builder::new();
        let mut source = |data, definition| builder.source(info(data, definition));
        assert_eq!(source("a", Some(definition("local://dockerfile", "one"))), 0);
        assert_eq!(source("a", Some(definition("local://dockerfile", "two"))), 0);
        assert_eq!(source("a", None), 0);
        assert_eq!(source("a", Some(definition("local://other", "one"))), 1);
        assert_eq!(source("b", Some(definition("local://dockerfile", "one"))), 2);
    }
}
