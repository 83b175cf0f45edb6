//! Answers what a conversion asks, through the bridge.
use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use dockerfile::Cause;
use dockerfile::convert::{Ask, Image, ImageRequest, LoadedContext, NamedContext};
use dockerfile::source::ResolveMode;
use fault::{Context as _, Fault, Result};
use llb::{Graph, Op, SourceOp};
use oci::{Digest, Platform, Timestamp};
use tokio::sync::{Mutex, OnceCell};

use super::context::{BuildContext, Entrypoint, solve};
use super::faults::pass;
use super::opts::{Config, invalid};
use super::{archive, named};
use crate::bridge::{Bridge, ResolveRequest};

pub(super) struct Answers<'a> {
    images: Images<'a>,
    context: &'a BuildContext,
    entrypoint: &'a Entrypoint,
}

/// Looks images up for a request.
pub(super) struct Images<'a> {
    pub bridge: &'a dyn Bridge,
    pub config: &'a Config,
    /// Platforms of one build ask for the same images.
    known: Mutex<HashMap<String, Arc<OnceCell<Result<Resolved>>>>>,
}

/// An image that was found.
#[derive(Clone)]
pub(super) struct Resolved {
    pub reference: String,
    /// `None`: policy made something else than an image of it, and `reference` is the whole identifier.
    pub image: Option<(Digest, Bytes)>,
}

impl<'a> Answers<'a> {
    pub fn new(bridge: &'a dyn Bridge, config: &'a Config, context: &'a BuildContext, entrypoint: &'a Entrypoint) -> Self {
        Self { images: Images::new(bridge, config), context, entrypoint }
    }
}

impl<'a> Images<'a> {
    pub fn new(bridge: &'a dyn Bridge, config: &'a Config) -> Self {
        Self { bridge, config, known: Mutex::default() }
    }

    /// Asks once for equal requests, also if the answer is a failure.
    pub async fn resolve(&self, request: ResolveRequest) -> Result<Resolved> {
        let key = format!("{:?}", (&request.op, &request.platform, &request.log_name, &request.resolve_mode));
        let cell = self.known.lock().await.entry(key).or_default().clone();
        cell.get_or_init(|| self.resolve_now(request)).await.clone()
    }

    async fn resolve_now(&self, request: ResolveRequest) -> Result<Resolved> {
        let bare = |id: &str| ["docker-image://", "oci-layout://"].iter().find_map(|p| id.strip_prefix(p)).unwrap_or(id).to_owned();
        let asked = bare(&request.op.identifier);
        let meta = self.bridge.resolve_source(request).await.with_context(|| format!("failed to resolve source metadata for {asked}"))?;
        Ok(match meta.image {
            Some(image) => Resolved { reference: bare(&meta.op.identifier), image: Some((image.digest, image.config)) },
            None => Resolved { reference: meta.op.identifier, image: None },
        })
    }
}

pub(super) fn image_request(reference: &str, platform: Option<&Platform>, mode: ResolveMode, log_name: String) -> ResolveRequest {
    ResolveRequest {
        op: SourceOp { identifier: format!("docker-image://{reference}"), ..SourceOp::default() },
        platform: platform.cloned(),
        log_name,
        resolve_mode: mode.as_str().to_owned(),
        ..ResolveRequest::default()
    }
}

#[async_trait]
impl Ask for Answers<'_> {
    async fn image(&self, request: ImageRequest<'_>) -> Result<Image, Cause> {
        let ImageRequest { reference, platform, mode, log_name } = request;
        let found = self.images.resolve(image_request(reference, Some(platform), mode, log_name)).await.map_err(pass)?;
        match found.image {
            Some((digest, config)) => Ok(Image { reference: found.reference, digest, config }),
            None => Err(pass(not_an_image(reference, &found.reference))),
        }
    }

    fn named_context(&self, name: &str, platform: Option<&Platform>) -> Result<Option<NamedContext>, Cause> {
        named::find(self.images.config, name, platform).map_err(pass)
    }

    async fn load_context(&self, context: &NamedContext, platform: Option<&Platform>, mode: ResolveMode) -> Result<LoadedContext, Cause> {
        named::load(&self.images, context, platform, mode).await.map_err(pass)
    }

    async fn main_context(&self, paths: &[String]) -> Result<Option<Arc<Graph>>, Cause> {
        self.context.graph(self.images.bridge, self.images.config, self.entrypoint, paths).await.map_err(pass)
    }

    async fn ignore_patterns(&self) -> Result<Vec<String>, Cause> {
        let patterns = self.context.ignore_patterns(self.images.bridge, self.images.config, self.entrypoint).await.map_err(pass)?;
        Ok(patterns.to_vec())
    }

    async fn source_date(&self, graph: &Graph, log_name: &str) -> Result<Option<Timestamp>, Cause> {
        self.date(graph, log_name).await.map_err(pass)
    }
}

pub(super) fn not_an_image(reference: &str, updated: &str) -> Fault {
    invalid(format!("ref {reference} resolved to non-image {updated}"))
}

impl Answers<'_> {
    async fn date(&self, graph: &Graph, log_name: &str) -> Result<Option<Timestamp>> {
        let mut sources = graph.vertices.iter().filter_map(|vertex| match &vertex.op {
            Op::Source(op) => Some(op),
            _ => None,
        });
        let (Some(op), None) = (sources.next(), sources.next()) else { return Ok(None) };
        let is_git = op.identifier.starts_with("git://");
        let is_http = op.identifier.starts_with("http://") || op.identifier.starts_with("https://");
        if !is_git && !is_http {
            return Ok(None);
        }
        let request = ResolveRequest { op: op.clone(), log_name: log_name.to_owned(), git_objects: is_git, ..ResolveRequest::default() };
        let meta = self.images.bridge.resolve_source(request).await?;
        if let Some(git) = meta.git.filter(|git| !git.commit_object.is_empty()) {
            return archive::commit_date(&git.commit_object);
        }
        if let Some(modified) = meta.http.and_then(|http| http.last_modified) {
            return Ok(Some(Timestamp::from_unix(modified, 0)));
        }
        let Some(filename) = op.attrs.get("http.filename").filter(|_| is_http) else { return Ok(None) };
        // Nobody says when it was made: the newest file in it may.
        let source = dockerfile::source::Source { op: op.clone(), platform: None, metadata: llb::Metadata::default() };
        let reference = solve(self.images.bridge, Arc::new(source.into_graph())).await?;
        let data = reference.read_file(filename, None).await?;
        Ok(archive::newest_file(&data).map(|seconds| Timestamp::from_unix(seconds, 0)))
    }
}
