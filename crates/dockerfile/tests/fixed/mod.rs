//! Answers that never change, for tests of whole conversions and for the fuzz target.
use std::sync::Arc;

use dockerfile::Cause;
use dockerfile::convert::{Ask, Image, ImageRequest, LoadedContext, NamedContext};
use dockerfile::source::{self, Local, ResolveMode};
use llb::Graph;
use oci::{Digest, Platform, Timestamp};

/// An image with instructions for those who build on it.
#[allow(dead_code, reason = "each test takes what it needs")]
pub const ON_BUILD: &str = r#"{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin","A=b"],"OnBuild":["RUN x","COPY a $A"]},"rootfs":{"type":"layers","diff_ids":null},"history":[{}]}"#;

#[allow(dead_code, reason = "each test takes what it needs")]
pub const PLAIN: &str =
    r#"{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/usr/bin:/bin"]},"rootfs":{"type":"layers","diff_ids":null}}"#;

/// Says of every image that its config is this.
pub struct Fixed(pub &'static str);

#[async_trait::async_trait]
impl Ask for Fixed {
    async fn image(&self, request: ImageRequest<'_>) -> Result<Image, Cause> {
        Ok(Image { reference: request.reference.to_owned(), digest: Digest::of(b"image"), config: self.0.into() })
    }

    fn named_context(&self, _: &str, _: Option<&Platform>) -> Result<Option<NamedContext>, Cause> {
        Ok(None)
    }

    async fn load_context(&self, _: &NamedContext, _: Option<&Platform>, _: ResolveMode) -> Result<LoadedContext, Cause> {
        Err("there are no named contexts".into())
    }

    async fn main_context(&self, paths: &[String]) -> Result<Option<Arc<Graph>>, Cause> {
        let local = Local { name: "context".into(), follow_paths: paths.to_vec(), ..Local::default() };
        Ok(Some(Arc::new(source::local(&local).into_graph())))
    }

    async fn ignore_patterns(&self) -> Result<Vec<String>, Cause> {
        Ok(vec!["*.x".into(), "!k".into()])
    }

    async fn source_date(&self, _: &Graph, _: &str) -> Result<Option<Timestamp>, Cause> {
        Ok(None)
    }
}
