//! Dockerfile text to syntax to LLB, with answers that never change.
#![no_main]
use std::sync::Arc;

use dockerfile::convert::{Ask, Image, ImageRequest, LoadedContext, NamedContext, outline};
use dockerfile::lint::Linter;
use dockerfile::source::{self, Local, ResolveMode};
use dockerfile::{Cause, Options, convert};
use futures_util::FutureExt as _;
use libfuzzer_sys::fuzz_target;
use llb::Graph;
use oci::{Digest, Platform, Timestamp};

struct Fixed;

#[async_trait::async_trait]
impl Ask for Fixed {
    async fn image(&self, request: ImageRequest<'_>) -> Result<Image, Cause> {
        let config = r#"{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin","A=b"],"OnBuild":["RUN x","COPY a $A"]},"rootfs":{"type":"layers","diff_ids":null},"history":[{}]}"#;
        Ok(Image { reference: request.reference.to_owned(), digest: Digest::of(b"image"), config: config.into() })
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

fuzz_target!(|data: &[u8]| {
    let options = Options { caps: llb::CAPABILITIES.iter().map(|c| (*c).to_owned()).collect(), ..Options::default() };
    let mut linter = Linter::new(Default::default());
    let converted = convert(data, &options, &Fixed, &mut linter).now_or_never().expect("nothing here has to wait");
    match converted {
        Ok(converted) => {
            // An empty graph is scratch.
            if !converted.graph.vertices.is_empty() {
                let sent = converted.graph.to_bytes();
                let loaded = Graph::decode(sent).expect("what we make we accept");
                assert_eq!(loaded.vertices.len(), converted.graph.vertices.len());
            }
            let _ = converted.image.to_bytes();
        }
        Err(error) => drop(error.to_string()),
    }
    let all = Options { all_stages: true, ..options };
    let _ = outline(data, &all, &Fixed, &mut Linter::silent()).now_or_never().expect("nothing here has to wait");
});
