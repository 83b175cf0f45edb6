//! The build op: a graph that an earlier step wrote into a file.
use std::io::Read as _;
use std::path::Path;

use fault::{Fault, Kind, Result};
use layers::Layer;
use llb::{BuildOp, Graph};
use snapshot::{Follow, View};

/// The input with the file, which is called the same unless the op says otherwise.
const DEFINITION: &str = "buildkit.llb.definition";
const FILE_NAME: &str = "llbbuild.filename";

/// The largest definition that is read, in bytes.
const MAX_DEFINITION: u64 = 64 << 20;

/// Which input holds the graph.
pub fn definition_input(op: &BuildOp) -> Result<usize> {
    if op.builder.is_some() {
        return Err(Fault::invalid("only LLB builder is currently allowed"));
    }
    let index = op.inputs.get(DEFINITION).ok_or_else(|| Fault::invalid(format!("no llb definition input {DEFINITION} found")))?;
    Ok(index.ok_or_else(|| Fault::invalid("invalid index -1"))? as usize)
}

/// The graph in that input, which must be realized.
pub fn definition(op: &BuildOp, layer: Option<&Layer>) -> Result<Graph> {
    let name = op.attrs.get(FILE_NAME).map_or(DEFINITION, String::as_str);
    let view = layer.map_or_else(|| Ok(View::empty()), Layer::view)?;
    let failed = || format!("failed to open {name}");
    let entry = view.require(Path::new(name), Follow::Yes).map_err(|e| Fault::of(Kind::of_io(&e.source), e).context(failed()))?;
    let metadata = entry.metadata();
    if !metadata.is_file() {
        return Err(Fault::invalid(format!("{name} is not a regular file")));
    }
    if metadata.size > MAX_DEFINITION {
        return Err(Fault::new(Kind::Exhausted, format!("{name}: {} bytes are more than a definition may have", metadata.size)));
    }
    let mut bytes = Vec::new();
    entry.open()?.read_to_end(&mut bytes)?;
    Graph::decode(bytes).map_err(|e| Fault::of(Kind::Invalid, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_built_is_named() {
        let mut op = BuildOp::default();
        assert_eq!(definition_input(&op).unwrap_err().to_string(), "no llb definition input buildkit.llb.definition found");
        op.inputs.insert(DEFINITION.into(), Some(2));
        assert_eq!(definition_input(&op).unwrap(), 2);
        assert!(definition(&op, None).unwrap_err().to_string().starts_with("failed to open buildkit.llb.definition"));
        op.builder = Some(0);
        assert_eq!(definition_input(&op).unwrap_err().to_string(), "only LLB builder is currently allowed");
    }
}
