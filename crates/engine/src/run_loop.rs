//! The task that owns the solver: messages in, commands run, ends reported back.
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use fault::Fault;
use layers::{PinGroup, Pins};
use llb::{Graph, Vertex};
use oci::Digest;
use progress::{Reporter, Sink, Update};
use session::Group;
use solver::{
    Answer, CacheId, Command, Event, InputMap, JobId, Key, Limits, Outcome, Progress, ReachedInput, Record, RequestId, Solver, Spec,
    Store as _, TaskId, VertexId, Want,
};
use task::{Cancel, Drain};
use tokio::sync::{mpsc, oneshot};

use crate::blame::Failure;
use crate::execute::{CacheMap, Context, Nested};
use crate::fan::Fan;
use crate::job::Options;
use crate::memory::{Memory, Output};
use crate::witness::{Ran, RanInput, Witness};
use crate::work::{Stop, Work};

pub(crate) type Reply = Result<Answer<Output>, Failure>;

pub(crate) enum Message {
    Load(Load),
    Unload(u64),
    Want { load: u64, request: RequestId, want: Want, reply: oneshot::Sender<Reply> },
    Release(RequestId),
    Outputs { job: JobId, reply: oneshot::Sender<Vec<(Digest, u32, Output)>> },
    Tell { job: JobId, witness: Arc<dyn Witness> },
    Leave(JobId),
    Expect(CacheId),
    Arrived { cache: CacheId, found: BTreeSet<CacheId> },
    Dismiss(CacheId),
    Ended { task: TaskId, outcome: Result<Outcome<Output, Failure>, Failure> },
    Count(oneshot::Sender<Census>),
}

/// How much an engine holds. All of it is zero once no job is left and what was cancelled has ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Census {
    pub jobs: usize,
    pub graphs: usize,
    /// Each counted once, however many jobs hold it.
    pub vertices: usize,
    /// Steps that run, and lesser work.
    pub tasks: usize,
    /// Who waits for a result.
    pub waiting: usize,
}

/// A graph on its way into a job.
pub(crate) struct Load {
    pub job: JobId,
    pub number: u64,
    pub graph: Arc<Graph>,
    pub caches: BTreeSet<CacheId>,
    pub sink: Arc<dyn Sink>,
    pub patron: Patron,
}

/// What a job lends to the work that it wants.
#[derive(Clone)]
pub(crate) struct Patron {
    pub sessions: Group,
    pub pins: Pins,
    pub nested: Option<Arc<dyn Nested>>,
}

/// A vertex that the solver holds.
struct Held {
    vertex: Arc<Vertex>,
    fan: Arc<Fan>,
    /// The sessions of all jobs that hold it.
    sessions: Group,
}

struct Running {
    cancel: Cancel,
    /// The solver said so; what ends for another reason has failed.
    was_cancelled: bool,
    /// What runs, for those who want to know once it has run.
    run: Option<(VertexId, Box<Ran>)>,
}

pub(crate) struct Loop {
    memory: Memory,
    solver: Solver<Memory, Failure>,
    vertices: HashMap<VertexId, Held>,
    /// What each load's result is.
    loads: HashMap<u64, (JobId, VertexId, u32)>,
    jobs: HashMap<JobId, Patron>,
    witnesses: HashMap<JobId, Arc<dyn Witness>>,
    running: HashMap<TaskId, Running>,
    replies: HashMap<RequestId, oneshot::Sender<Reply>>,
    messages: mpsc::WeakUnboundedSender<Message>,
    root: Cancel,
    drain: Drain,
}

impl Loop {
    pub fn new(memory: Memory, options: Options, messages: mpsc::WeakUnboundedSender<Message>, root: Cancel, drain: Drain) -> Self {
        Self {
            solver: Solver::new(memory.clone(), Limits { runs: options.parallelism }),
            memory,
            vertices: HashMap::new(),
            loads: HashMap::new(),
            jobs: HashMap::new(),
            witnesses: HashMap::new(),
            running: HashMap::new(),
            replies: HashMap::new(),
            messages,
            root,
            drain,
        }
    }

