//! `debug`: what a daemon says about itself and its builds.
use std::io::Write as _;
use std::time::Duration;

use fault::{Fault, Kind, Result};
use proto::moby::buildkit::v1 as pb;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::connect::{connect, read_file};
use super::records::{json_format, time};
use super::text::{bytes, go_duration, table};
use super::{Call, display, output};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Workers,
    Info,
    Monitor,
    Logs,
    Ctl,
    Get,
    Histories,
    DumpLlb,
}

pub const NAMES: [&str; 8] = ["workers", "info", "monitor", "logs", "ctl", "get", "histories", "dump-llb"];

impl What {
    pub fn parse(name: &str) -> Result<Self, String> {
        Ok(match name {
            "workers" => Self::Workers,
            "info" => Self::Info,
            "monitor" => Self::Monitor,
            "logs" => Self::Logs,
            "ctl" => Self::Ctl,
            "get" => Self::Get,
            "histories" => Self::Histories,
            "dump-llb" => Self::DumpLlb,
            other => return Err(format!("no debug command {other:?}: it is one of {}", NAMES.join(", "))),
        })
    }
}

pub async fn run(what: What, call: &Call) -> Result<()> {
    match what {
        What::Workers => workers(call).await,
        What::Info => info(call).await,
        What::Monitor => monitor(call).await,
        What::Logs => logs(call).await,
        What::Ctl => control(call).await,
        What::Get => get(call).await,
        What::Histories => histories(call).await,
        What::DumpLlb => dump_llb(call),
    }
}

fn operand<'a>(call: &'a Call, what: &str) -> Result<&'a str> {
    call.args.operands.first().map(String::as_str).ok_or_else(|| Fault::invalid(format!("{what} must be specified")))
}

fn cells<const N: usize>(line: [&str; N]) -> Vec<String> {
    line.map(str::to_owned).to_vec()
}

async fn workers(call: &Call) -> Result<()> {
    let format = json_format(&call.args)?;
    let workers = connect(call).await?.workers(call.args.all("filter").to_vec()).await?;
    if format {
        output::print_line(Value::Array(workers.iter().map(worker_json).collect()));
    } else if call.args.is_set("verbose") {
        output::print(&workers.iter().map(worker_text).collect::<String>());
    } else {
        let lines = workers.iter().map(|w| vec![w.id.clone(), platforms(w).join(",")]);
        output::print(&table(&std::iter::once(cells(["ID", "PLATFORMS"])).chain(lines).collect::<Vec<_>>()));
    }
    Ok(())
}

fn platforms(worker: &pb::types::WorkerRecord) -> Vec<String> {
    worker.platforms.iter().map(|p| llb::parts::platform(p.clone()).normalized().to_string()).collect()
}

fn worker_text(worker: &pb::types::WorkerRecord) -> String {
    let version = worker.buildkit_version.clone().unwrap_or_default();
    let mut lines = vec![
        vec!["ID:".into(), worker.id.clone()],
        vec!["Platforms:".into(), platforms(worker).join(",")],
        vec!["BuildKit:".into(), format!("{} {} {}", version.package, version.version, version.revision)],
    ];
    if !version.dockerfile_version.is_empty() {
        lines.push(vec!["Dockerfile:".into(), version.dockerfile_version]);
    }
    lines.push(cells(["Labels:"]));
    lines.extend(worker.labels.iter().map(|(key, value)| vec![String::new(), format!("{key}:"), value.clone()]));
    for (at, rule) in worker.gc_policy.iter().enumerate() {
        lines.push(vec![format!("GC Policy rule#{at}:")]);
        let mut put = |key: &str, value: String| lines.push(vec![String::new(), format!("{key}:"), value]);
        put("All", rule.all.to_string());
        if !rule.filters.is_empty() {
            put("Filters", rule.filters.join(" "));
        }
        if rule.keep_duration > 0 {
            put("Keep duration", go_duration(Duration::from_nanos(rule.keep_duration as u64)));
        }
        for (key, size) in [
            ("Reserved space", rule.reserved_space),
            ("Minimum free space", rule.min_free_space),
            ("Maximum used space", rule.max_used_space),
        ] {
            if size > 0 {
                put(key, bytes(size));
            }
        }
    }
    table(&lines) + "\n"
}

