//! What the engine asks of the place where steps run. `worker` implements it; tests use a fake.
use std::sync::Arc;

use async_trait::async_trait;
use fault::Result;
use layers::{Layer, LayerId, PinGroup};
use llb::{Graph, Vertex};
use oci::Digest;
use progress::Reporter;
use session::Group;
use task::Cancel;

/// How one vertex may use the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheMap {
    /// Key of the op itself, without its inputs.
    pub digest: Digest,
    /// One for each input of the vertex, in order.
    pub inputs: Vec<InputMap>,
    /// A vertex without inputs may have a further map (an image: first by manifest, then by its layers' chain); both keys lead to the result.
    pub more: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InputMap {
    /// Which part of the input the op looks at, as part of the definition key.
    pub selector: Option<Digest>,
    /// Whether the key may also be made of the input's content ([`Execute::content_digest`]).
    pub content: bool,
}

/// What a piece of work for one vertex may use. The sessions are those of all builds that want it by now.
#[derive(Clone)]
pub struct Context {
    pub cancel: Cancel,
    pub reporter: Reporter,
    pub sessions: Group,
    /// What names stand for in the builds that wanted it when it began.
    pub pins: PinGroup,
    /// Those builds, where they build graphs for their steps.
    pub builders: Vec<Arc<dyn Nested>>,
}

/// A build, as a step sees it that has found a graph to build in its turn.
#[async_trait]
pub trait Nested: Send + Sync {
    /// The result of a graph, as part of the build and under its rules; `None` is scratch.
    async fn build(&self, graph: Graph) -> Result<Option<Layer>>;

    /// The URL that a step may fetch in the place of this one, most often itself; an error if it may fetch nothing there.
    async fn fetchable(&self, url: &str) -> Result<String>;
}

/// `None` in the place of a layer is scratch.
#[async_trait]
pub trait Execute: Send + Sync {
    /// `index` counts the maps of a vertex without inputs; 0 for all others.
    async fn cache_map(&self, vertex: &Arc<Vertex>, index: usize, context: &Context) -> Result<CacheMap>;

    /// The content key of what the op looks at in one of its inputs. Only asked where [`InputMap::content`] is set.
    async fn content_digest(&self, vertex: &Arc<Vertex>, input: usize, layer: Option<&Layer>, context: &Context) -> Result<Digest>;

    /// Runs the op and gives one result for each output.
    async fn run(&self, vertex: &Arc<Vertex>, inputs: Vec<Option<Layer>>, context: &Context) -> Result<Vec<Option<Layer>>>;

    /// A result recorded earlier; `None` if it has been pruned.
    fn load(&self, id: &LayerId) -> Option<Layer>;

    /// Whether running this vertex counts against the limit of parallel steps.
    fn is_limited(&self, vertex: &Vertex) -> bool;
}
