//! Questions about a Dockerfile instead of a build: outline, targets, lint. The answer has no files, only metadata.
use std::collections::BTreeMap;

use bytes::Bytes;
use dockerfile::convert::{self, OutlineArg, OutlineMount};
use dockerfile::instruction;
use dockerfile::lint::{Linter, Warning};
use dockerfile::{Lines, syntax};
use fault::{Detail, Fault, Kind, Result};
use llb::{Graph, Metadata};
use oci::Digest;
use serde_json::{Map, Value, json};

use super::context::{Entrypoint, LANGUAGE};
use super::faults::Failure;
use super::opts::invalid;
use super::{Frontend, proto_json, table};
use crate::bridge::Outcome;

const DESCRIBE: &str = "frontend.subrequests.describe";
const OUTLINE: &str = "frontend.outline";
const TARGETS: &str = "frontend.targets";
const LINT: &str = "frontend.lint";
const CONVERT: &str = "frontend.convertllb";

pub(super) async fn answer(frontend: &Frontend<'_>, id: &str) -> Result<Outcome> {
    match id {
        DESCRIBE => Ok(describe()),
        OUTLINE => outline(frontend).await,
        TARGETS => targets(frontend.entrypoint),
        LINT => lint(frontend).await,
        CONVERT => convert_llb(frontend).await,
        other => Err(Fault::new(Kind::Unimplemented, format!("unsupported request {other}"))
            .with_detail(Detail::Subrequest { name: other.to_owned() })),
    }
}

/// Metadata with the answer as JSON and, if there is one, as text.
fn respond(answer: &Value, text: Option<String>, version: &'static str) -> Outcome {
    let mut metadata = BTreeMap::from([
        ("result.json".to_owned(), Bytes::from(oci::gojson::to_vec_indent(answer))),
        ("version".to_owned(), Bytes::from_static(version.as_bytes())),
    ]);
    if let Some(text) = text {
        metadata.insert("result.txt".into(), text.into());
    }
    Outcome { metadata, ..Outcome::default() }
}

fn describe() -> Outcome {
    let named = |names: &[(&str, &str)]| -> Vec<Value> { names.iter().map(|(n, d)| json!({"name": n, "description": d})).collect() };
    let request = |name: &str, description: &str, opts: Value, metadata: &[(&str, &str)]| {
        json!({
            "name": name, "version": "1.0.0", "type": "rpc", "description": description,
            "opts": opts, "inputs": null, "metadata": named(metadata), "refs": null,
        })
    };
    let results = [("result.json", ""), ("result.txt", "")];
    let all = [
        (OUTLINE, "List all parameters current build target supports", json!(named(&[("target", "Target build stage")])), &results[..]),
        (TARGETS, "List all targets current build supports", json!([]), &results[..]),
        (DESCRIBE, "List available subrequest types", Value::Null, &results[..]),
    ];
    let mut rows = vec![["NAME", "VERSION", "DESCRIPTION"].map(str::to_owned).to_vec()];
    rows.extend(all.iter().map(|(name, description, ..)| {
        vec![name.strip_prefix("frontend.").unwrap_or(name).to_owned(), "1.0.0".into(), (*description).to_owned()]
    }));
    let answer = all.into_iter().map(|(name, description, opts, metadata)| request(name, description, opts, metadata)).collect();
    respond(&Value::Array(answer), Some(table::columns(&rows, 1)), "1.0.0")
}

/// As Go's JSON writes the protobuf message: zeros are left out.
fn location(lines: Lines) -> Value {
    let range = |line: u32| json!({"start": {"line": line}, "end": {"line": line}});
    json!({"ranges": (lines.first..=lines.last).map(range).collect::<Vec<_>>()})
}

fn put(object: &mut Map<String, Value>, key: &str, value: &str) {
    if !value.is_empty() {
        object.insert(key.to_owned(), value.into());
    }
}