fn version_json(version: &Option<pb::types::BuildkitVersion>) -> Value {
    let v = version.clone().unwrap_or_default();
    json!({"package": v.package, "version": v.version, "revision": v.revision, "dockerfileVersion": v.dockerfile_version})
}

fn worker_json(worker: &pb::types::WorkerRecord) -> Value {
    let platform = |p: &proto::pb::Platform| serde_json::to_value(llb::parts::platform(p.clone())).unwrap_or_default();
    let rule = |r: &pb::types::GcPolicy| json!({"filter": r.filters, "all": r.all, "keepDuration": r.keep_duration, "reservedSpace": r.reserved_space, "maxUsedSpace": r.max_used_space, "minFreeSpace": r.min_free_space});
    json!({
        "id": worker.id, "labels": worker.labels, "platforms": worker.platforms.iter().map(platform).collect::<Vec<_>>(),
        "gcPolicy": worker.gc_policy.iter().map(rule).collect::<Vec<_>>(), "buildkitVersion": version_json(&worker.buildkit_version),
    })
}

async fn info(call: &Call) -> Result<()> {
    let format = json_format(&call.args)?;
    let version = connect(call).await?.info().await?;
    if format {
        output::print_line(json!({"buildkitVersion": version_json(&Some(version))}));
        return Ok(());
    }
    output::print_line(format!("BuildKit:   {} {} {}", version.package, version.version, version.revision));
    if !version.dockerfile_version.is_empty() {
        output::print_line(format!("Dockerfile: {}", version.dockerfile_version));
    }
    Ok(())
}

