//! What goes into the solver and what comes out.
use std::collections::BTreeSet;

use oci::Digest;

use crate::key::{CacheId, Key, Record};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);
    };
}

id!(/// One build's interest in vertices. Chosen by the caller.
    JobId);
id!(/// One demand for one output. Chosen by the caller, never used twice.
    RequestId);
id!(/// A piece of work that the solver started. Never used twice.
    TaskId);
id!(/// A vertex as shared by all jobs that hold it. Not used again until [`Command::Forget`] named it.
    VertexId);

/// A vertex of a job's graph, as it is given to [`crate::Solver::load`].
#[derive(Clone, Debug)]
pub struct Spec {
    pub digest: Digest,
    /// Position in the same list, which comes first, and output.
    pub inputs: Vec<(usize, u32)>,
    pub ignore_cache: bool,
    /// Whether its run counts against [`crate::Limits::runs`].
    pub limited: bool,
    pub export: Option<bool>,
    /// Looked into beside the local cache. Those that are expected ([`crate::Solver::expect`]) are waited for before anything is looked up.
    pub caches: BTreeSet<CacheId>,
}

/// How much is wanted of an output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Want {
    #[default]
    Nothing,
    /// Keys that definitions give, without running anything.
    Definition,
    /// All keys that can be had without running this vertex itself.
    Keys,
    Result,
}

#[derive(Clone, Debug)]
pub enum Event<R, F> {
    Want {
        request: RequestId,
        job: JobId,
        vertex: VertexId,
        output: u32,
        want: Want,
    },
    /// A request's answer is not of interest any more.
    Release(RequestId),
    /// The job holds none of its vertices any more. Its requests are released.
    Leave(JobId),
    Ended {
        task: TaskId,
        outcome: Outcome<R, F>,
    },
    /// A cache that was expected is here, as those in `found`; none if it could not be had.
    Arrived {
        cache: CacheId,
        found: BTreeSet<CacheId>,
    },
}

/// How a task ended.
#[derive(Clone, Debug)]
pub enum Outcome<R, F> {
    Mapped(CacheMap),
    /// The content digest, if it was asked for.
    Inspected(Option<Digest>),
    /// `None`: the record's result could not be had.
    Loaded(Option<R>),
    /// One for each output.
    Ran(Vec<R>),
    Failed(F),
    /// Ended because of [`Command::Cancel`], not by itself.
    Canceled,
}

/// How a vertex may use the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheMap {
    pub digest: Digest,
    /// One for each input.
    pub inputs: Vec<InputMap>,
    /// A vertex without inputs may have a further map.
    pub more: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InputMap {
    pub selector: Option<Digest>,
    /// The input's content may stand for its definition.
    pub content: bool,
    /// The input's result is to be made ready before the vertex runs.
    pub prepare: bool,
}

#[derive(Clone, Debug)]
pub enum Command<R, F> {
    /// Compute the `index`th cache map. Ends with [`Outcome::Mapped`].
    Map {
        task: TaskId,
        vertex: VertexId,
        index: usize,
    },
    /// Make an input ready and, if `content` is set, digest what the vertex uses of it. Ends with [`Outcome::Inspected`].
    Inspect {
        task: TaskId,
        vertex: VertexId,
        input: usize,
        result: R,
        content: bool,
    },
    /// Ends with [`Outcome::Loaded`].
    Load {
        task: TaskId,
        vertex: VertexId,
        output: u32,
        record: Record,
    },
    /// Ends with [`Outcome::Ran`].
    Run {
        task: TaskId,
        vertex: VertexId,
        inputs: Vec<R>,
    },
    /// The task's end must be reported nevertheless; whatever outcome it has then is taken.
    Cancel(TaskId),
    Progress {
        vertex: VertexId,
        progress: Progress<F>,
    },
    /// The answer to a request.
    Answer {
        request: RequestId,
        answer: Result<Answer<R>, F>,
    },
    /// The vertex is no more.
    Forget(VertexId),
}

#[derive(Clone, Debug)]
pub struct Answer<R> {
    pub keys: Vec<Key>,
    /// Set if it was wanted, or is there anyway.
    pub result: Option<R>,
}

/// What watchers of a vertex see. Every `Started` is followed by one of the others before the next.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress<F> {
    Started,
    Completed,
    Cached,
    Failed(F),
    Canceled,
}

/// An op gave fewer results than it has outputs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid response from exec need {output} index but {results} results received")]
pub struct MissingOutput {
    pub output: u32,
    pub results: usize,
}
