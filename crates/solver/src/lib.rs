//! Decides what runs: a synchronous state machine that knows no op, disk or clock.
//!
//! [`Solver::load`] takes a job's graph, [`Solver::apply`] takes an [`Event`] and gives the [`Command`]s that follow from it. Vertices with equal digests
//! are one, however many jobs hold them. An output is wanted by requests and by the vertices that use it; what is wanted is looked for
//! in this order: keys that definitions give, keys that the content of inputs gives, a recorded result, a run.
//!
//! Where to start: `search` is the heart, one function that moves one output on as far as what is known allows. `tasks` starts, stops and
//! ends work, `store` is what is remembered between builds as a trait, in [`key`].
//!
//! Invariants: the same events and the same store give the same commands; a vertex runs at most once at a time, and once in all unless it was cancelled;
//! nothing recurses over the graph; a cancelled task leaves no trace; work that nobody wants any more is told to stop.
mod arrival;
mod event;
pub mod key;
mod reached;
mod search;
mod state;
mod tasks;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use oci::Digest;

pub use event::*;
pub use key::{CacheId, Key, KeyId, Link, Record, Store, Target};
pub use reached::{Reached, ReachedInput};
use state::{Demander, Edge, EdgeId, Run, Slot, Vertex, Work};

#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// How many vertices with [`Spec::limited`] run at a time. `None` is no limit.
    pub runs: Option<usize>,
}

/// See the crate's documentation. `F` is a failure, which is shared by all that it reaches.
pub struct Solver<S: Store, F> {
    store: S,
    limits: Limits,
    vertices: HashMap<VertexId, Vertex<S::Result, F>>,
    edges: HashMap<EdgeId, Edge<S::Result>>,
    by_digest: HashMap<(Digest, bool), VertexId>,
    jobs: BTreeMap<JobId, BTreeSet<VertexId>>,
    requests: BTreeMap<RequestId, (JobId, EdgeId)>,
    tasks: HashMap<TaskId, (VertexId, Work)>,
    /// Edges to look at.
    queue: VecDeque<EdgeId>,
    /// Vertices that wait for a place to run.
    waiting: VecDeque<VertexId>,
    limited_runs: usize,
    /// Who runs as what, and who waits for that.
    running_as: HashMap<KeyId, Vec<VertexId>>,
    /// Vertices that may have lost their last job.
    leaving: Vec<VertexId>,
    /// Caches that were announced, and what came of them once they arrived.
    expected: BTreeMap<CacheId, Option<BTreeSet<CacheId>>>,
    next: u64,
    commands: Vec<Command<S::Result, F>>,
}

impl<S: Store, F: Clone + From<MissingOutput>> Solver<S, F> {
    pub fn new(store: S, limits: Limits) -> Self {
        Self {
            store,
            limits,
            vertices: HashMap::new(),
            edges: HashMap::new(),
            by_digest: HashMap::new(),
            jobs: BTreeMap::new(),
            requests: BTreeMap::new(),
            tasks: HashMap::new(),
            queue: VecDeque::new(),
            waiting: VecDeque::new(),
            limited_runs: 0,
            running_as: HashMap::new(),
            leaving: Vec::new(),
            expected: BTreeMap::new(),
            next: 0,
            commands: Vec::new(),
        }
    }

    pub fn store(&self) -> &S {
        &self.store
    }

    /// Number of vertices that are held.
    pub fn len(&self) -> usize {
        self.vertices.len()
    }

    pub fn is_empty(&self) -> bool {
        self.vertices.is_empty()
    }

    /// The jobs that hold a vertex.
    pub fn jobs_of(&self, vertex: VertexId) -> impl Iterator<Item = JobId> {
        self.vertices.get(&vertex).into_iter().flat_map(|v| v.jobs.iter().copied())
    }

