//! The bridge that a build offers its frontend.
use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use fault::{Context as _, Fault, Result};
use frontend::bridge::{Build as Facts, CacheImport, WorkerPlatforms};
use frontend::dockerfile::is_replaced;
use frontend::{Bridge, Outcome, ResolveRequest, SolveRequest, SourceMeta};
use llb::Graph;
use oci::{Platform, Reference};
use progress::{Sink as _, Update, Warning};

use crate::build::Build;
use crate::contained;
use crate::provenance::{self, ImageSource, Scope};
use crate::reference::BuildRef;

pub struct BuildBridge {
    build: Arc<Build>,
    facts: Facts,
    inputs: BTreeMap<String, Arc<Graph>>,
    /// What is solved through this bridge, for provenance.
    scope: Arc<Scope>,
}

impl BuildBridge {
    /// `opts` are those of the frontend that will use the bridge.
    pub fn new(build: Arc<Build>, opts: BTreeMap<String, String>, inputs: BTreeMap<String, Arc<Graph>>, scope: Arc<Scope>) -> Self {
        let worker = build.worker.facts(false);
        let facts = Facts {
            opts,
            session_id: build.request.session.clone(),
            workers: vec![WorkerPlatforms { id: worker.id, labels: worker.labels, platforms: worker.platforms }],
            product: String::new(),
            llb_caps: llb::CAPABILITIES.iter().copied().collect(),
            gateway_caps: frontend::GATEWAY_CAPABILITIES.iter().copied().collect(),
            sbom_generator: build.settings.sbom_generator.clone(),
        };
        Self { build, facts, inputs, scope }
    }

    async fn solve_graph(&self, graph: Arc<Graph>, request: &SolveRequest) -> Result<Outcome> {
        if graph.result.is_none() {
            return Ok(Outcome::single(None));
        }
        let policed = self.build.police_graph(graph.clone(), &request.source_policies).await?;
        let imports = self.build.import(&request.cache_imports);
        self.build.refuse_foreign(&policed, &imports).await?;
        let reference = BuildRef::new(self.build.clone(), graph, policed, imports)?;
        if request.evaluate {
            reference.layer().await?;
        }
        self.scope.solved(reference.traced().clone());
        Ok(Outcome::single(Some(reference)))
    }

    async fn run_frontend(&self, request: SolveRequest) -> Result<Outcome> {
        let asked = provenance::Request {
            frontend: request.frontend.clone(),
            opts: request.frontend_opts.clone(),
            inputs: request.frontend_inputs.clone(),
        };
        let inner = self.scope.inner(asked);
        let nested: Arc<dyn Bridge> =
            Arc::new(Self::new(self.build.clone(), request.frontend_opts.clone(), request.frontend_inputs.clone(), inner.clone()));
        let outcome = self.run_on(&request, nested).await?;
        let made = outcome.every_ref().filter_map(|reference| self.build.traced(reference));
        self.scope.adopt(inner, made.collect());
        Ok(outcome)
    }

    async fn run_on(&self, request: &SolveRequest, nested: Arc<dyn Bridge>) -> Result<Outcome> {
        let name = builtin_name(request);
        match name {
            "dockerfile.v0" if self.build.settings.dockerfile_enabled => Box::pin(frontend::dockerfile::build(&*nested)).await,
            "gateway.v0" if self.build.settings.gateway_enabled => Box::pin(contained::run(&self.build, request, nested)).await,
            _ => Err(Fault::invalid(format!("invalid frontend: {name}"))),
        }
    }

    /// Images whose config a frontend asks for count as materials, be they in the result or not.
    fn saw(&self, platform: Option<Platform>, meta: &SourceMeta) {
        let Some(image) = &meta.image else { return };
        let identifier = meta.op.identifier.as_str();
        let remote = identifier.strip_prefix("docker-image://");
        let reference = remote.unwrap_or_else(|| identifier.strip_prefix("oci-layout://").unwrap_or(identifier)).to_owned();
        self.scope.saw(ImageSource { reference, platform, digest: Some(image.digest.clone()), local: remote.is_none() });
    }
}

