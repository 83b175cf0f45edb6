//! What the proxy asks of the builds that want a step.
use std::sync::Arc;

use async_trait::async_trait;
use engine::Nested;
use fault::{Fault, Kind, Result};

/// A step may fetch what all of them allow.
pub struct Builders(pub Vec<Arc<dyn Nested>>);

#[async_trait]
impl proxy::Judge for Builders {
    async fn judge(&self, url: &str) -> Result<String> {
        if self.0.is_empty() {
            return Err(Fault::new(Kind::Denied, "no build is there to say what its steps may fetch"));
        }
        let mut allowed = url.to_owned();
        for builder in &self.0 {
            allowed = builder.fetchable(&allowed).await?;
        }
        Ok(allowed)
    }
}