fn encoded(data: &[u8]) -> Value {
    proto_json::base64(data).into()
}

async fn outline(frontend: &Frontend<'_>) -> Result<Outcome> {
    let (options, answers) = (frontend.config.options(None, frontend.entrypoint, frontend.bridge.build()), frontend.answers());
    let mut linter = Linter::new(Default::default());
    let found = convert::outline(&frontend.entrypoint.data, &options, &answers, &mut linter).await;
    for warning in linter.warnings() {
        frontend.warn(&warning).await?;
    }
    let outline = found.map_err(|e| Failure::File(e).into_fault(None))?;
    let mut answer = Map::new();
    put(&mut answer, "name", &outline.name);
    put(&mut answer, "description", &outline.description);
    let arg = |arg: &OutlineArg| {
        let mut object = Map::from_iter([("name".to_owned(), arg.name.clone().into())]);
        put(&mut object, "description", &arg.description);
        put(&mut object, "value", &arg.value);
        object.insert("location".into(), location(arg.lines));
        Value::Object(object)
    };
    let mount = |mount: &OutlineMount| {
        let mut object = Map::from_iter([("name".to_owned(), mount.name.clone().into())]);
        if mount.required {
            object.insert("required".into(), true.into());
        }
        object.insert("location".into(), location(mount.lines));
        Value::Object(object)
    };
    let mut list = |key: &str, items: Vec<Value>| {
        if !items.is_empty() {
            answer.insert(key.to_owned(), items.into());
        }
    };
    list("args", outline.args.iter().map(arg).collect());
    list("secrets", outline.secrets.iter().map(mount).collect());
    list("ssh", outline.ssh.iter().map(mount).collect());
    list("sources", vec![encoded(&frontend.entrypoint.data)]);
    Ok(respond(&Value::Object(answer), Some(outline_text(&outline)), "1.0.0"))
}

fn outline_text(outline: &convert::Outline) -> String {
    let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
    let mut text = String::new();
    if !outline.name.is_empty() || !outline.description.is_empty() {
        let name = if outline.name.is_empty() { "(default)" } else { &outline.name };
        let mut rows = vec![row(&["TARGET:", name])];
        if !outline.description.is_empty() {
            rows.push(row(&["DESCRIPTION:", &outline.description]));
        }
        text.push_str(&table::columns(&rows, 1));
        text.push('\n');
    }
    if !outline.args.is_empty() {
        let mut rows = vec![row(&["BUILD ARG", "VALUE", "DESCRIPTION"])];
        rows.extend(outline.args.iter().map(|arg| row(&[&arg.name, &arg.value, &arg.description])));
        text.push_str(&table::columns(&rows, 3));
        text.push('\n');
    }
    for (title, mounts) in [("SECRET", &outline.secrets), ("SSH", &outline.ssh)] {
        if !mounts.is_empty() {
            let mut rows = vec![row(&[title, "REQUIRED"])];
            rows.extend(mounts.iter().map(|mount| row(&[&mount.name, if mount.required { "true" } else { "" }])));
            text.push_str(&table::columns(&rows, 3));
            text.push('\n');
        }
    }
    text
}

fn targets(entrypoint: &Entrypoint) -> Result<Outcome> {
    let parse = || instruction::parse(&syntax::parse(&entrypoint.data)?, &Linter::silent());
    let stages = parse().map_err(|e| Failure::File(e).into_fault(None))?.stages;
    let mut rows = vec![vec!["TARGET".to_owned(), "DESCRIPTION".to_owned()]];
    let mut list = Vec::new();
    for (index, stage) in stages.iter().enumerate() {
        let is_default = index + 1 == stages.len();
        let mut target = Map::new();
        put(&mut target, "name", &stage.name);
        if is_default {
            target.insert("default".into(), true.into());
        }
        put(&mut target, "description", &stage.description);
        put(&mut target, "base", &stage.base);
        put(&mut target, "platform", &stage.platform);
        if let Some(lines) = stage.lines {
            target.insert("location".into(), location(lines));
        }
        list.push(Value::Object(target));
        let name = match (stage.name.as_str(), is_default) {
            ("", true) => "(default)".to_owned(),
            (name, true) => format!("{name} (default)"),
            (name, false) => name.to_owned(),
        };
        rows.push(vec![name, stage.description.clone()]);
    }
    let list = if list.is_empty() { Value::Null } else { list.into() };
    let answer = json!({"targets": list, "sources": [encoded(&entrypoint.data)]});
    Ok(respond(&answer, Some(table::columns(&rows, 1)), "1.0.0"))
}

