//! The engine as others hold it.
use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cache::Caches;
use fault::{Fault, Result};
use layers::{Layer, Pins};
use llb::{Graph, Vertex};
use oci::Digest;
use progress::{Sink, Update};
use session::Group;
use solver::{Answer, CacheId, JobId, Key, RequestId, Want};
use task::{Cancel, Drain};
use tokio::sync::{mpsc, oneshot};

use crate::blame;
use crate::execute::{Execute, Nested};
use crate::memory::{Memory, Output};
use crate::run_loop::{self, Census, Load, Message, Patron, Reply};
use crate::witness::Witness;

#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// How many limited steps run at a time; `None` is no limit.
    pub parallelism: Option<usize>,
}

/// Cheap to clone. The engine ends when the last clone and the last job are gone.
#[derive(Clone)]
pub struct Engine(Arc<Shared>);

struct Shared {
    messages: mpsc::UnboundedSender<Message>,
    numbers: AtomicU64,
    caches: Caches,
    root: Cancel,
    drain: Drain,
}

impl Engine {
    /// Must be called within a runtime.
    pub fn new(execute: Arc<dyn Execute>, caches: impl Into<Caches>, options: Options) -> Self {
        let (messages, inbox) = mpsc::unbounded_channel();
        let (caches, root, drain) = (caches.into(), Cancel::new(), Drain::new());
        let memory = Memory { caches: caches.clone(), execute };
        // The loop holds no strong sender, so that it ends with its users.
        let state = run_loop::Loop::new(memory, options, messages.downgrade(), root.clone(), drain.clone());
        task::spawn("engine", state.run(inbox));
        Self(Arc::new(Shared { messages, numbers: AtomicU64::new(0), caches, root, drain }))
    }

    /// A new job. Its graphs share what they have in common with those of other jobs. What it waits for fails when `cancel` is cancelled.
    pub fn job(&self, id: &str, sink: Arc<dyn Sink>, sessions: Group, cancel: Cancel) -> Job {
        self.open(id, sink, Patron { sessions, pins: Pins::default(), nested: None }, cancel)
    }

    /// [`Engine::job`], for a build whose steps may bring graphs of their own.
    pub fn job_with(&self, id: &str, sink: Arc<dyn Sink>, sessions: Group, nested: Arc<dyn Nested>, cancel: Cancel) -> Job {
        self.open(id, sink, Patron { sessions, pins: Pins::default(), nested: Some(nested) }, cancel)
    }

    fn open(&self, id: &str, sink: Arc<dyn Sink>, patron: Patron, cancel: Cancel) -> Job {
        let number = JobId(self.number());
        tracing::debug!(job = id, number = number.0, "job opened");
        Job(Arc::new(Member { engine: self.clone(), number, sink, patron, cancel }))
    }

    /// Where imported caches are added, to be named in [`Job::load_with`].
    pub fn caches(&self) -> &Caches {
        &self.0.caches
    }

    /// Announces a cache that graphs may name before it has been read: what does not depend on it goes on meanwhile. [`Engine::arrived`] has to
    /// follow, and [`Engine::dismiss`] once no graph will name it any more.
    pub fn expect(&self) -> CacheId {
        let cache = self.0.caches.reserve();
        self.send(Message::Expect(cache));
        cache
    }

    /// The announced cache is here, as these of [`Engine::caches`]; none if it could not be had.
    pub fn arrived(&self, cache: CacheId, found: BTreeSet<CacheId>) {
        self.send(Message::Arrived { cache, found });
    }

    pub fn dismiss(&self, cache: CacheId) {
        self.send(Message::Dismiss(cache));
    }

    /// How much is held now.
    pub async fn census(&self) -> Census {
        let (reply, answer) = oneshot::channel();
        self.send(Message::Count(reply));
        answer.await.unwrap_or_default()
    }

    /// Cancels all work and waits for its end. Jobs that still wait are answered with the reason.
    pub async fn shutdown(&self, reason: &str) {
        self.0.root.cancel(reason);
        self.0.drain.wait().await;
    }

    fn number(&self) -> u64 {
        self.0.numbers.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn send(&self, message: Message) {
        // The loop ends only once nobody could send.
        let _ = self.0.messages.send(message);
    }
}

/// One build's interest in vertices. When the last handle of it and of its refs is gone, what only it wanted is cancelled and forgotten.
#[derive(Clone)]
pub struct Job(Arc<Member>);

struct Member {
    engine: Engine,
    number: JobId,
    sink: Arc<dyn Sink>,
    patron: Patron,
    cancel: Cancel,
}

impl Job {
    /// What names stand for in this job.
    pub fn pins(&self) -> &Pins {
        &self.0.patron.pins
    }

