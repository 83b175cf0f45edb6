//! The engine as others hold it.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cache::Caches;
use fault::{Detail, Fault, Result};
use layers::Layer;
use llb::{Graph, Vertex};
use oci::Digest;
use progress::{Group as ProgressGroup, Sink, Update};
use session::Group;
use solver::{JobId, Key, RequestId};
use task::Cancel;
use tokio::sync::{mpsc, oneshot};

use crate::execute::Execute;
use crate::run_loop::{self, Failure, Message};

#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// How many limited steps run at a time; `None` is no limit.
    pub parallelism: Option<usize>,
}

/// Cheap to clone. The engine ends when the last clone and the last job are gone.
#[derive(Clone)]
pub struct Engine {
    messages: mpsc::UnboundedSender<Message>,
    numbers: Arc<AtomicU64>,
}

impl Engine {
    /// Must be called within a runtime.
    pub fn new(execute: Arc<dyn Execute>, caches: Caches, options: Options) -> Self {
        let (messages, inbox) = mpsc::unbounded_channel();
        // The loop holds no strong sender, so that it ends with its users.
        task::spawn("engine", run_loop::run(execute, caches, options, inbox, messages.downgrade()));
        Self { messages, numbers: Arc::default() }
    }

    /// A new job. Its graphs share what they have in common with those of other jobs.
    pub fn job(&self, id: &str, sink: Arc<dyn Sink>, sessions: Group, cancel: Cancel) -> Job {
        let number = JobId(self.number());
        tracing::debug!(job = id, number = number.0, "job opened");
        Job { engine: self.clone(), number, sink, sessions, cancel }
    }

    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn send(&self, message: Message) {
        // The loop ends only once nobody could send.
        let _ = self.messages.send(message);
    }
}

/// One build's interest in vertices. Dropping it cancels what only it wanted.
pub struct Job {
    engine: Engine,
    number: JobId,
    sink: Arc<dyn Sink>,
    sessions: Group,
    cancel: Cancel,
}

/// A result.
#[derive(Clone)]
pub struct Built {
    /// `None` is scratch.
    pub layer: Option<Layer>,
    /// What the result is known by in caches; empty for scratch.
    pub keys: Vec<Key>,
}

impl Job {
    /// Shows the vertices of a graph before anything runs.
    pub fn announce(&self, graph: &Graph) {
        for vertex in &graph.vertices {
            self.sink.emit(Update::Announced(shown(graph, vertex)));
        }
    }

    /// Has the graph's result made, or found in the cache. Dropping the future gives the wish up. Several graphs may be built at once.
    pub async fn build(&self, graph: Arc<Graph>) -> Result<Built> {
        let Some(result) = graph.result.clone() else { return Ok(Built { layer: None, keys: Vec::new() }) };
        let (reply, answer) = oneshot::channel();
        let request = RequestId(self.engine.number());
        self.engine.send(Message::Build {
            job: self.number,
            request,
            graph: graph.clone(),
            result,
            sink: self.sink.clone(),
            sessions: self.sessions.clone(),
            reply,
        });
        let _release = Release { engine: &self.engine, request };
        let outcome = self.cancel.run(async { answer.await.map_err(|_| Fault::internal("the engine has ended")) }).await?;
        outcome.map_err(|Failure(fault)| with_sources(fault, &graph))
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.engine.send(Message::Leave(self.number));
    }
}

struct Release<'a> {
    engine: &'a Engine,
    request: RequestId,
}

impl Drop for Release<'_> {
    fn drop(&mut self) {
        self.engine.send(Message::Release(self.request));
    }
}

fn shown(graph: &Graph, vertex: &Vertex) -> progress::Vertex {
    let group = vertex.metadata.progress_group.as_ref();
    progress::Vertex {
        digest: graph.original(&vertex.digest).clone(),
        inputs: vertex.inputs.iter().map(|edge| graph.original(&edge.vertex).clone()).collect(),
        name: vertex.name.clone(),
        group: group.map(|g| ProgressGroup { id: g.id.clone(), name: g.name.clone(), weak: g.weak }),
    }
}

/// Adds where the failed vertex comes from in the user's files, and calls it what the client calls it.
fn with_sources(fault: Fault, graph: &Graph) -> Fault {
    let failed = fault.details().into_iter().find_map(|detail| match detail {
        Detail::Vertex { digest } => digest.parse::<Digest>().ok(),
        _ => None,
    });
    let Some(failed) = failed else { return fault };
    let mut fault = fault;
    for location in graph.locations(&failed) {
        let Some(info) = graph.sources.infos.get(location.source) else { continue };
        fault = fault.with_detail(Detail::Source {
            filename: info.filename.clone(),
            language: info.language.clone(),
            data: info.data.to_vec(),
            ranges: location.ranges.iter().map(|r| fault::Range { start: r.start, end: r.end }).collect(),
        });
    }
    match graph.original(&failed) {
        original if *original == failed => fault,
        original => fault.with_detail(Detail::Vertex { digest: original.to_string() }),
    }
}
