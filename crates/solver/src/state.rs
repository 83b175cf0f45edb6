//! What the solver keeps of vertices and their outputs.
use std::collections::{BTreeMap, BTreeSet};

use oci::Digest;

use crate::event::{CacheMap, JobId, RequestId, TaskId, VertexId, Want};
use crate::key::{CacheId, Key, KeyId, Record};

/// One output of a vertex; an index into the solver's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct EdgeId(pub u64);

/// Who wants something of an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Demander {
    Request(RequestId),
    /// The user's edge and which of its inputs this is.
    Edge(EdgeId, u32),
}

/// A piece of work of which at most one runs at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Slot {
    #[default]
    Idle,
    Running(TaskId),
    /// Told to stop and not ended yet. Wanted again, it is waited for, then started anew unless it did end well.
    Stopping,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Map,
    Inspect(usize),
    Load(EdgeId),
    Run,
}

pub(crate) struct Vertex<R, F> {
    pub digest: Digest,
    pub ignore_cache: bool,
    pub limited: bool,
    pub export: Option<bool>,
    pub caches: BTreeSet<CacheId>,
    /// Those of `caches` that are still on their way. Until they are here nothing is looked up, loaded or run; what comes before that goes on.
    pub awaits: BTreeSet<CacheId>,
    pub inputs: std::sync::Arc<[EdgeId]>,
    pub jobs: BTreeSet<JobId>,
    /// How often this vertex is an input of another.
    pub users: usize,
    pub edges: BTreeMap<u32, EdgeId>,
    /// The cache maps so far.
    pub maps: Vec<CacheMap>,
    pub mapping: Slot,
    pub inspections: Vec<Inspection>,
    pub run: Run<R>,
    /// Stays until no job holds the vertex.
    pub failure: Option<F>,
    /// What this vertex is about to run as; vertices of other digests that would run as the same wait for it.
    pub running_as: Option<KeyId>,
    /// Started and not ended for watchers.
    pub intervals: usize,
}

#[derive(Default)]
pub(crate) struct Inspection {
    pub slot: Slot,
    pub done: bool,
    pub content: Option<Key>,
}

pub(crate) enum Run<R> {
    Idle,
    /// Waits for one of the places that [`crate::Limits::runs`] grants.
    Queued,
    Active(TaskId),
    Stopping,
    Done(Vec<R>),
}

impl<R, F> Vertex<R, F> {
    pub fn map(&self) -> Option<&CacheMap> {
        self.maps.last()
    }

    pub fn all_mapped(&self) -> bool {
        self.map().is_some_and(|m| !m.more || !self.inputs.is_empty())
    }

    pub fn is_idle(&self) -> bool {
        self.mapping == Slot::Idle && self.inspections.iter().all(|i| i.slot == Slot::Idle) && matches!(self.run, Run::Idle | Run::Done(_))
    }
}

/// How far the search for an edge's keys has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    #[default]
    Open,
    /// Definitions give no more keys.
    Definition,
    /// Nothing short of running the vertex gives more keys, or a record is known already.
    Exhausted,
}

pub(crate) struct Edge<R> {
    pub vertex: VertexId,
    pub output: u32,
    pub demands: BTreeMap<Demander, Want>,
    /// How many demands there are for each [`Want`].
    pub counts: [usize; 4],
    pub inputs: Vec<Input>,
    /// Inputs to look at again.
    pub changed: Vec<u32>,
    /// All of `inputs` summed up.
    pub tally: Tally,
    pub mode: Mode,
    /// Keys that users may look for their own results by.
    pub keys: Vec<Key>,
    /// Keys that users' results are saved under; all of `keys` and, where the vertex was forced to run, that of the run.
    pub known_by: Vec<Key>,
    /// Some input's targets grew since they were intersected.
    pub has_new_targets: bool,
    /// How many cache maps of a vertex without inputs became keys.
    pub maps_seen: usize,
    /// How many of `keys` were looked up for records: that is left until a record could be used.
    pub looked_up: usize,
    /// Results that may be loaded, with the position of their key.
    pub records: Vec<(Record, usize)>,
    /// Records that turned out to be gone.
    pub lost: BTreeSet<Record>,
    pub loading: Slot,
    pub loads: Option<(Record, usize)>,
    pub phase: Phase,
    pub wants_run: bool,
    pub result: Option<R>,
    /// Users were told of the result or failure.
    pub is_settled: bool,
    pub is_queued: bool,
}

