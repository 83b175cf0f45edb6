use std::sync::Arc;

use crate::Properties;
use crate::node::{Kind, Layer, Node, State};
use crate::store::Layers;

impl Layers {
    /// The inputs on top of each other, later ones winning. Costs a record: no file is touched.
    pub fn merge(&self, inputs: &[Option<Layer>], properties: Properties) -> Option<Layer> {
        let mut flat: Vec<Arc<Node>> = Vec::new();
        for input in inputs.iter().flatten() {
            match &input.0.kind {
                Kind::Merge { inputs } => flat.extend(inputs.iter().cloned()),
                _ => flat.push(input.0.clone()),
            }
        }
        match flat.as_slice() {
            [] => None,
            [single] => Some(Layer::over(single.clone())),
            _ => Some(Layer::over(self.create(Kind::Merge { inputs: flat }, properties, None, State::default()))),
        }
    }

    /// What turns `lower` into `upper`. If `upper` was made on `lower` that is the layers between; otherwise the two are compared when the
    /// result is realized.
    pub fn diff(&self, lower: Option<&Layer>, upper: Option<&Layer>, properties: Properties) -> Option<Layer> {
        let chain = |layer: Option<&Layer>| layer.map_or(Vec::new(), |l| l.0.chain());
        let (below, above) = (chain(lower), chain(upper));
        let same = |n: usize| below[n].node.id == above[n].node.id && below[n].explicit == above[n].explicit;
        let between = above.len() >= below.len() && (0..below.len()).all(same);
        if between && above.len() == below.len() {
            return None;
        }
        if between && below.is_empty() {
            return upper.cloned();
        }
        let node = |layer: Option<&Layer>| layer.map(|l| l.0.clone());
        let kind = Kind::Diff { lower: node(lower), upper: node(upper), computed: !between };
        Some(Layer::over(self.create(kind, properties, None, State::default())))
    }
}