async fn lint(frontend: &Frontend<'_>) -> Result<Outcome> {
    let entrypoint = frontend.entrypoint;
    let mut options = frontend.config.options(None, entrypoint, frontend.bridge.build());
    // Without a target all stages are looked at.
    options.all_stages = options.target.is_empty();
    let mut linter = Linter::new(Default::default());
    let converted = dockerfile::convert(&entrypoint.data, &options, &frontend.answers(), &mut linter).await;
    let mut warnings = linter.warnings();

    let mut answer = Map::new();
    let list: Vec<Value> = warnings.iter().map(warning).collect();
    answer.insert("warnings".into(), if list.is_empty() { Value::Null } else { list.into() });
    answer.insert("sources".into(), json!([source_info(entrypoint)]));
    let failed = converted.is_err();
    if let Err(error) = converted {
        let mut lines: Vec<u32> = error.locations().iter().flatten().flat_map(|l| l.first..=l.last).collect();
        lines.sort_unstable();
        lines.dedup();
        let ranges: Vec<Value> = lines.iter().map(|line| json!({"start": {"line": line}, "end": {"line": line}})).collect();
        let place = if error.locations().is_empty() { json!({}) } else { json!({"ranges": ranges}) };
        answer.insert("buildError".into(), json!({"message": error.to_string(), "location": place}));
    }
    let status = if failed || !warnings.is_empty() { "1" } else { "0" };
    let data = String::from_utf8_lossy(&entrypoint.data);
    warnings.sort_by_key(|w| w.lines.map_or(0, |l| l.first));
    let text = warnings.iter().map(|w| {
        let page = if w.rule.url.is_empty() { String::new() } else { format!(" - {}", w.rule.url) };
        let excerpt = w.lines.map_or_else(String::new, |lines| table::excerpt(&entrypoint.filename, &data, lines));
        format!("\nWARNING: {}{page}\n{}\n{excerpt}", w.rule.name, w.message)
    });
    let mut outcome = respond(&Value::Object(answer), Some(text.collect()), "1.0.0");
    outcome.metadata.insert("result.statuscode".into(), status.into());
    Ok(outcome)
}

fn warning(warning: &Warning) -> Value {
    let mut object = Map::from_iter([("ruleName".to_owned(), warning.rule.name.into())]);
    put(&mut object, "description", warning.rule.description);
    put(&mut object, "url", warning.rule.url);
    put(&mut object, "detail", &warning.message);
    object.insert("location".into(), warning.lines.map_or_else(|| json!({}), location));
    Value::Object(object)
}

fn source_info(entrypoint: &Entrypoint) -> Value {
    let mut object = Map::new();
    put(&mut object, "filename", &entrypoint.filename);
    if !entrypoint.data.is_empty() {
        object.insert("data".into(), encoded(&entrypoint.data));
    }
    object.insert("definition".into(), definition(&entrypoint.graph));
    put(&mut object, "language", LANGUAGE);
    Value::Object(object)
}

