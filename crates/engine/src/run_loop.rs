//! The task that owns the solver: messages in, commands run, ends reported back.
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use cache::Caches;
use fault::{Detail, Fault, Kind};
use layers::Layer;
use llb::{Edge, Graph, Vertex};
use progress::{Reporter, Sink, Update};
use session::Group;
use solver::{
    Command, Event, InputMap, JobId, Limits, MissingOutput, Outcome, Progress, RequestId, Solver, Spec, TaskId, VertexId, Want,
};
use task::Cancel;
use tokio::sync::{mpsc, oneshot};

use crate::execute::{Context, Execute};
use crate::fan::Fan;
use crate::job::{Built, Options};
use crate::memory::Memory;

/// A failure as the solver shares it.
#[derive(Clone, Debug)]
pub struct Failure(pub Fault);

impl From<MissingOutput> for Failure {
    fn from(error: MissingOutput) -> Self {
        Self(Fault::of(Kind::Internal, error))
    }
}

type Output = Option<Layer>;

pub enum Message {
    Build {
        job: JobId,
        request: RequestId,
        graph: Arc<Graph>,
        result: Edge,
        sink: Arc<dyn Sink>,
        sessions: Group,
        reply: oneshot::Sender<Result<Built, Failure>>,
    },
    Release(RequestId),
    Leave(JobId),
    Ended { task: TaskId, outcome: Outcome<Output, Failure> },
}

/// A vertex that the solver holds.
struct Held {
    vertex: Arc<Vertex>,
    fan: Arc<Fan>,
    /// The sessions of all jobs that hold it.
    sessions: Group,
}

struct Loop {
    execute: Arc<dyn Execute>,
    solver: Solver<Memory, Failure>,
    vertices: HashMap<VertexId, Held>,
    /// The sessions that each job brought.
    jobs: HashMap<JobId, Vec<String>>,
    running: HashMap<TaskId, Cancel>,
    replies: HashMap<RequestId, oneshot::Sender<Result<Built, Failure>>>,
    messages: mpsc::WeakUnboundedSender<Message>,
}

pub async fn run(
    execute: Arc<dyn Execute>,
    caches: Caches,
    options: Options,
    mut inbox: mpsc::UnboundedReceiver<Message>,
    messages: mpsc::WeakUnboundedSender<Message>,
) {
    let solver = Solver::new(Memory { caches, execute: execute.clone() }, Limits { runs: options.parallelism });
    let mut state = Loop {
        execute,
        solver,
        vertices: HashMap::new(),
        jobs: HashMap::new(),
        running: HashMap::new(),
        replies: HashMap::new(),
        messages,
    };
    while let Some(message) = inbox.recv().await {
        state.take(message);
    }
    for cancel in state.running.values() {
        cancel.cancel("the daemon is stopping");
    }
}

impl Loop {
    fn take(&mut self, message: Message) {
        match message {
            Message::Build { job, request, graph, result, sink, sessions, reply } => {
                let Some(at) = graph.vertices.iter().position(|v| v.digest == result.vertex) else {
                    let fault = Fault::invalid(format!("invalid missing input digest {}", result.vertex));
                    let _ = reply.send(Err(Failure(fault)));
                    return;
                };
                let ids = self.load(job, &graph, &sink, &sessions);
                self.replies.insert(request, reply);
                self.apply(Event::Want { request, job, vertex: ids[at], output: result.output, want: Want::Result });
            }
            Message::Release(request) => {
                self.replies.remove(&request);
                self.apply(Event::Release(request));
            }
            Message::Leave(job) => self.leave(job),
            Message::Ended { task, outcome } => {
                self.running.remove(&task);
                self.apply(Event::Ended { task, outcome });
            }
        }
    }

    fn load(&mut self, job: JobId, graph: &Graph, sink: &Arc<dyn Sink>, sessions: &Group) -> Vec<VertexId> {
        let positions: HashMap<_, _> = graph.vertices.iter().enumerate().map(|(at, v)| (&v.digest, at)).collect();
        let spec = |vertex: &Vertex| Spec {
            digest: vertex.digest.clone(),
            inputs: vertex.inputs.iter().map(|edge| (positions[&edge.vertex], edge.output)).collect(),
            ignore_cache: vertex.metadata.ignore_cache,
            limited: self.execute.is_limited(vertex),
            export: vertex.metadata.export_cache,
            caches: Default::default(),
        };
        let specs: Vec<Spec> = graph.vertices.iter().map(spec).collect();
        let ids = self.solver.load(job, &specs);
        let brought = sessions.all();
        self.jobs.entry(job).or_default().extend(brought.iter().map(|s| s.id().to_owned()));
        for (id, vertex) in ids.iter().zip(&graph.vertices) {
            let held = self.vertices.entry(*id).or_insert_with(|| Held {
                vertex: Arc::new(vertex.clone()),
                fan: Arc::default(),
                sessions: Group::default(),
            });
            brought.iter().for_each(|session| held.sessions.add(session.clone()));
            held.fan.join(job, sink.clone(), graph.original(&vertex.digest).clone());
        }
        ids
    }

