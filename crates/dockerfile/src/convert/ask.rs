use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use llb::Graph;
use oci::{Digest, ImageConfig, Platform, Timestamp};

use crate::Cause;
use crate::source::{Local, ResolveMode};

/// What a conversion must know and cannot find out by itself.
#[async_trait]
pub trait Ask: Send + Sync {
    /// Pins an image and reads its config. `reference` is in its full form.
    async fn image(&self, request: ImageRequest<'_>) -> Result<Image, Cause>;

    /// The named context that stands in for a stage or an image, if there is one by that name.
    fn named_context(&self, name: &str, platform: Option<&Platform>) -> Result<Option<NamedContext>, Cause>;

    async fn load_context(&self, context: &NamedContext, platform: Option<&Platform>, mode: ResolveMode) -> Result<LoadedContext, Cause>;

    /// The build context. `paths` are those that the build uses; none means all. `None` is an empty context.
    async fn main_context(&self, paths: &[String]) -> Result<Option<Arc<Graph>>, Cause>;

    /// The patterns of the ignore file; none where the context is not a directory of the client.
    async fn ignore_patterns(&self) -> Result<Vec<String>, Cause>;

    /// When the one source of `graph` came into being: a commit, a last modification. `None` where nobody can say.
    async fn source_date(&self, graph: &Graph, log_name: &str) -> Result<Option<Timestamp>, Cause>;

    /// The keys of an ssh host, if they can be had.
    async fn ssh_known_hosts(&self, _host: &str) -> Option<String> {
        None
    }
}

#[derive(Debug, Clone)]
pub struct ImageRequest<'a> {
    pub reference: &'a str,
    pub platform: &'a Platform,
    pub mode: ResolveMode,
    /// What progress calls the request.
    pub log_name: String,
}

#[derive(Debug, Clone)]
pub struct Image {
    /// As policy left it.
    pub reference: String,
    pub digest: Digest,
    pub config: Bytes,
}

/// A named context that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedContext {
    pub name: String,
    /// With `::platform` where it was found that way.
    pub key: String,
    /// Where it comes from, such as `docker-image://alpine`.
    pub input: String,
}

#[derive(Debug, Clone)]
pub struct LoadedContext {
    pub files: ContextFiles,
    /// Of images and of inputs that say so.
    pub image: Option<ImageConfig>,
}

#[derive(Debug, Clone)]
pub enum ContextFiles {
    /// `None` is scratch.
    Graph(Option<Arc<Graph>>),
    /// A directory of the client, of which only what is used will be asked for.
    Local { local: Local, name: String },
}
