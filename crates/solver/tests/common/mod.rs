//! A store in memory and a world that carries out the solver's commands, one at a time, in an order that the test chooses.
#![allow(dead_code)]
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use oci::Digest;
use solver::*;

/// What an op made. Two results with the same value are the same result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value(pub Digest);

pub fn digest(text: impl AsRef<[u8]>) -> Digest {
    Digest::of(text)
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure(pub String);

impl From<MissingOutput> for Failure {
    fn from(e: MissingOutput) -> Self {
        Failure(e.to_string())
    }
}

#[derive(Default)]
pub struct Memory {
    pub links: BTreeMap<(KeyId, Link), BTreeSet<KeyId>>,
    pub records: BTreeMap<KeyId, BTreeMap<String, i64>>,
    pub values: HashMap<String, Value>,
    pub clock: i64,
    pub writes: usize,
    /// The caches that were asked for records, each time.
    pub asked: Vec<BTreeSet<CacheId>>,
}

#[derive(Clone, Default)]
pub struct MemoryStore(pub Rc<RefCell<Memory>>);

impl Store for MemoryStore {
    type Result = Value;

    fn links(&self, _: &BTreeSet<CacheId>, from: &KeyId, link: &Link) -> Vec<Target> {
        let memory = self.0.borrow();
        let found = memory.links.get(&(from.clone(), link.clone()));
        found.into_iter().flatten().map(|id| Target { id: id.clone(), local: true }).collect()
    }

    fn records(&self, caches: &BTreeSet<CacheId>, key: &KeyId) -> Vec<Record> {
        self.0.borrow_mut().asked.push(caches.clone());
        let memory = self.0.borrow();
        let found = memory.records.get(key).into_iter().flatten();
        found.map(|(id, at)| Record { cache: CacheId::LOCAL, id: id.clone(), created_at: *at }).collect()
    }

    fn connect(&self, from: &KeyId, link: &Link, to: &KeyId) {
        let mut memory = self.0.borrow_mut();
        let is_new = memory.links.entry((from.clone(), link.clone())).or_default().insert(to.clone());
        memory.writes += usize::from(is_new);
    }

    fn save(&self, key: &KeyId, result: &Value, created_at: Option<i64>) {
        let mut memory = self.0.borrow_mut();
        memory.clock += 1;
        memory.writes += 1;
        let (id, at) = (format!("r{}", memory.clock), created_at.unwrap_or(memory.clock));
        memory.values.insert(id.clone(), result.clone());
        memory.records.entry(key.clone()).or_default().insert(id, at);
    }
}

/// What the world does for a vertex. Values follow from the op and the inputs' values alone, so that a wrong cache hit shows.
#[derive(Clone, Debug)]
pub struct Op {
    pub name: String,
    /// Cache maps; more than one only without inputs.
    pub maps: Vec<Digest>,
    pub content: Vec<bool>,
    pub selectors: Vec<Option<String>>,
    /// The value is that of the name alone, whatever the inputs are.
    pub constant: bool,
    pub fails: Option<Stage>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Map,
    Inspect,
    Run,
}

impl Op {
    pub fn new(name: &str, inputs: usize) -> Self {
        Op {
            name: name.into(),
            maps: vec![digest(format!("map {name}"))],
            content: vec![false; inputs],
            selectors: vec![None; inputs],
            constant: false,
            fails: None,
        }
    }

    pub fn content_of(&self, input: usize, value: &Value) -> Digest {
        digest(format!("content {:?} {}", self.selectors[input], value.0))
    }

    pub fn value(&self, output: u32, inputs: &[Value]) -> Value {
        let mut text = format!("value {} {output}", self.maps.last().unwrap());
        if !self.constant {
            for (i, input) in inputs.iter().enumerate() {
                let seen = if self.content[i] { self.content_of(i, input) } else { input.0.clone() };
                text.push_str(&format!(" {seen}"));
            }
        }
        Value(digest(text))
    }
}

pub struct World {
    pub solver: Solver<MemoryStore, Failure>,
    pub ops: HashMap<VertexId, Op>,
    pub pending: Vec<Pending>,
    pub answers: BTreeMap<RequestId, Result<Answer<Value>, Failure>>,
    pub progress: Vec<(String, Progress<Failure>)>,
    /// Names of vertices that ran to the end, in order.
    pub ran: Vec<String>,
    pub loaded: Vec<String>,
    pub log: Vec<String>,
    pub outputs: u32,
    /// Records that cannot be loaded.
    pub lose_records: bool,
    requests: u64,
}

pub struct Pending {
    pub task: TaskId,
    pub name: String,
    pub is_run: bool,
    pub vertex: VertexId,
    pub cancelled: bool,
    pub outcome: Outcome<Value, Failure>,
}

impl World {
    pub fn new(store: &MemoryStore, limits: Limits) -> Self {
        World {
            solver: Solver::new(store.clone(), limits),
            ops: HashMap::new(),
            pending: Vec::new(),
            answers: BTreeMap::new(),
            progress: Vec::new(),
            ran: Vec::new(),
            loaded: Vec::new(),
            log: Vec::new(),
            outputs: 1,
            lose_records: false,
            requests: 0,
        }
    }

    pub fn load(&mut self, job: u64, graph: &[(Spec, Op)]) -> Vec<VertexId> {
        let specs: Vec<Spec> = graph.iter().map(|(s, _)| s.clone()).collect();
        let ids = self.solver.load(JobId(job), &specs);
        for (id, (_, op)) in ids.iter().zip(graph) {
            self.ops.entry(*id).or_insert_with(|| op.clone());
        }
        ids
    }

    pub fn want(&mut self, job: u64, vertex: VertexId, want: Want) -> RequestId {
        self.want_output(job, vertex, 0, want)
    }

    pub fn want_output(&mut self, job: u64, vertex: VertexId, output: u32, want: Want) -> RequestId {
        self.requests += 1;
        let request = RequestId(self.requests);
        self.apply(Event::Want { request, job: JobId(job), vertex, output, want });
        request
    }

    pub fn apply(&mut self, event: Event<Value, Failure>) {
        for command in self.solver.apply(event) {
            self.obey(command);
        }
    }

    fn obey(&mut self, command: Command<Value, Failure>) {
        self.log.push(format!("{command:?}"));
        let failed = |op: &Op, stage| (op.fails == Some(stage)).then(|| Outcome::Failed(Failure(format!("{} failed", op.name))));
        let (task, vertex, outcome, is_run) = match command {
            Command::Map { task, vertex, index } => {
                let op = &self.ops[&vertex];
                let inputs = op.content.iter().zip(&op.selectors);
                let map = CacheMap {
                    digest: op.maps[index].clone(),
                    inputs: inputs.map(|(c, s)| InputMap { selector: s.as_ref().map(digest), content: *c, prepare: false }).collect(),
                    more: index + 1 < op.maps.len(),
                };
                (task, vertex, failed(op, Stage::Map).unwrap_or(Outcome::Mapped(map)), false)
            }
            Command::Inspect { task, vertex, input, result, content } => {
                let op = &self.ops[&vertex];
                let outcome = Outcome::Inspected(content.then(|| op.content_of(input, &result)));
                (task, vertex, failed(op, Stage::Inspect).unwrap_or(outcome), false)
            }
            Command::Load { task, vertex, record, .. } => {
                let value = if self.lose_records { None } else { self.solver.store().0.borrow().values.get(&record.id).cloned() };
                if value.is_some() {
                    self.loaded.push(self.ops[&vertex].name.clone());
                }
                (task, vertex, Outcome::Loaded(value), false)
            }
            Command::Run { task, vertex, inputs } => {
                let same = |p: &Pending| p.is_run && p.vertex == vertex;
                assert!(!self.pending.iter().any(same), "{} runs twice at once", self.ops[&vertex].name);
                let op = &self.ops[&vertex];
                let results = (0..self.outputs).map(|o| op.value(o, &inputs)).collect();
                (task, vertex, failed(op, Stage::Run).unwrap_or(Outcome::Ran(results)), true)
            }
            Command::Cancel(task) => {
                let pending = self.pending.iter_mut().find(|p| p.task == task).expect("only running tasks are cancelled");
                pending.cancelled = true;
                return;
            }
            Command::Progress { vertex, progress } => {
                self.progress.push((self.ops[&vertex].name.clone(), progress));
                return;
            }
            Command::Answer { request, answer } => {
                assert!(self.answers.insert(request, answer).is_none(), "a request is answered once");
                return;
            }
            Command::Forget(vertex) => {
                assert!(self.pending.iter().all(|p| p.vertex != vertex), "a vertex outlives its work");
                self.ops.remove(&vertex);
                return;
            }
        };
        let name = self.ops[&vertex].name.clone();
        self.pending.push(Pending { task, name, is_run, vertex, cancelled: false, outcome });
    }

    /// Ends one task; a cancelled one may still have ended well if `race` says so.
    pub fn end(&mut self, at: usize, race: bool) {
        let p = self.pending.remove(at);
        let outcome = if p.cancelled && !race { Outcome::Canceled } else { p.outcome };
        if p.is_run && matches!(outcome, Outcome::Ran(_)) {
            self.ran.push(p.name.clone());
        }
        self.apply(Event::Ended { task: p.task, outcome });
    }

    /// Ends tasks in the order they were started until none is left.
    pub fn finish(&mut self) {
        while !self.pending.is_empty() {
            self.end(0, false);
        }
    }

    /// Ends everything but runs.
    pub fn finish_but_runs(&mut self) {
        while let Some(at) = self.pending.iter().position(|p| !p.is_run) {
            self.end(at, false);
        }
    }

    pub fn value(&self, request: RequestId) -> Value {
        let answer = self.answers.get(&request).unwrap_or_else(|| panic!("no answer to {request:?}"));
        answer.as_ref().expect("not a failure").result.clone().expect("a result")
    }
}

pub fn spec(name: &str, inputs: &[(usize, u32)]) -> Spec {
    Spec {
        digest: digest(format!("vertex {name}")),
        inputs: inputs.to_vec(),
        ignore_cache: false,
        limited: true,
        export: None,
        caches: BTreeSet::new(),
    }
}
