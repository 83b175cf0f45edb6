//! What a user may watch of a build: a vertex announced, started, cached, done; byte progress; logs; warnings.
//!
//! Emitters hold a [`Reporter`], which is a vertex and somewhere to send [`Update`]s. This room has no clock: the receiver
//! of updates stamps them. Emitting never blocks and never fails; a slow or absent watcher is the receiver's matter.
use std::any::Any;
use std::sync::Arc;

use bytes::Bytes;
use oci::Digest;

/// A vertex as it is shown: announced once for each definition that holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vertex {
    pub digest: Digest,
    pub inputs: Vec<Digest>,
    pub name: String,
    pub group: Option<Group>,
}

/// Vertices shown as one. The group is done when its members that are not `weak` are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub id: String,
    pub name: String,
    pub weak: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// The vertex exists and may run.
    Announced(Vertex),
    Started {
        vertex: Digest,
    },
    /// Ends the interval that the last `Started` opened; a vertex may have several.
    Completed {
        vertex: Digest,
        cached: bool,
        error: Option<String>,
    },
    /// A row below a vertex, such as one download. `id` is unique within the vertex; the last update wins.
    Status {
        vertex: Digest,
        id: String,
        action: String,
        current: i64,
        total: i64,
        done: bool,
    },
    /// `stream` is 1 for stdout and 2 for stderr.
    Log {
        vertex: Digest,
        stream: u8,
        data: Bytes,
    },
    Warning(Warning),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    pub vertex: Digest,
    pub level: i64,
    pub short: Bytes,
    pub detail: Vec<Bytes>,
    pub url: String,
    pub source: Option<SourceRange>,
}

/// A place in a source file, with the file itself so that a client can print an excerpt. Lines count from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceRange {
    pub filename: String,
    pub language: String,
    pub data: Bytes,
    /// (first line, last line), both included.
    pub lines: Vec<(u32, u32)>,
}

/// Where updates go.
pub trait Sink: Any + Send + Sync {
    fn emit(&self, update: Update);

    /// Gives what a vertex has printed so far to a sink that comes later and calls it `name`. `false`: this sink does not have all of it.
    fn pass_on(&self, vertex: &Digest, to: &dyn Sink, name: &Digest) -> bool {
        let _ = (vertex, to, name);
        false
    }
}

/// A sink that drops everything.
pub struct Nowhere;

impl Sink for Nowhere {
    fn emit(&self, _: Update) {}
}

/// A handle for whoever works on one vertex.
#[derive(Clone)]
pub struct Reporter {
    sink: Arc<dyn Sink>,
    vertex: Digest,
}

impl Reporter {
    pub fn new(sink: Arc<dyn Sink>, vertex: Digest) -> Self {
        Self { sink, vertex }
    }

    /// A reporter nobody listens to.
    pub fn silent() -> Self {
        Self::new(Arc::new(Nowhere), Digest::of(b""))
    }

    pub fn vertex(&self) -> &Digest {
        &self.vertex
    }

    pub fn sink(&self) -> &Arc<dyn Sink> {
        &self.sink
    }

    pub fn log(&self, stream: u8, data: impl Into<Bytes>) {
        self.sink.emit(Update::Log { vertex: self.vertex.clone(), stream, data: data.into() });
    }

    /// Opens a row; it is marked done when the returned handle drops.
    pub fn row(&self, id: impl Into<String>, action: impl Into<String>, total: u64) -> Row {
        let row = Row { reporter: self.clone(), id: id.into(), action: action.into(), current: 0, total };
        row.emit(false);
        row
    }

    pub fn warn(&self, short: impl Into<Bytes>, detail: Vec<Bytes>) {
        let (short, vertex) = (short.into(), self.vertex.clone());
        self.sink.emit(Update::Warning(Warning { vertex, level: 1, short, detail, url: String::new(), source: None }));
    }
}

/// One row of byte progress. Callers need not limit how often they call [`Row::set`]: the receiver keeps the last value.
pub struct Row {
    reporter: Reporter,
    id: String,
    action: String,
    current: u64,
    total: u64,
}

impl Row {
    pub fn set(&mut self, current: u64) {
        self.current = current;
        self.emit(false);
    }

    pub fn set_total(&mut self, total: u64) {
        self.total = total;
    }

    pub fn add(&mut self, bytes: u64) {
        self.set(self.current + bytes);
    }

    fn emit(&self, done: bool) {
        self.reporter.sink.emit(Update::Status {
            vertex: self.reporter.vertex.clone(),
            id: self.id.clone(),
            action: self.action.clone(),
            current: self.current as i64,
            total: self.total as i64,
            done,
        });
    }
}

impl Drop for Row {
    fn drop(&mut self) {
        self.emit(true);
    }
}
