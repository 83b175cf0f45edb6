//! What is there, as users see it.
use std::collections::HashSet;
use std::sync::Weak;
use std::time::{Duration, SystemTime};

use fault::Fault;
use kv::Json;
use oci::Timestamp;
use patterns::Filters;

use crate::LayerId;
use crate::error::Result;
use crate::inventory::distinct;
use crate::node::Node;
use crate::record::{KindRecord, RECORDS, Record, USES, Uses};
use crate::store::Layers;

/// One layer or cell as users see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageRecord {
    pub id: LayerId,
    pub parents: Vec<LayerId>,
    /// A cell.
    pub mutable: bool,
    /// By a handle, or by something on it that is in use.
    pub in_use: bool,
    /// Own disk use in bytes, blobs included; 0 for a cell in use, which may be changing.
    pub size: u64,
    /// Bytes that it has in common with other records and that are counted there.
    pub deduplicated: u64,
    pub created_at: Timestamp,
    pub last_used_at: Option<Timestamp>,
    pub usage_count: u64,
    pub description: String,
    pub record_type: String,
    /// Also kept by another image store.
    pub shared: bool,
}

/// Whose usage is asked for.
#[derive(Debug, Clone, Default)]
pub struct UsageQuery {
    /// Containerd filter texts, any of which may match.
    pub filters: Vec<String>,
    /// Only what was not used for this long.
    pub age_limit: Option<Duration>,
}

impl Layers {
    /// Lists layers and cells. Measures those whose size is not known yet, so it blocks.
    pub fn usage(&self, query: &UsageQuery) -> fault::Result<Vec<UsageRecord>> {
        let filters = parse(&query.filters)?;
        self.measure_queued()?;
        self.write_uses()?;
        let (in_use, now) = (self.in_use(), SystemTime::now());
        let read = self.0.db.read()?;
        // A tree or a blob that several layers have is counted at the first.
        let mut counted: HashSet<String> = HashSet::new();
        let mut list = Vec::new();
        for (key, Json(record)) in read.all(&RECORDS)? {
            let Ok(id) = key.parse::<LayerId>() else { continue };
            let used = self.uses_of(&id)?;
            let mut usage = describe(&id, &record, used, in_use.contains(&id));
            (usage.size, usage.deduplicated) = self.size_of(&record, &mut counted)?;
            if usage.mutable && usage.in_use {
                usage.size = 0;
            }
            if matches(&filters, &usage) && !query.age_limit.is_some_and(|limit| used_within(usage.last_used_at, limit, now)) {
                list.push(usage);
            }
        }
        list.sort_by_key(|usage| (usage.created_at, usage.id));
        Ok(list)
    }

    pub(crate) fn uses_of(&self, id: &LayerId) -> Result<Uses> {
        Ok(self.0.db.get(&USES, id.as_str())?.map_or(Uses::default(), |Json(uses)| uses))
    }

    /// What handles keep, with all below it.
    pub(crate) fn in_use(&self) -> HashSet<LayerId> {
        // The nodes are dropped after the lock: they take it when they go.
        let nodes: Vec<_> = self.live().values().filter_map(Weak::upgrade).collect();
        let mut used = HashSet::new();
        let mut pending: Vec<&std::sync::Arc<Node>> = nodes.iter().filter(|node| node.users() > 0).collect();
        while let Some(node) = pending.pop() {
            if used.insert(node.id) {
                pending.extend(node.parents());
            }
        }
        used
    }

    /// Disk use of a layer's trees and of its blobs that are here, and what of them is counted elsewhere.
    fn size_of(&self, record: &Record, counted: &mut HashSet<String>) -> Result<(u64, u64)> {
        let (mut own, mut elsewhere) = (0, 0);
        for tree in distinct(record) {
            let size = self.size_of_tree(&tree)?;
            let first = counted.insert(tree.to_string());
            own += if first { size.bytes } else { 0 };
            elsewhere += size.shared + if first { 0 } else { size.bytes };
        }
        for blob in &record.blobs {
            let Some(bytes) = self.content().has(&blob.digest)? else { continue };
            let bytes = content::on_disk(bytes);
            if counted.insert(blob.digest.to_string()) { own += bytes } else { elsewhere += bytes }
        }
        Ok((own, elsewhere))
    }
}

/// With sizes of 0: they have to be asked for.
pub(crate) fn describe(id: &LayerId, record: &Record, uses: Uses, in_use: bool) -> UsageRecord {
    UsageRecord {
        id: *id,
        parents: record.kind.parents(),
        mutable: matches!(record.kind, KindRecord::Cell { .. }),
        in_use,
        size: 0,
        deduplicated: 0,
        created_at: record.created,
        last_used_at: uses.last,
        usage_count: uses.count,
        description: record.description.clone(),
        record_type: if record.record_type.is_empty() { "regular".into() } else { record.record_type.clone() },
        shared: false,
    }
}

/// What was never used was not.
pub(crate) fn used_within(last: Option<Timestamp>, limit: Duration, now: SystemTime) -> bool {
    last.is_some_and(|used| now.checked_sub(limit).is_some_and(|cut| used > Timestamp::from(cut)))
}

pub(crate) fn parse(filters: &[String]) -> Result<Filters, Fault> {
    Filters::parse(filters).map_err(|error| Fault::invalid(error.to_string()))
}

pub(crate) fn matches(filters: &Filters, usage: &UsageRecord) -> bool {
    let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let flag = |is: bool| is.then(String::new);
    filters.matches(|path| match path.first().copied()? {
        "id" => text(usage.id.as_str()),
        "parents" => text(&usage.parents.iter().map(LayerId::as_str).collect::<Vec<_>>().join(";")),
        "description" => text(&usage.description),
        "inuse" => flag(usage.in_use),
        "mutable" => flag(usage.mutable),
        "immutable" => flag(!usage.mutable),
        "type" => text(&usage.record_type),
        "shared" => flag(usage.shared),
        "private" => flag(!usage.shared),
        _ => None,
    })
}
