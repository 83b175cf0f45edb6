//! Progress as JSON, one message a line, in the form that BuildKit's tools write and read.
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost_types::Timestamp;
use proto::moby::buildkit::v1 as pb;
use serde_json::{Map, Value, json};

pub fn line(part: &pb::StatusResponse) -> String {
    let list = |name: &str, items: Vec<Value>| (!items.is_empty()).then(|| (name.to_owned(), Value::Array(items)));
    let members = [
        list("vertexes", part.vertexes.iter().map(vertex).collect()),
        list("statuses", part.statuses.iter().map(status).collect()),
        list("logs", part.logs.iter().map(log).collect()),
        list("warnings", part.warnings.iter().map(warning).collect()),
    ];
    Value::Object(members.into_iter().flatten().collect()).to_string()
}

fn time(at: &Timestamp) -> Value {
    oci::Timestamp::from_unix(at.seconds, at.nanos.max(0) as u32).to_string().into()
}

fn maybe_time(at: &Option<Timestamp>) -> Value {
    at.as_ref().map_or(Value::Null, time)
}

/// Leaves out what is empty.
fn object<const N: usize>(members: [(&str, Value); N]) -> Value {
    let empty = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        Value::Array(list) => list.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::Bool(true) => false,
    };
    let members = members.into_iter().filter(|(_, value)| !empty(value));
    Value::Object(members.map(|(key, value)| (key.to_owned(), value)).collect::<Map<_, _>>())
}

fn vertex(v: &pb::Vertex) -> Value {
    let group =
        v.progress_group.as_ref().map_or(Value::Null, |g| object([("id", json!(g.id)), ("name", json!(g.name)), ("weak", json!(g.weak))]));
    object([
        ("digest", json!(v.digest)),
        ("inputs", json!(v.inputs)),
        ("name", json!(v.name)),
        ("started", maybe_time(&v.started)),
        ("completed", maybe_time(&v.completed)),
        ("cached", json!(v.cached)),
        ("error", json!(v.error)),
        ("progressGroup", group),
    ])
}

fn status(s: &pb::VertexStatus) -> Value {
    let mut out = json!({"id": s.id, "current": s.current, "timestamp": maybe_time(&s.timestamp)});
    let rest = object([
        ("vertex", json!(s.vertex)),
        ("name", json!(s.name)),
        ("total", json!(s.total)),
        ("started", maybe_time(&s.started)),
        ("completed", maybe_time(&s.completed)),
    ]);
    if let (Value::Object(out), Value::Object(rest)) = (&mut out, rest) {
        out.extend(rest);
    }
    out
}

fn log(l: &pb::VertexLog) -> Value {
    json!({"vertex": l.vertex, "stream": l.stream, "data": STANDARD.encode(&l.msg), "timestamp": maybe_time(&l.timestamp)})
}

fn warning(w: &pb::VertexWarning) -> Value {
    let position = |p: &Option<proto::pb::Position>| {
        p.as_ref().map_or(Value::Null, |p| object([("line", json!(p.line)), ("character", json!(p.character))]))
    };
    let source = w.info.as_ref().map_or(Value::Null, |info| {
        object([("filename", json!(info.filename)), ("data", json!(STANDARD.encode(&info.data))), ("language", json!(info.language))])
    });
    object([
        ("vertex", json!(w.vertex)),
        ("level", json!(w.level)),
        ("short", json!(STANDARD.encode(&w.short))),
        ("detail", w.detail.iter().map(|line| json!(STANDARD.encode(line))).collect()),
        ("url", json!(w.url)),
        ("sourceInfo", source),
        ("range", w.ranges.iter().map(|r| json!({"start": position(&r.start), "end": position(&r.end)})).collect()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_that_others_read() {
        let at = Some(Timestamp { seconds: 1_700_000_000, nanos: 5 });
        let part = pb::StatusResponse {
            vertexes: vec![pb::Vertex { digest: "sha256:1".into(), name: "a".into(), started: at, ..Default::default() }],
            logs: vec![pb::VertexLog { vertex: "sha256:1".into(), stream: 1, msg: "hi\n".into(), timestamp: at }],
            ..Default::default()
        };
        let time = "2023-11-14T22:13:20.000000005Z";
        let expected = format!(
            r#"{{"vertexes":[{{"digest":"sha256:1","name":"a","started":"{time}"}}],"logs":[{{"vertex":"sha256:1","stream":1,"data":"aGkK","timestamp":"{time}"}}]}}"#
        );
        assert_eq!(line(&part), expected);
        assert_eq!(line(&pb::StatusResponse::default()), "{}");
    }
}
