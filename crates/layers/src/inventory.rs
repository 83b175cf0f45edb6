//! All records at one moment, in little memory: what is on what, what each keeps on disk, and what deleting it would free.
use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::ControlFlow;

use kv::Json;
use oci::Timestamp;
use snapshot::TreeId;

use crate::LayerId;
use crate::error::Result;
use crate::record::{RECORDS, Record, SIZES, USES, Uses};
use crate::store::Layers;
use crate::usage::{self, UsageRecord};

/// One layer or cell.
pub(crate) struct Item {
    pub parents: Box<[LayerId]>,
    pub created: Timestamp,
    pub uses: Uses,
    /// How long it took to make, in milliseconds.
    pub cost: u64,
    /// Whether the caller's selection wants it.
    pub wanted: bool,
    pub in_use: bool,
    /// Keys of its trees and blobs.
    holds: Box<[u64]>,
}

#[derive(Default)]
pub(crate) struct Inventory {
    items: HashMap<LayerId, Item>,
    holdings: HashMap<u64, Holding>,
    /// How many records are on top of each.
    children: HashMap<LayerId, usize>,
    total: u64,
}

/// A tree or a blob, which several layers may have.
struct Holding {
    bytes: u64,
    holders: usize,
}

impl Inventory {
    /// Reads all records. `wants` sees each without its size. Measures trees that never were, so it blocks.
    pub fn load(home: &Layers, wants: impl Fn(&UsageRecord) -> bool) -> Result<Self> {
        home.write_uses()?;
        let in_use = home.in_use();
        let read = home.0.db.read()?;
        let mut uses: HashMap<LayerId, Uses> = HashMap::new();
        read.each(&USES, b"", |key, Json(used)| {
            uses.extend(key.parse().ok().map(|id: LayerId| (id, used)));
            ControlFlow::Continue(())
        })?;
        let mut sizes: HashMap<TreeId, u64> = HashMap::new();
        read.each(&SIZES, b"", |key, Json(size)| {
            sizes.extend(key.parse().ok().map(|id: TreeId| (id, size.bytes)));
            ControlFlow::Continue(())
        })?;
        let mut inventory = Self::default();
        let mut failure = None;
        read.each(&RECORDS, b"", |key, Json(record)| {
            let Ok(id) = key.parse::<LayerId>() else { return ControlFlow::Continue(()) };
            let used = uses.get(&id).copied().unwrap_or_default();
            let usage = usage::describe(&id, &record, used, in_use.contains(&id));
            match inventory.hold(home, &record, &sizes) {
                Ok(holds) => inventory.add(id, &record, used, holds, wants(&usage), usage.in_use),
                Err(error) => {
                    failure = Some(error);
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        })?;
        failure.map_or(Ok(inventory), Err)
    }

    fn hold(&mut self, home: &Layers, record: &Record, sizes: &HashMap<TreeId, u64>) -> Result<Box<[u64]>> {
        let mut holds = Vec::new();
        for tree in distinct(record) {
            let bytes = match sizes.get(&tree) {
                Some(bytes) => *bytes,
                None => home.size_of_tree(&tree)?.bytes,
            };
            holds.push(self.take(key_of(&tree), bytes));
        }
        for blob in &record.blobs {
            if let Some(bytes) = home.content().has(&blob.digest)? {
                holds.push(self.take(key_of(&blob.digest), content::on_disk(bytes)));
            }
        }
        Ok(holds.into())
    }

    fn take(&mut self, key: u64, bytes: u64) -> u64 {
        let holding = self.holdings.entry(key).or_insert(Holding { bytes, holders: 0 });
        if holding.holders == 0 {
            self.total += bytes;
        }
        holding.holders += 1;
        key
    }

    fn add(&mut self, id: LayerId, record: &Record, uses: Uses, holds: Box<[u64]>, wanted: bool, in_use: bool) {
        let parents: Box<[LayerId]> = record.kind.parents().into();
        for parent in &parents {
            *self.children.entry(*parent).or_insert(0) += 1;
        }
        self.items.insert(id, Item { parents, created: record.created, uses, cost: record.cost, wanted, in_use, holds });
    }

    /// Bytes on disk of all trees and blobs of layers, each once.
    pub fn total(&self) -> u64 {
        self.total
    }

    pub fn get(&self, id: &LayerId) -> Option<&Item> {
        self.items.get(id)
    }

    /// What is wanted, not in use, and has nothing on it.
    pub fn leaves(&self) -> impl Iterator<Item = (&LayerId, &Item)> {
        self.items.iter().filter(|(id, item)| self.is_free(id, item))
    }

    pub fn is_leaf(&self, id: &LayerId) -> bool {
        self.items.get(id).is_some_and(|item| self.is_free(id, item))
    }

    fn is_free(&self, id: &LayerId, item: &Item) -> bool {
        item.wanted && !item.in_use && !self.children.contains_key(id)
    }

    pub fn children(&self, id: &LayerId) -> usize {
        self.children.get(id).copied().unwrap_or(0)
    }

    /// Bytes that go with this layer: of what it shares with no other.
    pub fn freed_by(&self, item: &Item) -> u64 {
        let own = item.holds.iter().filter_map(|key| self.holdings.get(key)).filter(|holding| holding.holders == 1);
        own.map(|holding| holding.bytes).sum()
    }

    /// Someone uses it again.
    pub fn keep(&mut self, id: &LayerId) {
        if let Some(item) = self.items.get_mut(id) {
            item.in_use = true;
        }
    }

    /// Takes a layer out, and returns it with the bytes that went with it.
    pub fn remove(&mut self, id: &LayerId) -> Option<(Item, u64)> {
        let item = self.items.remove(id)?;
        let freed = self.freed_by(&item);
        self.total = self.total.saturating_sub(freed);
        for key in &item.holds {
            if let Some(holding) = self.holdings.get_mut(key) {
                holding.holders -= 1;
                if holding.holders == 0 {
                    self.holdings.remove(key);
                }
            }
        }
        for parent in &item.parents {
            if let Some(count) = self.children.get_mut(parent) {
                *count -= 1;
                if *count == 0 {
                    self.children.remove(parent);
                }
            }
        }
        Some((item, freed))
    }

    /// A tree turned out to have another size than when this was loaded.
    pub fn resize(&mut self, tree: &TreeId, bytes: u64) {
        if let Some(holding) = self.holdings.get_mut(&key_of(tree)) {
            self.total = (self.total + bytes).saturating_sub(holding.bytes);
            holding.bytes = bytes;
        }
    }
}

/// The trees of a record, each once.
pub(crate) fn distinct(record: &Record) -> HashSet<TreeId> {
    record.trees().copied().collect()
}

fn key_of(id: &impl std::fmt::Display) -> u64 {
    let mut hasher = DefaultHasher::new();
    id.to_string().hash(&mut hasher);
    hasher.finish()
}