/// What an edge wants of its inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    #[default]
    Nothing,
    Definition,
    /// More keys of those that may have some; only of those without a match as long as there are such.
    Search {
        unmatched_only: bool,
    },
    Result,
}

/// How far one input has come, for one edge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    pub is_defined: bool,
    /// Some key of ours is known to follow from it.
    pub is_matched: bool,
    /// It may give more keys without running what is not needed otherwise.
    pub is_open: bool,
    /// Its own search for keys has ended.
    pub is_exhausted: bool,
    /// The vertex could run as far as this input goes.
    pub is_ready: bool,
}

/// How many inputs are as the names say. Kept up to date input by input: an edge may have thousands.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub undefined: usize,
    pub unmatched: usize,
    pub open: usize,
    pub hopeless: usize,
    pub unready: usize,
}

impl Tally {
    pub fn count(&mut self, flags: Flags, by: isize) {
        let add = |n: &mut usize, is: bool| *n = n.wrapping_add_signed(if is { by } else { 0 });
        add(&mut self.undefined, !flags.is_defined);
        add(&mut self.unmatched, !flags.is_matched);
        add(&mut self.open, flags.is_open);
        add(&mut self.hopeless, !flags.is_matched && !flags.is_open);
        add(&mut self.unready, !flags.is_ready);
    }
}

/// What an edge knows of one of its inputs.
#[derive(Default)]
pub(crate) struct Input {
    /// As counted in [`Edge::tally`]; `None` before the first look.
    pub flags: Option<Flags>,
    pub demand: Want,
    /// How many of the input's keys were looked up.
    pub seen: usize,
    pub content_seen: bool,
    /// Keys of ours that the input's keys lead to; whether the local cache says so.
    pub targets: BTreeMap<KeyId, bool>,
}

impl<R> Edge<R> {
    pub fn new(vertex: VertexId, output: u32, inputs: usize) -> Self {
        Self {
            vertex,
            output,
            demands: BTreeMap::new(),
            counts: [0; 4],
            inputs: (0..inputs).map(|_| Input::default()).collect(),
            changed: Vec::new(),
            tally: Tally::default(),
            mode: Mode::Nothing,
            keys: Vec::new(),
            known_by: Vec::new(),
            has_new_targets: false,
            maps_seen: 0,
            looked_up: 0,
            records: Vec::new(),
            lost: BTreeSet::new(),
            loading: Slot::Idle,
            loads: None,
            phase: Phase::Open,
            wants_run: false,
            result: None,
            is_settled: false,
            is_queued: false,
        }
    }

    pub fn want(&self) -> Want {
        match self.counts {
            [_, _, _, n] if n > 0 => Want::Result,
            [_, _, n, _] if n > 0 => Want::Keys,
            [_, n, _, _] if n > 0 => Want::Definition,
            _ => Want::Nothing,
        }
    }

    /// Whether the wish changed what is wanted in all.
    pub fn demand(&mut self, by: Demander, want: Want) -> bool {
        let before = self.want();
        let old = match want {
            Want::Nothing => self.demands.remove(&by),
            want => self.demands.insert(by, want),
        };
        if let Some(old) = old {
            self.counts[old as usize] -= 1;
        }
        self.counts[want as usize] += usize::from(want != Want::Nothing);
        self.want() != before
    }

    /// Adds a key unless it is known.
    pub fn learn(&mut self, key: Key) -> bool {
        let is_new = self.keys.iter().all(|k| k.id != key.id);
        if is_new {
            self.known_by.retain(|k| k.id != key.id);
            self.known_by.push(key.clone());
            self.keys.push(key);
        }
        is_new
    }

    pub fn is_exhausted(&self) -> bool {
        self.phase == Phase::Exhausted || self.result.is_some()
    }
}
