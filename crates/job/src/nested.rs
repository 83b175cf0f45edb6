//! Graphs that a build's own steps bring.
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use fault::{Fault, Kind, Result};
use layers::Layer;
use llb::{Graph, SourceOp};

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

    async fn fetchable(&self, url: &str) -> Result<String> {
        let build = self.0.upgrade().ok_or_else(|| Fault::new(Kind::Canceled, "context canceled"))?;
        let wanted = SourceOp { identifier: url.to_owned(), attrs: Default::default() };
        let policed = build.police(&wanted, None, &[]).await?;
        if !policed.attrs.is_empty() {
            return Err(Fault::invalid(format!(
                "source policy converted {url:?} with attributes, which requests through the proxy cannot have"
            )));
        }
        if !["http://", "https://"].iter().any(|scheme| policed.identifier.starts_with(scheme)) {
            return Err(Fault::invalid(format!("source policy converted {url:?} to {:?}, which cannot be requested", policed.identifier)));
        }
        Ok(policed.identifier)
    }
}
