//! What a build did when, as spans in the form that clients of the history read (that of the Go SDK's span stubs).
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use oci::{Digest, Timestamp};
use serde_json::{Value, json};

use crate::history::Record;
use crate::progress_hub::VertexState;

/// Spans of a trace that nobody came back for are forgotten after this.
const KEPT: Duration = Duration::from_secs(60);
const MOST_TRACES: usize = 1000;
const MOST_SPANS: usize = 10_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(pub u128);

/// A span of another program that a build is part of (W3C `traceparent`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    pub trace: TraceId,
    pub span: u64,
}

impl Parent {
    /// Reads the value of a `traceparent` header; `None` if it is not one.
    pub fn parse(header: &str) -> Option<Self> {
        let mut parts = header.split('-');
        let (_version, trace, span) = (parts.next()?, parts.next()?, parts.next()?);
        let is_hex = |text: &str, length| text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_hex(trace, 32) || !is_hex(span, 16) {
            return None;
        }
        let parent = Self { trace: TraceId(u128::from_str_radix(trace, 16).ok()?), span: u64::from_str_radix(span, 16).ok()? };
        (parent.trace.0 != 0 && parent.span != 0).then_some(parent)
    }
}

/// Spans that other programs sent, by trace, until the build of that trace ends. Bounded; clones are not needed.
#[derive(Default)]
pub struct Spans(Mutex<HashMap<TraceId, Kept>>);

struct Kept {
    /// As JSON text, which takes a fifth of what it does taken apart.
    spans: Vec<Box<str>>,
    last: Instant,
}

impl Spans {
    /// Adds a span, in the form of a span stub.
    pub fn add(&self, trace: TraceId, span: Value) {
        let mut traces = self.0.lock().expect("no holder of this lock panics");
        if !traces.contains_key(&trace) {
            traces.retain(|_, kept| kept.last.elapsed() < KEPT);
            if traces.len() >= MOST_TRACES {
                return;
            }
        }
        let kept = traces.entry(trace).or_insert_with(|| Kept { spans: Vec::new(), last: Instant::now() });
        kept.last = Instant::now();
        if kept.spans.len() < MOST_SPANS {
            kept.spans.push(span.to_string().into_boxed_str());
        }
    }

    pub(crate) fn take(&self, trace: TraceId) -> Vec<Value> {
        let spans = self.0.lock().expect("no holder of this lock panics").get(&trace).map(|kept| kept.spans.clone());
        spans.iter().flatten().filter_map(|text| serde_json::from_str(text).ok()).collect()
    }

    pub(crate) fn forget_old(&self) {
        self.0.lock().expect("no holder of this lock panics").retain(|_, kept| kept.last.elapsed() < KEPT);
    }
}

/// A span with what its stub holds.
pub struct Span {
    pub trace: TraceId,
    pub id: u64,
    pub parent: Option<u64>,
    /// As the Go SDK counts: 1 internal, 2 server, 3 client, 4 producer, 5 consumer.
    pub kind: i32,
    pub name: String,
    pub start: SystemTime,
    pub end: SystemTime,
    pub attributes: Vec<Value>,
    pub resource: Vec<Value>,
    /// The message of a failure.
    pub error: Option<String>,
    pub scope: String,
}

impl Span {
    pub fn stub(&self) -> Value {
        let context = |span: Option<u64>, remote: bool| match span {
            Some(span) => json!({
                "TraceID": format!("{:032x}", self.trace.0), "SpanID": format!("{span:016x}"),
                "TraceFlags": "01", "TraceState": "", "Remote": remote,
            }),
            None => json!({
                "TraceID": "0".repeat(32), "SpanID": "0".repeat(16), "TraceFlags": "00", "TraceState": "", "Remote": false,
            }),
        };
        let status = match &self.error {
            Some(message) => json!({ "Code": "Error", "Description": message }),
            None => json!({ "Code": "Unset", "Description": "" }),
        };
        json!({
            "Name": self.name,
            "SpanContext": context(Some(self.id), false),
            "Parent": context(self.parent, false),
            "SpanKind": self.kind,
            "StartTime": Timestamp::from(self.start).to_string(),
            "EndTime": Timestamp::from(self.end).to_string(),
            "Attributes": self.attributes,
            "Events": null,
            "Links": null,
            "Status": status,
            "DroppedAttributes": 0,
            "DroppedEvents": 0,
            "DroppedLinks": 0,
            "ChildSpanCount": 0,
            "Resource": self.resource,
            "InstrumentationLibrary": { "Name": self.scope, "Version": "", "SchemaURL": "", "Attributes": null },
        })
    }
}

