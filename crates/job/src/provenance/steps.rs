//! The steps of a build as a predicate shows them: each op by a short name, inputs before their users.
use std::collections::{BTreeMap, HashMap};

use fault::{Fault, Kind, Result};
use llb::Graph;
use llb::json::locations_to_json;
use oci::Digest;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::provenance::usage::Usage;

#[derive(Debug, Clone, Serialize)]
pub struct Step {
    pub id: String,
    pub op: Box<RawValue>,
    /// `step<number>:<output>`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<String>,
    #[serde(rename = "resourceUsage", skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Under which it runs. The result itself is none.
    #[serde(skip)]
    pub vertex: Option<Digest>,
}

/// Steps with the names that vertices have among them.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Steps {
    #[serde(rename = "llbDefinition", skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
    #[serde(rename = "digestMapping", skip_serializing_if = "BTreeMap::is_empty")]
    pub names: BTreeMap<String, String>,
}

/// The files that steps stem from.
#[derive(Debug, Clone, Serialize)]
pub struct SourceMap {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    locations: BTreeMap<String, Box<RawValue>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    infos: Vec<SourceInfo>,
}

#[derive(Debug, Clone, Serialize)]
struct SourceInfo {
    #[serde(skip_serializing_if = "String::is_empty")]
    filename: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    language: String,
    /// Base64.
    #[serde(skip_serializing_if = "String::is_empty")]
    data: String,
    #[serde(flatten)]
    steps: Steps,
}

impl Steps {
    /// Depth first from the result, inputs in their order. The last step is the result itself. Nothing for scratch.
    pub fn of(graph: &Graph) -> Result<Self> {
        let Some(result) = &graph.result else { return Ok(Self::default()) };
        let index = graph.index();
        let at =
            |digest: &Digest| index.get(digest).copied().ok_or_else(|| Fault::new(Kind::Unknown, format!("failed to find input {digest}")));
        let mut numbers: HashMap<usize, usize> = HashMap::new();
        let mut order = Vec::new();
        // A vertex with how many of its inputs were gone into.
        let mut path = vec![(at(&result.vertex)?, 0)];
        while let Some((vertex, done)) = path.last_mut() {
            let inputs = &graph.vertices[*vertex].inputs;
            if let Some(input) = inputs.get(*done) {
                *done += 1;
                let input = at(&input.vertex)?;
                if !numbers.contains_key(&input) && !path.iter().any(|(known, _)| *known == input) {
                    path.push((input, 0));
                }
            } else {
                numbers.insert(*vertex, order.len());
                order.push(*vertex);
                path.pop();
            }
        }
        let name = |digest: &Digest, output: u32| Ok::<_, Fault>(format!("step{}:{output}", numbers[&at(digest)?]));
        let mut found = Self::default();
        for (number, vertex) in order.iter().map(|at| &graph.vertices[*at]).enumerate() {
            let json = vertex.to_json().ok_or_else(|| Fault::internal("a vertex is no op"))?;
            let inputs = vertex.inputs.iter().map(|edge| name(&edge.vertex, edge.output)).collect::<Result<_>>()?;
            found.steps.push(Step { id: format!("step{number}"), op: raw(json), inputs, usage: None, vertex: Some(vertex.digest.clone()) });
            found.names.insert(graph.original(&vertex.digest).to_string(), format!("step{number}"));
        }
        let last = format!("step{}", order.len());
        found.names.insert(graph.terminal().expect("there is a result").to_string(), last.clone());
        let op = raw(r#"{"Op":{}}"#.to_owned());
        found.steps.push(Step { id: last, op, inputs: vec![name(&result.vertex, result.output)?], usage: None, vertex: None });
        Ok(found)
    }

    /// The step that a vertex is.
    pub fn name(&self, vertex: &Digest) -> Option<&str> {
        self.names.get(vertex.as_str()).map(String::as_str)
    }
}

impl SourceMap {
    /// `None` where the graph stems from no file.
    pub fn of(graph: &Graph, steps: &Steps) -> Result<Option<Self>> {
        if graph.sources.infos.is_empty() {
            return Ok(None);
        }
        let mut infos = Vec::new();
        for info in &graph.sources.infos {
            let nested = match &info.definition {
                Some(definition) if !definition.is_empty() => {
                    let graph = Graph::load_bytes(definition).map_err(|e| Fault::of(Kind::Invalid, e))?;
                    Steps::of(&graph)?
                }
                _ => Steps::default(),
            };
            infos.push(SourceInfo {
                filename: info.filename.clone(),
                language: info.language.clone(),
                data: base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &info.data),
                steps: nested,
            });
        }
        let places = graph.sources.locations.iter();
        let named = places.filter_map(|(digest, places)| Some((steps.name(digest)?.to_owned(), raw(locations_to_json(places)))));
        Ok(Some(Self { locations: named.collect(), infos }))
    }
}

fn raw(json: String) -> Box<RawValue> {
    RawValue::from_string(json).expect("ops are written as JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    use llb::{Builder, Metadata, Op, SourceOp};

    #[test]
    fn steps_are_numbered_from_the_inputs_up() {
        let mut builder = Builder::new();
        let mut source = |name: &str| {
            let op = SourceOp { identifier: format!("docker-image://{name}"), attrs: Default::default() };
            builder.add(Op::Source(op), Vec::new(), None, Vec::new(), Metadata::default())
        };
        let (one, two) = (source("r/one:1"), source("r/two:1"));
        let merge =
            builder.add(Op::Merge(vec![Some(0), Some(1), Some(0)]), vec![two.clone(), one.clone()], None, Vec::new(), Metadata::default());
        let steps = Steps::of(&builder.finish(Some(merge.clone()))).unwrap();
        let shown: Vec<(&str, &[String])> = steps.steps.iter().map(|s| (s.id.as_str(), s.inputs.as_slice())).collect();
        let inputs = ["step0:0".to_owned(), "step1:0".to_owned()];
        assert_eq!(shown, [("step0", &[][..]), ("step1", &[]), ("step2", &inputs), ("step3", &["step2:0".to_owned()])]);
        assert_eq!((steps.name(&two.vertex), steps.name(&merge.vertex)), (Some("step0"), Some("step2")));
        assert_eq!(steps.names.len(), 4, "the result has a name too");
        assert_eq!(steps.steps[3].op.get(), r#"{"Op":{}}"#);
    }
}
