//! `history`: the builds of the past, and why their steps ran.
use std::io::Write as _;
use std::time::{Duration, SystemTime};

use client::Client;
use fault::{Fault, Kind, Result};
use proto::moby::buildkit::v1 as pb;
use serde_json::{Value, json};

use super::connect::connect;
use super::records::{json_format, time};
use super::text::{go_duration, table};
use super::{Call, debug, output};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    List,
    Logs,
    Inspect,
    Why,
    Trace,
    Remove,
    Pin,
    Unpin,
}

const NAMES: [(&str, What); 8] = [
    ("ls", What::List),
    ("logs", What::Logs),
    ("inspect", What::Inspect),
    ("why", What::Why),
    ("trace", What::Trace),
    ("rm", What::Remove),
    ("pin", What::Pin),
    ("unpin", What::Unpin),
];

impl What {
    pub fn parse(name: &str) -> Result<Self, String> {
        let found = NAMES.iter().find(|(known, _)| *known == name).map(|(_, what)| *what);
        found.ok_or_else(|| format!("no history command {name:?}: it is one of {}", NAMES.map(|(name, _)| name).join(", ")))
    }
}

pub async fn run(what: What, call: &Call) -> Result<()> {
    match what {
        What::List => list(call).await,
        What::Logs => debug::run(debug::What::Logs, call).await,
        What::Inspect => {
            output::print_line(pretty(&record_json(&chosen(call).await?.1)));
            Ok(())
        }
        What::Why => {
            let (_, record) = chosen(call).await?;
            output::print(&why(&record));
            Ok(())
        }
        What::Trace => trace(call).await,
        What::Remove => remove(call).await,
        What::Pin | What::Unpin => {
            let (client, record) = chosen(call).await?;
            let request = pb::UpdateBuildHistoryRequest { r#ref: record.r#ref, pinned: what == What::Pin, ..Default::default() };
            client.update_history(request).await
        }
    }
}

/// Why the steps of a build ran that had run before; for the end of `build --why`.
pub async fn explain(client: &Client, build: &str) -> Result<String> {
    let records = records(client, pb::BuildHistoryRequest { r#ref: build.to_owned(), ..Default::default() }).await?;
    let missing = || Fault::new(Kind::NotFound, format!("the daemon's history has no build {build}"));
    Ok(why(records.first().ok_or_else(missing)?))
}

/// Builds that have ended, the newest first.
async fn records(client: &Client, request: pb::BuildHistoryRequest) -> Result<Vec<pb::BuildHistoryRecord>> {
    let mut found = Vec::new();
    let keep = |event: pb::BuildHistoryEvent| {
        if event.r#type() == pb::BuildHistoryEventType::Complete {
            found.extend(event.record);
        }
    };
    client.history(pb::BuildHistoryRequest { early_exit: true, ..request }, keep).await?;
    found.sort_by_key(|record| std::cmp::Reverse(record.created_at.map(|at| (at.seconds, at.nanos))));
    Ok(found)
}

/// The build that the command line names by its reference or the beginning of it; the newest where it names none.
async fn chosen(call: &Call) -> Result<(Client, pb::BuildHistoryRecord)> {
    let client = connect(call).await?;
    let wanted = call.args.operands.first().map_or("", String::as_str);
    let mut found = records(&client, Default::default()).await?;
    if !found.iter().any(|record| record.r#ref == wanted) {
        found.retain(|record| record.r#ref.starts_with(wanted));
        if !wanted.is_empty() && found.len() > 1 {
            return Err(Fault::invalid(format!("{wanted:?} is the beginning of {} builds' references", found.len())));
        }
    } else {
        found.retain(|record| record.r#ref == wanted);
    }
    let missing = || Fault::new(Kind::NotFound, format!("no build {wanted:?} in the history: `kiln history ls` lists them"));
    let record = found.into_iter().next().ok_or_else(missing)?;
    Ok((client, record))
}

async fn list(call: &Call) -> Result<()> {
    let format = json_format(&call.args)?;
    let client = connect(call).await?;
    let request = pb::BuildHistoryRequest { filter: call.args.all("filter").to_vec(), ..Default::default() };
    let found = records(&client, request).await?;
    if format {
        found.iter().for_each(|record| output::print_line(record_json(record)));
        return Ok(());
    }
    let header = ["REF", "STATUS", "CREATED", "DURATION", "STEPS", "CACHED", "MISSES", "PINNED"].map(str::to_owned).to_vec();
    output::print(&table(&std::iter::once(header).chain(found.iter().map(row)).collect::<Vec<_>>()));
    Ok(())
}

fn row(record: &pb::BuildHistoryRecord) -> Vec<String> {
    let misses = misses(record).len();
    vec![
        record.r#ref.clone(),
        status(record).into(),
        time(&record.created_at),
        duration(record).map(|d| go_duration(Duration::from_millis(d.as_millis() as u64))).unwrap_or_default(),
        format!("{}/{}", record.num_completed_steps, record.num_total_steps),
        record.num_cached_steps.to_string(),
        if misses == 0 { String::new() } else { misses.to_string() },
        if record.pinned { "*".into() } else { String::new() },
    ]
}

fn status(record: &pb::BuildHistoryRecord) -> &'static str {
    match &record.error {
        None => "completed",
        Some(error) if error.message.contains("context canceled") => "canceled",
        Some(_) => "error",
    }
}

fn duration(record: &pb::BuildHistoryRecord) -> Option<Duration> {
    let at = |time: Option<prost_types::Timestamp>| SystemTime::try_from(time?).ok();
    at(record.completed_at)?.duration_since(at(record.created_at)?).ok()
}

fn misses(record: &pb::BuildHistoryRecord) -> Vec<Value> {
    let listed = record.exporter_response.get(job::why::RESPONSE_KEY).and_then(|json| serde_json::from_str(json).ok());
    listed.unwrap_or_default()
}

fn why(record: &pb::BuildHistoryRecord) -> String {
    let misses = misses(record);
    if misses.is_empty() {
        return "no step ran that had run in an earlier build\n".to_owned();
    }
    let mut text = String::from("steps that ran although an earlier build had run their like:\n");
    for miss in misses {
        text.push_str(&format!("{}\n", miss["step"].as_str().unwrap_or_default()));
        for reason in miss["reasons"].as_array().into_iter().flatten() {
            text.push_str(&format!("   {}\n", reason["text"].as_str().unwrap_or_default()));
        }
        text.push_str(&format!("   (compared with build {})\n", miss["before"].as_str().unwrap_or_default()));
    }
    text
}

async fn trace(call: &Call) -> Result<()> {
    let (client, record) = chosen(call).await?;
    let build = record.r#ref.clone();
    client.update_history(pb::UpdateBuildHistoryRequest { r#ref: build.clone(), finalize: true, ..Default::default() }).await?;
    let again = records(&client, pb::BuildHistoryRequest { r#ref: build.clone(), ..Default::default() }).await?;
    let trace = again.into_iter().next().and_then(|record| record.trace);
    let trace = trace.ok_or_else(|| Fault::new(Kind::NotFound, format!("build {build} has no trace")))?;
    let mut out = std::io::stdout().lock();
    client.blob(&trace.digest, |part| out.write_all(part)).await
}

async fn remove(call: &Call) -> Result<()> {
    if call.args.operands.is_empty() && !call.args.is_set("all") {
        return Err(Fault::invalid("build refs must be specified, or --all"));
    }
    let client = connect(call).await?;
    let builds: Vec<String> = match call.args.is_set("all") {
        true => records(&client, Default::default()).await?.into_iter().filter(|r| !r.pinned).map(|r| r.r#ref).collect(),
        false => call.args.operands.clone(),
    };
    for build in builds {
        client.update_history(pb::UpdateBuildHistoryRequest { r#ref: build, delete: true, ..Default::default() }).await?;
    }
    Ok(())
}

/// Everything that the record says.
pub fn record_json(record: &pb::BuildHistoryRecord) -> Value {
    let descriptor =
        |d: &pb::Descriptor| json!({"media_type": d.media_type, "digest": d.digest, "size": d.size, "annotations": d.annotations});
    let blob = |d: &Option<pb::Descriptor>| d.as_ref().map(descriptor);
    let results = |r: &pb::BuildResultInfo| {
        let made: serde_json::Map<String, Value> = r.results.iter().map(|(i, d)| (i.to_string(), descriptor(d))).collect();
        json!({"Attestations": r.attestations.iter().map(descriptor).collect::<Vec<_>>(), "Results": made})
    };
    let mut response = record.exporter_response.clone();
    response.remove(job::why::RESPONSE_KEY);
    json!({
        "Ref": record.r#ref,
        "Status": status(record),
        "Frontend": record.frontend,
        "FrontendAttrs": record.frontend_attrs,
        "Exporters": record.exporters.iter().map(|e| json!({"Type": e.r#type, "Attrs": e.attrs})).collect::<Vec<_>>(),
        "error": record.error.as_ref().map(|e| json!({"code": e.code, "message": e.message})),
        "CreatedAt": time(&record.created_at),
        "CompletedAt": time(&record.completed_at),
        "logs": blob(&record.logs),
        "trace": blob(&record.trace),
        "externalError": blob(&record.external_error),
        "ExporterResponse": response,
        "Result": record.result.as_ref().map(results),
        "Results": record.results.iter().map(|(platform, r)| (platform.clone(), results(r))).collect::<serde_json::Map<String, Value>>(),
        "Generation": record.generation,
        "pinned": record.pinned,
        "numTotalSteps": record.num_total_steps,
        "numCompletedSteps": record.num_completed_steps,
        "numCachedSteps": record.num_cached_steps,
        "numWarnings": record.num_warnings,
        "misses": misses(record),
    })
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).expect("values print")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_told_step_by_step() {
        let misses =
            r#"[{"step":"[2/3] RUN x","vertex":"v","before":"b1","reasons":[{"kind":"argument","text":"build argument A has changed"}]}]"#;
        let mut record = pb::BuildHistoryRecord { r#ref: "b2".into(), ..Default::default() };
        assert_eq!(why(&record), "no step ran that had run in an earlier build\n");
        record.exporter_response.insert(job::why::RESPONSE_KEY.into(), misses.into());
        assert!(why(&record).contains("[2/3] RUN x\n   build argument A has changed\n   (compared with build b1)\n"));
        assert_eq!(record_json(&record)["misses"][0]["step"], "[2/3] RUN x");
        assert_eq!(row(&record)[6], "1");
    }
}