async fn monitor(call: &Call) -> Result<()> {
    let request = pb::BuildHistoryRequest {
        active_only: !call.args.is_set("completed"),
        r#ref: call.args.text("ref").to_owned(),
        ..Default::default()
    };
    let print = |event: pb::BuildHistoryEvent| {
        let kind = event.r#type().as_str_name();
        let record = event.record.unwrap_or_default();
        output::print_line(format!("{kind} {}", record.r#ref));
        if let Some(error) = record.error {
            output::print_line(format!("  error: {}", error.message));
        }
    };
    connect(call).await?.history(request, print).await
}

async fn logs(call: &Call) -> Result<()> {
    let build = operand(call, "build ref")?;
    let kind = display::choose(call.args.text("progress"), &call.environment.wishes()).map_err(Fault::invalid)?;
    let tee = call.args.get("trace").map(std::fs::File::create).transpose()?.map(|file| Box::new(file) as Box<dyn std::io::Write + Send>);
    let client = connect(call).await?;
    let (sender, parts) = mpsc::unbounded_channel();
    let (relay, shown) = mpsc::channel(64);
    let forward = async move {
        let mut parts: mpsc::UnboundedReceiver<pb::StatusResponse> = parts;
        while let Some(part) = parts.recv().await {
            if relay.send(part).await.is_err() {
                break;
            }
        }
    };
    let follow = client.status(build, move |part| drop(sender.send(part)));
    let (followed, (), outcome) = tokio::join!(follow, forward, display::show(kind, shown, tee));
    followed?;
    Ok(outcome?)
}

async fn control(call: &Call) -> Result<()> {
    let build = operand(call, "build ref")?.to_owned();
    let asked = ["pin", "unpin", "delete"].map(|name| call.args.is_set(name));
    let request = match asked {
        [true, false, false] => pb::UpdateBuildHistoryRequest { r#ref: build, pinned: true, ..Default::default() },
        [false, true, false] => pb::UpdateBuildHistoryRequest { r#ref: build, ..Default::default() },
        [false, false, true] => pb::UpdateBuildHistoryRequest { r#ref: build, delete: true, ..Default::default() },
        [false, false, false] => return Err(Fault::invalid("one of --pin, --unpin and --delete is wanted")),
        _ => return Err(Fault::invalid("only one of --pin, --unpin and --delete can be used")),
    };
    connect(call).await?.update_history(request).await
}

async fn get(call: &Call) -> Result<()> {
    let digest = operand(call, "digest")?;
    let mut out = std::io::stdout().lock();
    connect(call).await?.blob(digest, |part| out.write_all(part)).await
}

async fn histories(call: &Call) -> Result<()> {
    let format = json_format(&call.args)?;
    let mut lines = vec![cells(["TYPE", "REF", "CREATED", "COMPLETED", "GENERATION", "PINNED"])];
    let request = pb::BuildHistoryRequest { early_exit: true, ..Default::default() };
    let seen = |event: pb::BuildHistoryEvent| {
        let line = history_line(&event);
        if format {
            output::print_line(history_json(&event));
        }
        lines.push(line);
    };
    connect(call).await?.history(request, seen).await?;
    if !format {
        output::print(&table(&lines));
    }
    Ok(())
}

fn history_line(event: &pb::BuildHistoryEvent) -> Vec<String> {
    let record = event.record.clone().unwrap_or_default();
    vec![
        event.r#type().as_str_name().to_owned(),
        record.r#ref,
        time(&record.created_at),
        time(&record.completed_at),
        record.generation.to_string(),
        if record.pinned { "*".into() } else { String::new() },
    ]
}

fn history_json(event: &pb::BuildHistoryEvent) -> Value {
    json!({"type": event.r#type, "record": event.record.as_ref().map(super::history::record_json)})
}

/// Deletes every finished build from the history, but those that are pinned.
pub async fn prune_histories(call: &Call) -> Result<()> {
    let client = connect(call).await?;
    let mut found = Vec::new();
    client.history(pb::BuildHistoryRequest { early_exit: true, ..Default::default() }, |event| found.push(event)).await?;
    let mut lines = vec![cells(["TYPE", "REF", "CREATED", "COMPLETED", "GENERATION"])];
    for event in found {
        let Some(record) = event.record.as_ref().filter(|record| !record.pinned && event.r#type() == pb::BuildHistoryEventType::Complete)
        else {
            continue;
        };
        client.update_history(pb::UpdateBuildHistoryRequest { r#ref: record.r#ref.clone(), delete: true, ..Default::default() }).await?;
        let mut line = history_line(&event);
        line.pop();
        lines.push(line);
    }
    output::print(&table(&lines));
    Ok(())
}

/// Prints each op of a definition as a JSON line, or the graph for graphviz. Needs no daemon.
fn dump_llb(call: &Call) -> Result<()> {
    use std::io::Read as _;
    let bytes = match call.args.operands.first().map(String::as_str) {
        None | Some("-") => {
            let mut bytes = Vec::new();
            std::io::stdin().lock().read_to_end(&mut bytes)?;
            bytes
        }
        Some(path) => read_file(path)?,
    };
    let graph = llb::Graph::decode(bytes).map_err(|e| Fault::of(Kind::Invalid, e).context("failed to load LLB"))?;
    let mut out = std::io::stdout().lock();
    if call.args.is_set("dot") {
        return Ok(write_dot(&graph, &mut out)?);
    }
    for vertex in &graph.vertices {
        let op = wire::op_json(&vertex.encoded).map_err(|e| Fault::of(Kind::Invalid, e))?;
        let metadata = json!({"description": vertex.metadata.description, "ignore_cache": vertex.metadata.ignore_cache});
        writeln!(out, "{}", json!({"Op": op, "Digest": vertex.digest.to_string(), "OpMetadata": metadata}))?;
    }
    Ok(())
}

fn write_dot(graph: &llb::Graph, out: &mut dyn std::io::Write) -> std::io::Result<()> {
    writeln!(out, "digraph {{")?;
    for vertex in &graph.vertices {
        writeln!(out, "  {:?} [label={:?} shape=\"box\"];", vertex.digest.as_str(), vertex.name)?;
        for input in &vertex.inputs {
            writeln!(out, "  {:?} -> {:?} [label=\"{}\"];", input.vertex.as_str(), vertex.digest.as_str(), input.output)?;
        }
    }
    writeln!(out, "}}")
}