    pub async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Message>) {
        while let Some(message) = inbox.recv().await {
            self.take(message);
        }
        self.root.cancel("the daemon is stopping");
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Load(load) => self.load(load),
            Message::Unload(number) => _ = self.loads.remove(&number),
            Message::Want { load, request, want, reply } => self.want(load, request, want, reply),
            Message::Release(request) => {
                self.replies.remove(&request);
                self.apply(Event::Release(request));
            }
            Message::Outputs { job, reply } => {
                // Fails if nobody waits any more, which is as well.
                let _ = reply.send(self.outputs(job));
            }
            Message::Tell { job, witness } => _ = self.witnesses.insert(job, witness),
            Message::Leave(job) => self.leave(job),
            Message::Expect(cache) => self.solver.expect(cache),
            Message::Arrived { cache, found } => self.apply(Event::Arrived { cache, found }),
            Message::Dismiss(cache) => {
                // Should it not have arrived, nobody is to wait for it any more.
                self.apply(Event::Arrived { cache, found: BTreeSet::new() });
                self.solver.dismiss(cache);
            }
            // Fails if nobody waits any more, which is as well.
            Message::Count(reply) => _ = reply.send(self.census()),
            Message::Ended { task, outcome } => {
                let ended = self.running.remove(&task);
                let was_cancelled = ended.as_ref().is_some_and(|r| r.was_cancelled);
                if let Some((vertex, run)) = ended.and_then(|r| r.run).filter(|_| !was_cancelled) {
                    self.testify(vertex, Ran { succeeded: outcome.is_ok(), ..*run });
                }
                let outcome = match outcome {
                    Ok(outcome) => outcome,
                    Err(_) if was_cancelled => Outcome::Canceled,
                    Err(failure) => Outcome::Failed(failure),
                };
                self.apply(Event::Ended { task, outcome });
            }
        }
    }

    fn load(&mut self, load: Load) {
        let Load { job, number, graph, caches, sink, patron } = load;
        let positions = graph.index();
        let Some(result) = &graph.result else { return };
        let Some(at) = positions.get(&result.vertex).copied() else { return };
        let spec = |vertex: &Vertex| Spec {
            digest: vertex.digest.clone(),
            inputs: vertex.inputs.iter().map(|edge| (positions[&edge.vertex], edge.output)).collect(),
            ignore_cache: vertex.metadata.ignore_cache,
            limited: self.memory.execute.is_limited(vertex),
            export: vertex.metadata.export_cache,
            caches: caches.clone(),
        };
        let specs: Vec<Spec> = graph.vertices.iter().map(spec).collect();
        let ids = self.solver.load(job, &specs);
        self.loads.insert(number, (job, ids[at], result.output));
        for (id, vertex) in ids.iter().zip(&graph.vertices) {
            match self.vertices.get_mut(id) {
                Some(held) => relax(&mut held.vertex, vertex),
                None => {
                    let fan = Arc::new(Fan::new(vertex.digest.clone()));
                    self.vertices.insert(*id, Held { vertex: Arc::new(vertex.clone()), fan, sessions: Group::default() });
                }
            }
            self.vertices[id].fan.join(job, sink.clone(), graph.original(&vertex.digest).clone());
        }
        // Also for vertices that came with another job's graph: what this job shares may have been made from them.
        for held in self.solver.held_by(job).filter_map(|id| self.vertices.get(&id)) {
            if !held.fan.has(job) {
                held.fan.join(job, sink.clone(), held.vertex.digest.clone());
            }
            held.sessions.join(&patron.sessions);
        }
        self.jobs.insert(job, patron);
    }

    fn census(&self) -> Census {
        Census {
            jobs: self.jobs.len(),
            graphs: self.loads.len(),
            vertices: self.vertices.len().max(self.solver.len()),
            tasks: self.running.len(),
            waiting: self.replies.len(),
        }
    }

    fn want(&mut self, load: u64, request: RequestId, want: Want, reply: oneshot::Sender<Reply>) {
        let Some((job, vertex, output)) = self.loads.get(&load).copied() else {
            let fault = Fault::invalid("the graph's result is none of its vertices");
            let _ = reply.send(Err(Failure { shown: fault.to_string(), fault }));
            return;
        };
        self.replies.insert(request, reply);
        self.apply(Event::Want { request, job, vertex, output, want });
    }

    /// What there is by now of what a job's vertices give, be it only in the local cache.
    fn outputs(&self, job: JobId) -> Vec<(Digest, u32, Output)> {
        let local = BTreeSet::from([CacheId::LOCAL]);
        let recorded = |key: &Key| {
            let records = self.memory.records(&local, &key.id);
            records.iter().find_map(|record| self.memory.local(&record.id))
        };
        let mut found = Vec::new();
        for id in self.solver.held_by(job) {
            let Some(held) = self.vertices.get(&id) else { continue };
            for (output, result, keys) in self.solver.outputs(id) {
                let made = result.cloned().or_else(|| keys.iter().find_map(recorded));
                found.extend(made.map(|made| (held.vertex.digest.clone(), output, made)));
            }
        }
        found
    }

    fn leave(&mut self, job: JobId) {
        self.witnesses.remove(&job);
        let gone = self.jobs.remove(&job).map(|patron| patron.sessions.clone()).unwrap_or_default();
        for id in self.solver.held_by(job) {
            let Some(held) = self.vertices.get(&id) else { continue };
            held.fan.leave(job);
            let others = self.solver.jobs_of(id).filter_map(|other| self.jobs.get(&other));
            let staying: Vec<Group> = others.map(|patron| patron.sessions.clone()).collect();
            held.sessions.part(&gone, &staying);
        }
        self.loads.retain(|_, (owner, ..)| *owner != job);
        self.apply(Event::Leave(job));
    }

    /// Feeds the solver and runs what it says. Local results are loaded at once and fed back, so that a cached graph costs one round.
    fn apply(&mut self, event: Event<Output, Failure>) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for command in self.solver.apply(event) {
                events.extend(self.obey(command));
            }
        }
    }

    fn obey(&mut self, command: Command<Output, Failure>) -> Option<Event<Output, Failure>> {
        let execute = self.memory.execute.clone();
        match command {
            Command::Map { task, vertex, index } => {
                let (work, vertex, context) = self.begin(task, vertex, Stop::AtOnce, Some("failed to load cache key"));
                self.start(work, async move { Ok(Outcome::Mapped(mapped(execute.cache_map(&vertex, index, &context).await?))) });
            }
            Command::Inspect { task, vertex, input, result, content } => {
                let (work, vertex, context) = self.begin(task, vertex, Stop::AtOnce, Some("failed to compute cache key"));
                self.start(work, async move {
                    let digest = match content {
                        true => Some(execute.content_digest(&vertex, input, result.as_ref(), &context).await?),
                        false => None,
                    };
                    Ok(Outcome::Inspected(digest))
                });
            }
            Command::Run { task, vertex, inputs } => {
                let run = self.run_of(vertex, &inputs);
                let (work, vertex, context) = self.begin(task, vertex, Stop::Gracefully, None);
                if let Some(running) = self.running.get_mut(&task) {
                    running.run = run;
                }
                self.start(work, async move { Ok(Outcome::Ran(execute.run(&vertex, inputs, &context).await?)) });
            }
            Command::Load { task, vertex, record, .. } => return self.load_record(task, vertex, record),
            Command::Cancel(task) => {
                if let Some(running) = self.running.get_mut(&task) {
                    running.was_cancelled = true;
                    running.cancel.cancel("context canceled");
                }
            }
            Command::Progress { vertex, progress } => self.report(vertex, progress),
            Command::Answer { request, answer } => {
                if let Some(reply) = self.replies.remove(&request) {
                    // Fails if nobody waits any more, which is as well.
                    let _ = reply.send(answer);
                }
            }
            Command::Forget(vertex) => _ = self.vertices.remove(&vertex),
        }
        None
    }

    /// What a vertex is about to run as, if somebody wants to know.
    fn run_of(&self, id: VertexId, layers: &[Output]) -> Option<(VertexId, Box<Ran>)> {
        if self.witnesses.is_empty() {
            return None;
        }
        let reached = self.solver.reached(id)?;
        let input = |(input, layer): (ReachedInput, &Output)| {
            let ReachedInput { vertex, output, selector, keys, content, forced } = input;
            let vertex = self.vertices.get(&vertex)?.vertex.clone();
            Some(RanInput { vertex, output, selector, keys, content, forced, layer: layer.clone() })
        };
        let inputs = reached.inputs.into_iter().zip(layers).map(input).collect::<Option<_>>()?;
        let vertex = self.vertices.get(&id)?.vertex.clone();
        Some((id, Box::new(Ran { vertex, digest: reached.digest, ignore_cache: reached.ignore_cache, inputs, succeeded: false })))
    }

    fn testify(&self, vertex: VertexId, run: Ran) {
        let run = Arc::new(run);
        for witness in self.solver.jobs_of(vertex).filter_map(|job| self.witnesses.get(&job)) {
            witness.ran(&run);
        }
    }

    fn load_record(&mut self, task: TaskId, vertex: VertexId, record: Record) -> Option<Event<Output, Failure>> {
        if record.cache == CacheId::LOCAL {
            return Some(Event::Ended { task, outcome: Outcome::Loaded(self.memory.local(&record.id)) });
        }
        let Some(import) = self.memory.caches.import(record.cache) else {
            return Some(Event::Ended { task, outcome: Outcome::Loaded(None) });
        };
        let (work, _, context) = self.begin(task, vertex, Stop::AtOnce, Some("failed to load cache"));
        self.start(work, async move { Ok(Outcome::Loaded(import.load(&record.id, &context.sessions, &context.cancel).await?.map(Some))) });
        None
    }

    fn begin(&mut self, task: TaskId, id: VertexId, stop: Stop, doing: Option<&'static str>) -> (Work, Arc<Vertex>, Context) {
        let held = self.vertices.get(&id).expect("the solver works on vertices that were loaded and not forgotten");
        let cancel = self.root.child();
        self.running.insert(task, Running { cancel: cancel.clone(), was_cancelled: false, run: None });
        let digest = held.vertex.digest.clone();
        let reporter = Reporter::new(held.fan.clone(), digest.clone());
        let patrons: Vec<&Patron> = self.solver.jobs_of(id).filter_map(|job| self.jobs.get(&job)).collect();
        let context = Context {
            cancel: cancel.clone(),
            reporter,
            sessions: held.sessions.clone(),
            pins: PinGroup::new(patrons.iter().map(|patron| patron.pins.clone())),
            builders: patrons.iter().filter_map(|patron| patron.nested.clone()).collect(),
        };
        (Work { task, vertex: digest, cancel, stop, doing }, held.vertex.clone(), context)
    }

    fn start(&self, work: Work, future: impl Future<Output = fault::Result<Outcome<Output, Failure>>> + Send + 'static) {
        work.start(&self.drain, self.messages.clone(), future);
    }

    fn report(&self, id: VertexId, progress: Progress<Failure>) {
        let Some(held) = self.vertices.get(&id) else { return };
        let vertex = held.vertex.digest.clone();
        let completed = |cached, error| Update::Completed { vertex: vertex.clone(), cached, error };
        held.fan.emit(match progress {
            Progress::Started => Update::Started { vertex },
            Progress::Completed => completed(false, None),
            Progress::Cached => completed(true, None),
            Progress::Failed(failure) => completed(false, Some(failure.shown)),
            Progress::Canceled => completed(false, Some("context canceled".to_owned())),
        });
    }
}

fn mapped(map: CacheMap) -> solver::CacheMap {
    let input = |i: crate::InputMap| InputMap { selector: i.selector, content: i.content, prepare: false };
    solver::CacheMap { digest: map.digest, inputs: map.inputs.into_iter().map(input).collect(), more: map.more }
}

/// A vertex that several builds share is throttled by none of them more than by the others.
fn relax(held: &mut Arc<Vertex>, other: &Vertex) {
    if let (Some(a), Some(b)) = (&held.metadata.linux_resources, &other.metadata.linux_resources)
        && a != b
    {
        let relaxed = a.most_relaxed(b);
        Arc::make_mut(held).metadata.linux_resources = Some(relaxed);
    }
}