    /// Has a witness told of what runs for the job from here on.
    pub fn tell(&self, witness: Arc<dyn Witness>) {
        self.0.engine.send(Message::Tell { job: self.0.number, witness });
    }

    /// Shows the vertices of a graph before anything runs. [`Job::load`] does that too.
    pub fn announce(&self, graph: &Graph) {
        for vertex in &graph.vertices {
            self.0.sink.emit(Update::Announced(shown(graph, vertex)));
        }
    }

    /// Adds a graph to the job. Nothing runs until something of it is wanted.
    pub fn load(&self, graph: Arc<Graph>) -> Ref {
        self.load_with(graph, BTreeSet::new())
    }

    /// [`Job::load`], for a graph whose vertices may use these imported caches, which may be on their way ([`Engine::expect`]).
    pub fn load_with(&self, graph: Arc<Graph>, caches: BTreeSet<CacheId>) -> Ref {
        self.announce(&graph);
        let number = self.0.engine.number();
        let Member { number: job, sink, patron, .. } = &*self.0;
        let load = Load { job: *job, number, graph: graph.clone(), caches, sink: sink.clone(), patron: patron.clone() };
        self.0.engine.send(Message::Load(load));
        Ref(Arc::new(Loaded { job: self.clone(), number, graph }))
    }

    /// What there is by now of what this job's vertices give, by vertex and output. Nothing is run or fetched for it.
    pub async fn outputs(&self) -> Result<Vec<(Digest, u32, Option<Layer>)>> {
        let (reply, answer) = oneshot::channel();
        self.0.engine.send(Message::Outputs { job: self.0.number, reply });
        self.0.cancel.run(async { answer.await.map_err(|_| Fault::internal("the engine has ended")) }).await
    }

    /// Has the graph's result made, or found in a cache. Dropping the future gives the wish up. Several graphs may be built at once.
    pub async fn build(&self, graph: Arc<Graph>) -> Result<Built> {
        self.load(graph).result().await
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.engine.send(Message::Leave(self.number));
    }
}

/// A graph of a job, whose result comes into being when it is asked for. Clones are the same.
#[derive(Clone)]
pub struct Ref(Arc<Loaded>);

struct Loaded {
    job: Job,
    number: u64,
    graph: Arc<Graph>,
}

/// A result.
#[derive(Clone, Debug)]
pub struct Built {
    /// `None` is scratch. A layer from a cache may be a lazy one.
    pub layer: Option<Layer>,
    /// What the result is known by in caches; empty for scratch.
    pub keys: Vec<Key>,
}

impl Ref {
    pub fn graph(&self) -> &Arc<Graph> {
        &self.0.graph
    }

    pub fn job(&self) -> &Job {
        &self.0.job
    }

    /// The result, from a cache or from a run. Dropping the future gives the wish up; asking again is cheap.
    pub async fn result(&self) -> Result<Built> {
        let Answer { keys, result } = self.ask(Want::Result).await?;
        Ok(Built { layer: result.flatten(), keys })
    }

    /// What the result is known by, as far as that can be told without running what makes it; inputs may run. Empty if nothing can be told.
    pub async fn keys(&self) -> Result<Vec<Key>> {
        Ok(self.ask(Want::Keys).await?.keys)
    }

    async fn ask(&self, want: Want) -> Result<Answer<Output>> {
        if self.0.graph.result.is_none() {
            return Ok(Answer { keys: Vec::new(), result: Some(None) });
        }
        let member = &self.0.job.0;
        let (reply, answer) = oneshot::channel::<Reply>();
        let request = RequestId(member.engine.number());
        member.engine.send(Message::Want { load: self.0.number, request, want, reply });
        let _release = Release { engine: &member.engine, request };
        let outcome = until(&member.cancel, answer).await?;
        outcome.map_err(|failure| blame::for_client(failure.fault, &self.0.graph))
    }
}

async fn until(cancel: &Cancel, answer: impl Future<Output = std::result::Result<Reply, oneshot::error::RecvError>>) -> Result<Reply> {
    cancel.run(async { answer.await.map_err(|_| Fault::internal("the engine has ended")) }).await
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.job.0.engine.send(Message::Unload(self.number));
    }
}

/// Gives a wish up, if it is not fulfilled.
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
        group: group.map(|g| progress::Group { id: g.id.clone(), name: g.name.clone(), weak: g.weak }),
    }
}