    fn leave(&mut self, job: JobId) {
        let gone = self.jobs.remove(&job).unwrap_or_default();
        let kept: Vec<&String> = self.jobs.values().flatten().collect();
        let gone: Vec<&String> = gone.iter().filter(|id| !kept.contains(id)).collect();
        for id in self.solver.held_by(job) {
            if let Some(held) = self.vertices.get(&id) {
                held.fan.leave(job);
                gone.iter().for_each(|session| held.sessions.remove(session));
            }
        }
        self.apply(Event::Leave(job));
    }

    /// Feeds the solver and runs what it says. Loads are done at once and fed back, so that a cached graph costs one round.
    fn apply(&mut self, event: Event<Output, Failure>) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for command in self.solver.apply(event) {
                if let Some(event) = self.obey(command) {
                    events.push_back(event);
                }
            }
        }
    }

    fn obey(&mut self, command: Command<Output, Failure>) -> Option<Event<Output, Failure>> {
        match command {
            Command::Map { task, vertex, index } => {
                let (execute, vertex, context) = self.begin(task, vertex);
                self.spawn(task, context.cancel.clone(), &vertex.clone(), async move {
                    let map = execute.cache_map(&vertex, index, &context).await?;
                    let inputs = map.inputs.into_iter().map(|i| InputMap { selector: i.selector, content: i.content, prepare: false });
                    Ok(Outcome::Mapped(solver::CacheMap { digest: map.digest, inputs: inputs.collect(), more: map.more }))
                });
                None
            }
            Command::Inspect { task, vertex, input, result, content } => {
                let (execute, vertex, context) = self.begin(task, vertex);
                self.spawn(task, context.cancel.clone(), &vertex.clone(), async move {
                    if !content {
                        return Ok(Outcome::Inspected(None));
                    }
                    Ok(Outcome::Inspected(Some(execute.content_digest(&vertex, input, result.as_ref(), &context).await?)))
                });
                None
            }
            Command::Run { task, vertex, inputs } => {
                let (execute, vertex, context) = self.begin(task, vertex);
                self.spawn(task, context.cancel.clone(), &vertex.clone(), async move {
                    Ok(Outcome::Ran(execute.run(&vertex, inputs, &context).await?))
                });
                None
            }
            Command::Load { task, record, .. } => {
                let found = match record.id.as_str() {
                    "" => Some(None),
                    id => id.parse().ok().and_then(|id| self.execute.load(&id)).map(Some),
                };
                Some(Event::Ended { task, outcome: Outcome::Loaded(found) })
            }
            Command::Cancel(task) => {
                if let Some(cancel) = self.running.get(&task) {
                    cancel.cancel("context canceled");
                }
                None
            }
            Command::Progress { vertex, progress } => {
                self.report(vertex, progress);
                None
            }
            Command::Answer { request, answer } => {
                if let Some(reply) = self.replies.remove(&request) {
                    let built = answer.map(|a| Built { layer: a.result.flatten(), keys: a.keys });
                    let _ = reply.send(built);
                }
                None
            }
            Command::Forget(vertex) => {
                self.vertices.remove(&vertex);
                None
            }
        }
    }

    fn begin(&mut self, task: TaskId, id: VertexId) -> (Arc<dyn Execute>, Arc<Vertex>, Context) {
        let held = self.vertices.get(&id).expect("the solver works on vertices that were loaded and not forgotten");
        let cancel = Cancel::new();
        self.running.insert(task, cancel.clone());
        let reporter = Reporter::new(held.fan.clone(), held.vertex.digest.clone());
        let context = Context { cancel, reporter, sessions: held.sessions.clone() };
        (self.execute.clone(), held.vertex.clone(), context)
    }

    fn spawn(
        &self,
        task: TaskId,
        cancel: Cancel,
        vertex: &Vertex,
        work: impl Future<Output = fault::Result<Outcome<Output, Failure>>> + Send + 'static,
    ) {
        let (messages, digest) = (self.messages.clone(), vertex.digest.to_string());
        // A task of its own inside, so that a panic becomes a failure of the step and not a build that hangs.
        let inner = task::spawn("step", work);
        task::spawn("step end", async move {
            let outcome = match inner.join().await.and_then(|outcome| outcome) {
                Ok(outcome) => outcome,
                Err(_) if cancel.is_cancelled() => Outcome::Canceled,
                Err(fault) => Outcome::Failed(Failure(fault.with_detail(Detail::Vertex { digest }))),
            };
            if let Some(messages) = messages.upgrade() {
                let _ = messages.send(Message::Ended { task, outcome });
            }
        });
    }

    fn report(&self, id: VertexId, progress: Progress<Failure>) {
        let Some(held) = self.vertices.get(&id) else { return };
        let vertex = held.vertex.digest.clone();
        let completed = |cached, error| Update::Completed { vertex: vertex.clone(), cached, error };
        held.fan.emit(match progress {
            Progress::Started => Update::Started { vertex: vertex.clone() },
            Progress::Completed => completed(false, None),
            Progress::Cached => completed(true, None),
            Progress::Failed(Failure(fault)) => completed(false, Some(fault.to_string())),
            Progress::Canceled => completed(false, Some("context canceled".to_owned())),
        });
    }
}