/// `gateway.v0` that asks for the Dockerfile frontend's own image is served by the built-in one, unless the client puts another in its place.
fn builtin_name(request: &SolveRequest) -> &str {
    let source = request.frontend_opts.get("source").map_or("", String::as_str);
    let is_ours = (source == "dockerfile.v0" || covers(source)) && !is_replaced(&request.frontend_opts, source);
    if request.frontend == "gateway.v0" && is_ours { "dockerfile.v0" } else { &request.frontend }
}

#[async_trait]
impl Bridge for BuildBridge {
    fn build(&self) -> &Facts {
        &self.facts
    }

    async fn resolve_source(&self, request: ResolveRequest) -> Result<SourceMeta> {
        let build = &self.build;
        build.session().await?;
        let policed = build.police(&request.op, request.platform.as_ref(), &request.source_policies).await;
        let op = policed.context("could not resolve image due to policy")?;
        let platform = request.platform.clone();
        let meta = build.resolve_pinned(ResolveRequest { op, source_policies: Vec::new(), ..request }).await?;
        self.saw(platform, &meta);
        Ok(meta)
    }

    fn expect_imports(&self, imports: &[CacheImport]) {
        self.build.import(imports);
    }

    async fn solve(&self, request: SolveRequest) -> Result<Outcome> {
        self.build.session().await?;
        match &request.graph {
            Some(graph) if request.frontend.is_empty() => self.solve_graph(graph.clone(), &request).await,
            _ if request.frontend.is_empty() => Ok(Outcome::default()),
            _ => {
                let evaluate = request.evaluate;
                let outcome = self.run_frontend(request).await?;
                if evaluate {
                    for (_, reference) in outcome.all() {
                        if let Some(reference) = reference {
                            reference.evaluate().await?;
                        }
                    }
                }
                Ok(outcome)
            }
        }
    }

    async fn inputs(&self) -> Result<BTreeMap<String, Arc<Graph>>> {
        match self.inputs.values().any(|graph| graph.result.is_none()) {
            true => Err(Fault::invalid("invalid nil input definition to definition op")),
            false => Ok(self.inputs.clone()),
        }
    }

    async fn warn(&self, warning: Warning) -> Result<()> {
        self.build.hub().emit(Update::Warning(warning));
        Ok(())
    }
}

/// Whether an image is one that the built-in Dockerfile frontend stands in for: Docker's own, of a version that it implements.
fn covers(source: &str) -> bool {
    let Ok(reference) = source.parse::<Reference>() else { return false };
    let known = ["docker.io/docker/dockerfile", "docker.io/docker/dockerfile-upstream"].contains(&reference.name().as_str());
    let tag = reference.tag().unwrap_or("latest");
    let version = tag.split('-').next().unwrap_or_default();
    known && (version == "latest" || version == "master" || version == "labs" || version == "1" || version.starts_with("1."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_frontend_makes_way_for_a_named_context() {
        let request = |opts: &[(&str, &str)]| SolveRequest {
            frontend: "gateway.v0".into(),
            frontend_opts: opts.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            ..SolveRequest::default()
        };
        assert_eq!(builtin_name(&request(&[("source", "docker/dockerfile:1")])), "dockerfile.v0");
        let replaced = [("source", "docker/dockerfile:1"), ("context:docker/dockerfile:1", "docker-image://x")];
        assert_eq!(builtin_name(&request(&replaced)), "gateway.v0");
        let other = [("source", "docker/dockerfile:1"), ("context:docker/dockerfile:1.4", "docker-image://x")];
        assert_eq!(builtin_name(&request(&other)), "dockerfile.v0");
    }

    #[test]
    fn the_built_in_frontend_stands_in_for_dockers_own_only() {
        for source in
            ["docker/dockerfile:1", "docker/dockerfile:1.7-labs", "docker.io/docker/dockerfile", "docker/dockerfile-upstream:master"]
        {
            assert!(covers(source), "{source}");
        }
        for source in ["", "docker/dockerfile:2", "example.com/docker/dockerfile:1", "docker/other:1"] {
            assert!(!covers(source), "{source}");
        }
    }
}
