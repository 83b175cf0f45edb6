//! A solved graph, or one on its way: it runs when somebody needs it, and once.
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use engine::Built;
use fault::{Context as _, Result};
use frontend::Ref;
use layers::Layer;
use llb::Graph;
use session::Stat;
use tokio::sync::OnceCell;

use crate::build::Build;
use crate::caches::Importing;
use crate::files;
use crate::provenance::{Capture, Traced};

pub struct BuildRef {
    build: Arc<Build>,
    traced: Arc<Traced>,
    /// As it runs.
    policed: Arc<Graph>,
    imports: Vec<Arc<Importing>>,
    built: OnceCell<Result<Built>>,
}

impl BuildRef {
    /// Checks the graph and shows its vertices; runs nothing yet. `policed` is what source policy made of `graph`. The imports are looked into when it runs.
    pub fn new(build: Arc<Build>, graph: Arc<Graph>, policed: Arc<Graph>, imports: Vec<Arc<Importing>>) -> Result<Arc<Self>> {
        build.admit(&policed).context("failed to load LLB")?;
        build.job.announce(&policed);
        let id = format!("{}-{}", build.request.id, build.next_number());
        let traced = Arc::new(Traced { id, graph, capture: OnceLock::new() });
        let reference = Arc::new(Self { build: build.clone(), traced, policed, imports, built: OnceCell::new() });
        build.remember(&reference);
        Ok(reference)
    }

    /// A result that no graph of its own leads to.
    pub fn kept(build: Arc<Build>, id: &str, layer: Layer) -> Arc<Self> {
        let traced = Arc::new(Traced { id: id.to_owned(), graph: Arc::default(), capture: OnceLock::new() });
        let built = Built { layer: Some(layer), keys: Vec::new() };
        Arc::new(Self { build, traced, policed: Arc::default(), imports: Vec::new(), built: OnceCell::new_with(Some(Ok(built))) })
    }

    /// What provenance is made of.
    pub fn traced(&self) -> &Arc<Traced> {
        &self.traced
    }

    /// Runs the graph if that has not happened yet.
    pub async fn layer(&self) -> Result<Option<Layer>> {
        Ok(self.result().await?.layer)
    }

    /// [`BuildRef::layer`], with what the result is known by.
    pub async fn result(&self) -> Result<Built> {
        let solve = async {
            let caches = self.imports.iter().map(|import| import.cache).collect();
            let graph = &self.policed;
            let built = self.build.job.load_with(graph.clone(), caches).result().await?;
            // Only who is first here gets to set it.
            let _ = self.traced.capture.set(Capture::of(
                graph,
                |vertex| self.build.worker.pin(vertex),
                |vertex| self.build.worker.captured(vertex),
            ));
            Ok::<Built, fault::Fault>(built)
        };
        self.built.get_or_init(|| self.build.cancel.run(solve)).await.clone()
    }

    /// The result with its files on disk.
    async fn files(&self) -> Result<files::Tree> {
        let layer = self.layer().await?;
        files::Tree::open(layer, &self.build.cancel).await
    }
}

#[async_trait]
impl Ref for BuildRef {
    fn id(&self) -> &str {
        &self.traced.id
    }

    fn graph(&self) -> &Arc<Graph> {
        &self.traced.graph
    }

    async fn evaluate(&self) -> Result<()> {
        self.layer().await.map(|_| ())
    }

    async fn read_file(&self, path: &str, range: Option<(u64, u64)>) -> Result<Bytes> {
        self.files().await?.read_file(path, range).await
    }

    async fn read_dir(&self, path: &str, include: &str) -> Result<Vec<Stat>> {
        self.files().await?.read_dir(path, include).await
    }

    async fn stat_file(&self, path: &str) -> Result<Stat> {
        self.files().await?.stat(path).await
    }
}
