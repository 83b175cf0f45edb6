//! `du` and `prune`: the records of the build cache.
use fault::{Fault, Result};
use prost_types::Timestamp;
use proto::moby::buildkit::v1 as pb;
use serde_json::{Value, json};

use super::connect::connect;
use super::text::{bytes, parse_go_duration, table};
use super::{Call, args, output};

pub async fn disk_usage(call: &Call) -> Result<()> {
    let format = json_format(&call.args)?;
    let records = connect(call).await?.disk_usage(call.args.all("filter").to_vec()).await?;
    if format {
        output::print_line(Value::Array(records.iter().map(as_json).collect()));
        return Ok(());
    }
    if call.args.is_set("verbose") {
        output::print(&records.iter().map(verbose).collect::<String>());
    } else {
        let lines: Vec<Vec<String>> = std::iter::once(header()).chain(records.iter().map(row)).collect();
        output::print(&table(&lines));
    }
    if call.args.all("filter").is_empty() {
        output::print(&table(&summary(&records)));
    }
    Ok(())
}

pub async fn prune(call: &Call) -> Result<()> {
    let format = json_format(&call.args)?;
    let megabytes = |name: &str| -> Result<i64> {
        let value = call.args.number::<f64>(name).map_err(Fault::invalid)?;
        Ok((value.unwrap_or(0.0) * 1e6) as i64)
    };
    let duration = call.args.get("keep-duration").map(|text| {
        parse_go_duration(text)
            .ok_or_else(|| Fault::invalid(format!("invalid value {text:?} for flag -keep-duration: a duration such as 48h is wanted")))
    });
    let request = pb::PruneRequest {
        filter: call.args.all("filter").to_vec(),
        all: call.args.is_set("all"),
        keep_duration: duration.transpose()?.map_or(0, |d| d.as_nanos().try_into().unwrap_or(i64::MAX)),
        reserved_space: megabytes("keep-storage-min")?,
        max_used_space: megabytes("keep-storage")?,
        min_free_space: megabytes("free-storage")?,
    };
    let (mut total, mut first) = (0, true);
    let client = connect(call).await?;
    client
        .prune(request, |record| {
            total += record.size;
            if format {
                output::print_line(as_json(&record));
            } else if call.args.is_set("verbose") {
                output::print(&verbose(&record));
            } else {
                if std::mem::take(&mut first) {
                    output::print(&table(&[header()]));
                }
                output::print(&table(&[row(&record)]));
            }
        })
        .await?;
    if !format {
        output::print(&table(&[vec!["Total:".into(), bytes(total)]]));
    }
    Ok(())
}

/// Whether JSON is asked for; other templates are Go's, which we do not speak.
pub fn json_format(args: &args::Args) -> Result<bool> {
    match args.text("format") {
        "" => Ok(false),
        "json" | "{{json .}}" => Ok(true),
        other => Err(Fault::invalid(format!("format {other:?} is not supported: use json"))),
    }
}

fn header() -> Vec<String> {
    ["ID", "RECLAIMABLE", "SIZE", "LAST ACCESSED"].map(str::to_owned).to_vec()
}

fn row(record: &pb::UsageRecord) -> Vec<String> {
    let marked = |text: String, mark: bool| if mark { text + "*" } else { text };
    vec![
        format!("{:<71}", marked(record.id.clone(), record.mutable)),
        format!("{:<11}", !record.in_use),
        marked(bytes(record.size), record.shared),
        String::new(),
    ]
}

fn verbose(record: &pb::UsageRecord) -> String {
    let mut lines = Vec::new();
    let mut put = |key: &str, value: String| lines.push(vec![format!("{key}:"), value]);
    put("ID", record.id.clone());
    if !record.parents.is_empty() {
        put("Parents", record.parents.join(";"));
    }
    put("Created at", time(&record.created_at));
    put("Mutable", record.mutable.to_string());
    put("Reclaimable", (!record.in_use).to_string());
    put("Shared", record.shared.to_string());
    put("Size", bytes(record.size));
    if record.deduplicated > 0 {
        put("Deduplicated", bytes(record.deduplicated));
    }
    if !record.description.is_empty() {
        put("Description", record.description.clone());
    }
    put("Usage count", record.usage_count.to_string());
    if record.last_used_at.is_some() {
        put("Last used", time(&record.last_used_at));
    }
    if !record.record_type.is_empty() {
        put("Type", record.record_type.clone());
    }
    table(&lines) + "\n"
}

fn summary(records: &[pb::UsageRecord]) -> Vec<Vec<String>> {
    let sum = |keep: &dyn Fn(&&pb::UsageRecord) -> bool| records.iter().filter(keep).map(|record| record.size.max(0)).sum::<i64>();
    let (total, reclaimable, shared) = (sum(&|_| true), sum(&|record| !record.in_use), sum(&|record| record.shared));
    let line = |key: &str, count: i64| vec![key.to_owned(), bytes(count)];
    let mut lines = Vec::new();
    if shared > 0 {
        lines.extend([line("Shared:", shared), line("Private:", total - shared)]);
    }
    lines.extend([line("Reclaimable:", reclaimable), line("Total:", total)]);
    lines
}

pub fn time(at: &Option<Timestamp>) -> String {
    at.as_ref().map_or_else(String::new, |at| oci::Timestamp::from_unix(at.seconds, at.nanos.max(0) as u32).to_string())
}

fn as_json(record: &pb::UsageRecord) -> Value {
    let last_used = record.last_used_at.as_ref().map(|_| time(&record.last_used_at));
    json!({
        "id": record.id, "mutable": record.mutable, "inUse": record.in_use, "size": record.size, "createdAt": time(&record.created_at),
        "lastUsedAt": last_used, "usageCount": record.usage_count, "parents": record.parents, "description": record.description,
        "recordType": record.record_type, "shared": record.shared,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_and_sums() {
        let record = |id: &str, size, in_use, shared| pb::UsageRecord { id: id.into(), size, in_use, shared, ..Default::default() };
        let records = [record("a", 1000, false, false), record("b", 2_000_000, true, true)];
        let shown = table(&summary(&records));
        assert_eq!(shown, "Shared:\t\t2.00MB\nPrivate:\t1.00kB\nReclaimable:\t1.00kB\nTotal:\t\t2.00MB\n");
        let lines = table(&[header(), row(&records[1])]);
        assert!(lines.starts_with("ID") && lines.contains("\tfalse      \t2.00MB*\t"), "{lines}");
    }
}
