//! Graphs that a build's own steps bring.
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use fault::{Fault, Kind, Result};
use layers::Layer;
use llb::Graph;

use crate::build::Build;
use crate::reference::BuildRef;

/// What steps know of their build. It does not keep the build, which keeps the steps.
pub struct Steps(pub Weak<Build>);

#[async_trait]
impl engine::Nested for Steps {
    async fn build(&self, graph: Graph) -> Result<Option<Layer>> {
        let build = self.0.upgrade().ok_or_else(|| Fault::new(Kind::Canceled, "context canceled"))?;
        if graph.result.is_none() {
            return Ok(None);
        }
        let graph = Arc::new(graph);
        let policed = build.police_graph(graph.clone(), &[]).await?;
        BuildRef::new(build, graph, policed, Vec::new())?.layer().await
    }
}