    /// All vertices that a job holds; may be more than it loaded, because a vertex that was there before keeps the inputs it had.
    pub fn held_by(&self, job: JobId) -> impl Iterator<Item = VertexId> {
        self.jobs.get(&job).into_iter().flatten().copied()
    }

    /// What is known by now of each output of a vertex that is in use: its result, if it is here, and the keys that it is recorded under.
    pub fn outputs(&self, vertex: VertexId) -> impl Iterator<Item = (u32, Option<&S::Result>, &[Key])> {
        let edges = self.vertices.get(&vertex).into_iter().flat_map(|v| v.edges.iter());
        edges.filter_map(|(output, edge)| self.edges.get(edge).map(|e| (*output, e.result.as_ref(), e.known_by.as_slice())))
    }

    /// Adds a graph to a job, inputs before their users, and returns the vertices in the same order. Nothing runs until something is wanted.
    ///
    /// # Panics
    /// If an input does not come before its user.
    pub fn load(&mut self, job: JobId, graph: &[Spec]) -> Vec<VertexId> {
        let mut loaded: Vec<VertexId> = Vec::with_capacity(graph.len());
        for spec in graph {
            let inputs: Vec<(VertexId, u32)> = spec.inputs.iter().map(|(at, output)| (loaded[*at], *output)).collect();
            let id = match self.shared(spec) {
                Some(id) => {
                    let caches = self.arrived(&spec.caches);
                    self.vertex_mut(id).caches.extend(caches);
                    id
                }
                None => self.add(spec, &inputs),
            };
            self.hold(job, id);
            loaded.push(id);
        }
        loaded
    }

    /// A vertex that ignores the cache serves those that do not, not the other way round.
    fn shared(&self, spec: &Spec) -> Option<VertexId> {
        let find = |ignore_cache| self.by_digest.get(&(spec.digest.clone(), ignore_cache)).copied();
        find(true).or_else(|| if spec.ignore_cache { None } else { find(false) })
    }

    fn add(&mut self, spec: &Spec, inputs: &[(VertexId, u32)]) -> VertexId {
        let id = VertexId(self.number());
        inputs.iter().for_each(|(vertex, _)| self.vertex_mut(*vertex).users += 1);
        let inputs: Vec<EdgeId> = inputs.iter().map(|(vertex, output)| self.edge_of(*vertex, *output)).collect();
        let caches = self.arrived(&spec.caches);
        let vertex = Vertex {
            digest: spec.digest.clone(),
            ignore_cache: spec.ignore_cache,
            limited: spec.limited,
            export: spec.export,
            awaits: caches.iter().copied().filter(|cache| self.expected.contains_key(cache)).collect(),
            caches,
            inspections: inputs.iter().map(|_| Default::default()).collect(),
            inputs: inputs.into(),
            jobs: BTreeSet::new(),
            users: 0,
            edges: BTreeMap::new(),
            maps: Vec::new(),
            mapping: Default::default(),
            run: Run::Idle,
            failure: None,
            running_as: None,
            intervals: 0,
        };
        self.by_digest.insert((vertex.digest.clone(), vertex.ignore_cache), id);
        self.vertices.insert(id, vertex);
        id
    }

    /// A vertex's inputs are held by whoever holds it.
    fn hold(&mut self, job: JobId, id: VertexId) {
        let mut pending = vec![id];
        while let Some(id) = pending.pop() {
            if self.vertex_mut(id).jobs.insert(job) {
                self.jobs.entry(job).or_default().insert(id);
                pending.extend(self.vertices[&id].inputs.iter().map(|e| self.edges[e].vertex));
            }
        }
    }

