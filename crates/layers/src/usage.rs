use std::collections::{HashMap, HashSet};
use std::sync::Weak;
use std::time::Duration;

use fault::Fault;
use kv::Json;
use oci::Timestamp;
use patterns::Filters;

use crate::LayerId;
use crate::error::{Error, Result};
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

/// All records at one moment.
pub(crate) struct Inventory {
    pub records: HashMap<LayerId, Record>,
    pub uses: HashMap<LayerId, Uses>,
    pub in_use: HashSet<LayerId>,
}

impl Layers {
    /// Lists layers and cells. Measures those whose size is not known yet, so it blocks.
    pub fn usage(&self, query: &UsageQuery) -> fault::Result<Vec<UsageRecord>> {
        let filters = parse(&query.filters)?;
        let inventory = self.inventory()?;
        let mut list = Vec::new();
        for (id, record) in &inventory.records {
            let mut usage = inventory.describe(id, record);
            if !matches(&filters, &usage) || query.age_limit.is_some_and(|limit| usage.used_within(limit)) {
                continue;
            }
            if !(usage.mutable && usage.in_use) {
                usage.size = self.size_of(id, record)?;
            }
            list.push(usage);
        }
        list.sort_by_key(|usage| (usage.created_at, usage.id));
        Ok(list)
    }

    pub(crate) fn inventory(&self) -> Result<Inventory> {
        self.write_uses()?;
        let read = self.0.db.read()?;
        let id = |text: String| text.parse::<LayerId>().ok();
        let records = read.all(&RECORDS)?.into_iter().filter_map(|(key, Json(record))| Some((id(key)?, record)));
        let uses = read.all(&USES)?.into_iter().filter_map(|(key, Json(uses))| Some((id(key)?, uses)));
        let (records, uses) = (records.collect(), uses.collect());
        Ok(Inventory { in_use: self.in_use(), records, uses })
    }

    /// What handles keep, with all below it.
    fn in_use(&self) -> HashSet<LayerId> {
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

    /// Disk use of a layer's tree and of its blobs that are here. Measured once.
    pub(crate) fn size_of(&self, id: &LayerId, record: &Record) -> Result<u64> {
        let tree = match (record.size, record.tree) {
            (Some(size), _) => size,
            (None, None) => 0,
            (None, Some(tree)) => match self.0.trees.usage(&tree) {
                Ok(usage) => {
                    self.remember_size(id, record, usage.bytes)?;
                    usage.bytes
                }
                // Pruned meanwhile.
                Err(snapshot::Error::NoTree { .. }) => 0,
                Err(error) => return Err(error.into()),
            },
        };
        let blobs = record.blobs.iter().map(|blob| Ok(self.0.content.has(&blob.digest)?.unwrap_or(0)));
        Ok(tree + blobs.sum::<Result<u64>>()?)
    }

    fn remember_size(&self, id: &LayerId, measured: &Record, size: u64) -> Result<()> {
        // Bound first: the last reference to a node must not go while the lock is held.
        let node = self.live().get(id).and_then(Weak::upgrade);
        if let Some(node) = node {
            // A cell in use may have been changing.
            let mut state = node.state();
            if state.tree == measured.tree && !matches!(measured.kind, KindRecord::Cell { .. }) {
                state.size = Some(size);
            }
        }
        self.0.db.update(|tx| {
            if let Some(Json(mut record)) = tx.get(&RECORDS, id.as_str())?
                && record.tree == measured.tree
                && record.size.is_none()
            {
                record.size = Some(size);
                tx.put(&RECORDS, id.as_str(), &Json(record));
            }
            Ok::<_, Error>(())
        })
    }
}

impl Inventory {
    /// With size 0: that has to be asked for.
    pub fn describe(&self, id: &LayerId, record: &Record) -> UsageRecord {
        let uses = self.uses.get(id).copied().unwrap_or_default();
        UsageRecord {
            id: *id,
            parents: record.kind.parents(),
            mutable: matches!(record.kind, KindRecord::Cell { .. }),
            in_use: self.in_use.contains(id),
            size: 0,
            created_at: record.created,
            last_used_at: uses.last,
            usage_count: uses.count,
            description: record.description.clone(),
            record_type: if record.record_type.is_empty() { "regular".into() } else { record.record_type.clone() },
            shared: false,
        }
    }
}

impl UsageRecord {
    /// What was never used was not.
    pub(crate) fn used_within(&self, limit: Duration) -> bool {
        let now = std::time::SystemTime::now();
        self.last_used_at.is_some_and(|used| now.checked_sub(limit).is_some_and(|cut| used > Timestamp::from(cut)))
    }
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