/// An attribute with a text for a value.
pub fn text_attribute(key: &str, value: &str) -> Value {
    json!({ "Key": key, "Value": { "Type": "STRING", "Value": value } })
}

pub(crate) struct Trace {
    pub id: TraceId,
    pub spans: Vec<Value>,
}

/// The build itself and each of its vertices that ran.
pub(crate) fn of_build(record: &Record, vertices: &[VertexState], parent: Option<Parent>) -> Trace {
    let seed = format!("{}@{:?}", record.reference, record.created_at);
    let id = parent.map_or_else(|| TraceId(number(&seed)), |parent| parent.trace);
    let span_id = |of: &str| (number(&format!("{seed}/{of}")) as u64).max(1);
    let resource = vec![text_attribute("service.name", "buildkitd")];
    let span = |id_of: &str, kind, name: &str, start, end, error: Option<String>, attributes| Span {
        trace: id,
        id: span_id(id_of),
        parent: if id_of.is_empty() { parent.map(|p| p.span) } else { Some(span_id("")) },
        kind,
        name: name.to_owned(),
        start,
        end,
        attributes,
        resource: resource.clone(),
        error,
        scope: "kiln".into(),
    };
    let end = record.completed_at.unwrap_or(record.created_at);
    let error = record.error.as_ref().map(|e| e.message.clone());
    let root = vec![text_attribute("buildkit.ref", &record.reference)];
    let mut spans = vec![span("", 2, "moby.buildkit.v1.Control/Solve", record.created_at, end, error, root).stub()];
    let mut ran: Vec<&VertexState> = vertices.iter().filter(|v| v.started.is_some()).collect();
    ran.sort_by_key(|v| v.started);
    for state in ran {
        let start = state.started.unwrap_or(record.created_at);
        let digest = state.vertex.digest.as_str();
        let mut attributes = vec![text_attribute("vertex", digest)];
        if state.cached {
            attributes.push(json!({ "Key": "cached", "Value": { "Type": "BOOL", "Value": true } }));
        }
        let error = Some(state.error.clone()).filter(|e| !e.is_empty());
        let name = if state.cached { format!("cached: {}", state.vertex.name) } else { state.vertex.name.clone() };
        spans.push(span(digest, 1, &name, start, state.completed.unwrap_or(end), error, attributes).stub());
    }
    Trace { id, spans }
}

fn number(text: &str) -> u128 {
    let digest = Digest::of(text);
    u128::from_str_radix(&digest.hex()[..32], 16).expect("a digest is hex")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn traceparent_as_w3c_writes_it() {
        let parent = Parent::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
        assert_eq!(parent, Parent { trace: TraceId(0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736), span: 0x00f0_67aa_0ba9_02b7 });
        for text in [
            "",
            "00-0-0-0",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
        ] {
            assert_eq!(Parent::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_builds_spans_hang_together() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        let vertex = progress::Vertex { digest: Digest::of("v"), inputs: vec![], name: "RUN x".into(), group: None };
        let state =
            VertexState { vertex: Arc::new(vertex), started: Some(start), completed: Some(start), cached: false, error: "bad".into() };
        let record = Record { created_at: start, completed_at: Some(start), ..Record::begun("b") };
        let parent = Parent { trace: TraceId(7), span: 9 };
        let Trace { id, spans } = of_build(&record, &[state], Some(parent));
        assert_eq!(id, TraceId(7));
        let [root, step] = spans.as_slice() else { panic!("{spans:?}") };
        assert_eq!(root["Parent"]["SpanID"], "0000000000000009");
        assert_eq!(step["Parent"]["SpanID"], root["SpanContext"]["SpanID"]);
        assert_eq!(step["StartTime"], "1970-01-01T00:00:01Z");
        assert_eq!(step["Status"], json!({ "Code": "Error", "Description": "bad" }));
    }
}