    fn edge_of(&mut self, vertex: VertexId, output: u32) -> EdgeId {
        if let Some(edge) = self.vertices[&vertex].edges.get(&output) {
            return *edge;
        }
        let id = EdgeId(self.number());
        let inputs = self.vertices[&vertex].inputs.len();
        self.edges.insert(id, Edge::new(vertex, output, inputs));
        self.vertex_mut(vertex).edges.insert(output, id);
        id
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Takes one event and says what is to be done.
    pub fn apply(&mut self, event: Event<S::Result, F>) -> Vec<Command<S::Result, F>> {
        match event {
            Event::Want { request, job, vertex, output, want } => self.request(request, job, vertex, output, want),
            Event::Release(request) => self.release(request),
            Event::Leave(job) => self.leave(job),
            Event::Ended { task, outcome } => self.ended(task, outcome),
            Event::Arrived { cache, found } => self.cache_arrived(cache, &found),
        }
        while let Some(edge) = self.queue.pop_front() {
            if let Some(e) = self.edges.get_mut(&edge) {
                e.is_queued = false;
                self.advance(edge);
            }
        }
        self.forget();
        std::mem::take(&mut self.commands)
    }

    fn request(&mut self, request: RequestId, job: JobId, vertex: VertexId, output: u32, want: Want) {
        let edge = self.edge_of(vertex, output);
        self.requests.insert(request, (job, edge));
        self.edge_mut(edge).demand(Demander::Request(request), want);
        self.look_at(edge);
    }

    fn release(&mut self, request: RequestId) {
        if let Some((_, edge)) = self.requests.remove(&request) {
            self.edge_mut(edge).demand(Demander::Request(request), Want::Nothing);
            self.look_at(edge);
        }
    }

    fn leave(&mut self, job: JobId) {
        let requests: Vec<RequestId> = self.requests.iter().filter(|(_, (j, _))| *j == job).map(|(r, _)| *r).collect();
        requests.into_iter().for_each(|request| self.release(request));
        for id in self.jobs.remove(&job).into_iter().flatten() {
            let vertex = self.vertex_mut(id);
            vertex.jobs.remove(&job);
            if vertex.jobs.is_empty() {
                vertex.failure = None;
                let edges: Vec<EdgeId> = vertex.edges.values().copied().collect();
                edges.into_iter().for_each(|e| self.edge_mut(e).is_settled = false);
                self.leaving.push(id);
            }
        }
    }

    /// Drops vertices that no job holds and no other vertex has as its input, once their work has ended.
    fn forget(&mut self) {
        while let Some(id) = self.leaving.pop() {
            let Some(vertex) = self.vertices.get(&id) else { continue };
            let is_loading = vertex.edges.values().any(|e| self.edges[e].loading != Slot::Idle);
            if !vertex.jobs.is_empty() || vertex.users > 0 || !vertex.is_idle() || is_loading {
                continue; // comes here again when what it waits for has ended
            }
            let vertex = self.vertices.remove(&id).expect("it was there above");
            let place = (vertex.digest, vertex.ignore_cache);
            if self.by_digest.get(&place) == Some(&id) {
                self.by_digest.remove(&place);
            }
            vertex.edges.values().for_each(|e| _ = self.edges.remove(e));
            for input in vertex.inputs.iter() {
                let used = self.edges[input].vertex;
                self.vertex_mut(used).users -= 1;
                self.leaving.push(used);
            }
            self.commands.push(Command::Forget(id));
        }
    }

    fn look_at(&mut self, edge: EdgeId) {
        let e = self.edge_mut(edge);
        if !std::mem::replace(&mut e.is_queued, true) {
            self.queue.push_back(edge);
        }
    }

    fn look_at_all(&mut self, vertex: VertexId) {
        let edges: Vec<EdgeId> = self.vertices[&vertex].edges.values().copied().collect();
        edges.into_iter().for_each(|e| self.look_at(e));
    }

    fn vertex_mut(&mut self, id: VertexId) -> &mut Vertex<S::Result, F> {
        self.vertices.get_mut(&id).expect("a vertex is kept while somebody refers to it")
    }

    fn edge_mut(&mut self, id: EdgeId) -> &mut Edge<S::Result> {
        self.edges.get_mut(&id).expect("an edge is kept as long as its vertex")
    }
}
