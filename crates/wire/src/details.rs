//! A failure's facts as `Any` values. The value is JSON, the type url bare, as BuildKit's clients expect; protobuf values would be ignored.
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fault::{Detail, Range, Subject};
use prost_types::Any;
use serde_json::{Map, Value, json};

use crate::protojson;

const PREFIX: &str = "github.com/moby/buildkit/";

pub fn encode(detail: &Detail) -> Any {
    let (name, fields) = match detail {
        Detail::Vertex { digest } => ("errdefs.Vertex+json", filled([("digest", json!(digest))])),
        Detail::Source { filename, language, data, definition, ranges } => {
            ("errdefs.Source+json", source(filename, language, data, definition, ranges))
        }
        Detail::Frontend { name, source } => ("errdefs.Frontend+json", filled([("name", json!(name)), ("source", json!(source))])),
        Detail::FrontendCap { name } => ("errdefs.FrontendCap+json", filled([("name", json!(name))])),
        Detail::Subrequest { name } => ("errdefs.Subrequest+json", filled([("name", json!(name))])),
        Detail::Solve { input_ids, mount_ids, op, description, subject } => {
            ("errdefs.Solve+json", solve(input_ids, mount_ids, op, description, *subject))
        }
        Detail::Exit { code, error } => {
            let error = if error.is_empty() { Value::Null } else { json!({"code": 2, "message": error}) };
            ("gatewayapi.ExitMessage+json", filled([("Code", json!(code)), ("Error", error)]))
        }
        Detail::Other { type_url, value } => return Any { type_url: type_url.clone(), value: value.clone() },
    };
    Any { type_url: format!("{PREFIX}{name}"), value: Value::Object(fields).to_string().into_bytes() }
}

/// Reads what a client can act on; everything else stays [`Detail::Other`].
pub fn decode(detail: Detail) -> Detail {
    let Detail::Other { type_url, value } = &detail else { return detail };
    let (Some(name), Ok(json)) = (type_url.strip_prefix(PREFIX), serde_json::from_slice::<Value>(value)) else { return detail };
    let text = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
    match name {
        "errdefs.Vertex+json" => Detail::Vertex { digest: text("digest") },
        "errdefs.Source+json" => read_source(&json),
        "errdefs.Frontend+json" => Detail::Frontend { name: text("name"), source: text("source") },
        "errdefs.FrontendCap+json" => Detail::FrontendCap { name: text("name") },
        "errdefs.Subrequest+json" => Detail::Subrequest { name: text("name") },
        "gatewayapi.ExitMessage+json" => Detail::Exit {
            code: json["Code"].as_u64().unwrap_or_default() as u32,
            error: json["Error"]["message"].as_str().unwrap_or_default().to_owned(),
        },
        _ => detail,
    }
}

fn source(filename: &str, language: &str, data: &[u8], definition: &[u8], ranges: &[Range]) -> Map<String, Value> {
    let position = |(line, character): (i32, i32)| filled([("line", json!(line)), ("character", json!(character))]);
    let ranges: Vec<Value> = ranges.iter().map(|r| json!({"start": position(r.start), "end": position(r.end)})).collect();
    let definition = protojson::definition_as_go(definition).unwrap_or_default();
    let info = filled([
        ("filename", json!(filename)),
        ("data", json!(STANDARD.encode(data))),
        ("definition", definition),
        ("language", json!(language)),
    ]);
    filled([("info", Value::Object(info)), ("ranges", Value::Array(ranges))])
}

fn read_source(json: &Value) -> Detail {
    let info = &json["info"];
    let text = |key: &str| info[key].as_str().unwrap_or_default().to_owned();
    let position = |value: &Value| {
        let number = |key: &str| value[key].as_i64().unwrap_or_default() as i32;
        (number("line"), number("character"))
    };
    let ranges = json["ranges"].as_array().map(Vec::as_slice).unwrap_or_default();
    Detail::Source {
        filename: text("filename"),
        language: text("language"),
        data: STANDARD.decode(text("data")).unwrap_or_default(),
        // Nobody here builds from it.
        definition: Vec::new(),
        ranges: ranges.iter().map(|range| Range { start: position(&range["start"]), end: position(&range["end"]) }).collect(),
    }
}

/// The one detail in canonical protobuf JSON: 64-bit numbers are strings, and a subject is there even if its index is 0.
fn solve(
    inputs: &[String],
    mounts: &[String],
    op: &[u8],
    description: &[(String, String)],
    subject: Option<Subject>,
) -> Map<String, Value> {
    let mut out = filled([("inputIDs", json!(inputs)), ("mountIDs", json!(mounts))]);
    if let (false, Ok(op)) = (op.is_empty(), protojson::of_pb("Op", op)) {
        out.insert("op".into(), op);
    }
    let at = |index: i64| if index == 0 { json!({}) } else { json!({"index": index.to_string()}) };
    match subject {
        Some(Subject::File { index }) => out.insert("file".into(), at(index)),
        Some(Subject::Cache { index }) => out.insert("cache".into(), at(index)),
        None => None,
    };
    let description: Map<String, Value> = description.iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect();
    out.extend(filled([("description", Value::Object(description))]));
    out
}