/// The definition that the file was read from, as Go's JSON writes it.
fn definition(graph: &Graph) -> Value {
    let encoded_ops = graph.encode().def;
    let digests: Vec<String> = encoded_ops.iter().map(|op| Digest::of(op).to_string()).collect();
    let all = graph.vertices.iter().map(|v| &v.metadata).chain([&graph.result_metadata]);
    let mut metadata: Vec<(&String, Value)> = digests.iter().zip(all.map(op_metadata)).collect();
    metadata.sort_by_key(|(digest, _)| *digest);
    let mut vertices: Vec<&String> = digests.iter().take(graph.vertices.len()).collect();
    vertices.sort();
    json!({
        "def": encoded_ops.iter().map(|op| encoded(op)).collect::<Vec<_>>(),
        "metadata": metadata.into_iter().map(|(digest, value)| (digest.clone(), value)).collect::<Map<_, _>>(),
        "Source": {"locations": vertices.into_iter().map(|digest| (digest.clone(), json!({}))).collect::<Map<_, _>>()},
    })
}

fn op_metadata(metadata: &Metadata) -> Value {
    let mut object = Map::new();
    if metadata.ignore_cache {
        object.insert("ignore_cache".into(), true.into());
    }
    if !metadata.description.is_empty() {
        object.insert("description".into(), json!(metadata.description));
    }
    if let Some(export) = metadata.export_cache {
        object.insert("export_cache".into(), if export { json!({"Value": true}) } else { json!({}) });
    }
    if !metadata.caps.is_empty() {
        object.insert("caps".into(), json!(metadata.caps));
    }
    if let Some(group) = &metadata.progress_group {
        let mut fields = Map::new();
        put(&mut fields, "id", &group.id);
        put(&mut fields, "name", &group.name);
        if group.weak {
            fields.insert("weak".into(), true.into());
        }
        object.insert("progress_group".into(), fields.into());
    }
    if let Some(limits) = &metadata.linux_resources {
        let numbers = [
            ("memory", limits.memory),
            ("memorySwap", limits.memory_swap),
            ("cpuShares", limits.cpu_shares as i64),
            ("cpuPeriod", limits.cpu_period as i64),
            ("cpuQuota", limits.cpu_quota),
        ];
        let numbers = numbers.into_iter().filter(|(_, n)| *n != 0).map(|(key, n)| (key.to_owned(), n.into()));
        let mut fields: Map<String, Value> = numbers.collect();
        put(&mut fields, "cpusetCpus", &limits.cpuset_cpus);
        put(&mut fields, "cpusetMems", &limits.cpuset_mems);
        object.insert("linux_resources".into(), fields.into());
    }
    Value::Object(object)
}

/// Every op of the graph that a build would solve.
async fn convert_llb(frontend: &Frontend<'_>) -> Result<Outcome> {
    let options = frontend.config.options(None, frontend.entrypoint, frontend.bridge.build());
    let mut linter = Linter::new(Default::default());
    let converted = dockerfile::convert(&frontend.entrypoint.data, &options, &frontend.answers(), &mut linter).await;
    for warning in linter.warnings() {
        frontend.warn(&warning).await?;
    }
    let graph = converted.map_err(|e| Failure::File(e).into_fault(None))?.graph;
    let mut ops = BTreeMap::new();
    let mut metadata = BTreeMap::new();
    for vertex in &graph.vertices {
        // A client's own input may hold anything.
        let op = proto_json::op(vertex).ok_or_else(|| invalid(format!("{CONVERT} does not write nested builds")))?;
        ops.insert(vertex.digest.to_string(), op);
        metadata.insert(vertex.digest.to_string(), op_metadata(&vertex.metadata));
    }
    if let (Some(result), Some(last)) = (&graph.result, graph.encode().def.last()) {
        let digest = Digest::of(last).to_string();
        ops.insert(digest.clone(), proto_json::terminal(result));
        metadata.insert(digest, op_metadata(&graph.result_metadata));
    }
    let source = proto_json::source_map(&graph, definition(&frontend.entrypoint.graph));
    Ok(respond(&json!({"def": ops, "metadata": metadata, "source": source}), None, "0.1.0"))
}