/// The members that are not empty: the peers' encoders leave out the others.
fn filled<const N: usize>(members: [(&str, Value); N]) -> Map<String, Value> {
    let is_empty = |value: &Value| match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        Value::Array(list) => list.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::Bool(set) => !set,
    };
    members.into_iter().filter(|(_, value)| !is_empty(value)).map(|(key, value)| (key.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    fn golden(detail: Detail, type_url: &str, value: &str) {
        let any = encode(&detail);
        assert_eq!((any.type_url.as_str(), std::str::from_utf8(&any.value).unwrap()), (type_url, value));
    }

    #[test]
    fn details_in_the_form_that_clients_read() {
        golden(Detail::Vertex { digest: "sha256:0a".into() }, "github.com/moby/buildkit/errdefs.Vertex+json", r#"{"digest":"sha256:0a"}"#);
        let ranges = vec![Range { start: (3, 0), end: (3, 7) }];
        golden(
            Detail::Source {
                filename: "Dockerfile".into(),
                language: "Dockerfile".into(),
                data: b"FROM x".to_vec(),
                definition: vec![],
                ranges,
            },
            "github.com/moby/buildkit/errdefs.Source+json",
            r#"{"info":{"filename":"Dockerfile","data":"RlJPTSB4","language":"Dockerfile"},"ranges":[{"start":{"line":3},"end":{"line":3,"character":7}}]}"#,
        );
        golden(
            Detail::Frontend { name: "gateway.v0".into(), source: String::new() },
            "github.com/moby/buildkit/errdefs.Frontend+json",
            r#"{"name":"gateway.v0"}"#,
        );
        golden(Detail::FrontendCap { name: "c".into() }, "github.com/moby/buildkit/errdefs.FrontendCap+json", r#"{"name":"c"}"#);
        golden(Detail::Subrequest { name: "s".into() }, "github.com/moby/buildkit/errdefs.Subrequest+json", r#"{"name":"s"}"#);
        golden(Detail::Exit { code: 3, error: String::new() }, "github.com/moby/buildkit/gatewayapi.ExitMessage+json", r#"{"Code":3}"#);
    }

    #[test]
    fn a_sources_definition_is_in_gos_own_json() {
        let metadata = proto::pb::OpMetadata { ignore_cache: true, caps: [("file.base".to_owned(), true)].into(), ..Default::default() };
        let definition =
            proto::pb::Definition { def: vec!["op".into()], metadata: [("sha256:0".to_owned(), metadata)].into(), source: None };
        let detail = Detail::Source {
            filename: "f".into(),
            language: String::new(),
            data: vec![],
            definition: definition.encode_to_vec(),
            ranges: vec![],
        };
        golden(
            detail,
            "github.com/moby/buildkit/errdefs.Source+json",
            r#"{"info":{"filename":"f","definition":{"def":["b3A="],"metadata":{"sha256:0":{"ignore_cache":true,"caps":{"file.base":true}}}}}}"#,
        );
    }

    #[test]
    fn solve_is_canonical_protobuf_json() {
        let op = proto::pb::Op { inputs: vec![proto::pb::Input { digest: "sha256:0a".into(), index: 2 }], ..Default::default() };
        golden(
            Detail::Solve {
                input_ids: vec!["i".into()],
                mount_ids: vec!["m".into()],
                op: op.encode_to_vec(),
                description: vec![("a".into(), "b".into())],
                subject: Some(Subject::File { index: 4 }),
            },
            "github.com/moby/buildkit/errdefs.Solve+json",
            r#"{"inputIDs":["i"],"mountIDs":["m"],"op":{"inputs":[{"digest":"sha256:0a","index":"2"}]},"file":{"index":"4"},"description":{"a":"b"}}"#,
        );
        let first = Detail::Solve {
            input_ids: vec![],
            mount_ids: vec![],
            op: vec![],
            description: vec![],
            subject: Some(Subject::Cache { index: 0 }),
        };
        golden(first, "github.com/moby/buildkit/errdefs.Solve+json", r#"{"cache":{}}"#);
    }

    #[test]
    fn what_is_written_reads_back_and_the_rest_stays_as_it_was() {
        let ranges = vec![Range { start: (3, 1), end: (4, 7) }];
        let known = [
            Detail::Vertex { digest: "sha256:0a".into() },
            Detail::Source { filename: "D".into(), language: String::new(), data: vec![0, 255], definition: vec![], ranges },
            Detail::Exit { code: 3, error: "killed".into() },
        ];
        for detail in known {
            let Any { type_url, value } = encode(&detail);
            assert_eq!(decode(Detail::Other { type_url, value }), detail);
        }
        for (type_url, value) in [("github.com/moby/buildkit/errdefs.Vertex+json", "not json"), ("type.googleapis.com/x.Y", "{}")] {
            let other = Detail::Other { type_url: type_url.into(), value: value.into() };
            assert_eq!(decode(other.clone()), other);
            assert_eq!(encode(&other), Any { type_url: type_url.into(), value: value.into() });
        }
    }
}
