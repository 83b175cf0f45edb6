use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, RwLock};

use oci::Digest;
use solver::{CacheId, KeyId, Link, Record, Target};

use crate::{Entry, Import, Index, KeyStore, Origin};

/// The local index and the caches that builds brought with them. Clones are the same.
#[derive(Clone)]
pub struct Caches {
    local: Index,
    imported: Arc<RwLock<Imported>>,
}

#[derive(Default)]
struct Imported {
    stores: BTreeMap<CacheId, Arc<dyn Import>>,
    next: u32,
}

impl From<Index> for Caches {
    fn from(local: Index) -> Self {
        Self::new(local)
    }
}

impl Caches {
    pub fn new(local: Index) -> Self {
        Self { local, imported: Arc::default() }
    }

    pub fn local(&self) -> &Index {
        &self.local
    }

    /// An id that no cache has.
    pub fn reserve(&self) -> CacheId {
        let mut imported = self.imported.write().expect("no holder of this lock panics");
        imported.next += 1;
        CacheId(imported.next)
    }

    /// Adds a cache, to be looked into by vertices that name it.
    pub fn add(&self, store: Arc<dyn Import>) -> CacheId {
        let mut imported = self.imported.write().expect("no holder of this lock panics");
        imported.next += 1;
        let id = CacheId(imported.next);
        imported.stores.insert(id, store);
        id
    }

    pub fn remove(&self, id: CacheId) {
        self.imported.write().expect("no holder of this lock panics").stores.remove(&id);
    }

    pub fn import(&self, id: CacheId) -> Option<Arc<dyn Import>> {
        self.imported.read().expect("no holder of this lock panics").stores.get(&id).cloned()
    }

    fn named(&self, ids: &BTreeSet<CacheId>) -> impl Iterator<Item = (CacheId, Arc<dyn Import>)> {
        ids.iter().filter_map(|id| Some((*id, self.import(*id)?)))
    }

    /// Where a link leads, as the local index and the named caches know it.
    pub fn links(&self, caches: &BTreeSet<CacheId>, from: &KeyId, link: &Link) -> Vec<Target> {
        let mut targets: Vec<Target> = self.local.links(from, link).into_iter().map(|id| Target { id, local: true }).collect();
        for (_, store) in self.named(caches) {
            for id in store.links(from, link) {
                if targets.iter().all(|t| t.id != id) {
                    targets.push(Target { id, local: false });
                }
            }
        }
        targets
    }

    /// What leads to a key, as the local index and the named caches know it.
    pub fn origins(&self, caches: &BTreeSet<CacheId>, key: &KeyId) -> Vec<Origin> {
        let mut origins = self.local.origins(key);
        for (_, store) in self.named(caches) {
            for origin in store.origins(key) {
                if !origins.contains(&origin) {
                    origins.push(origin);
                }
            }
        }
        origins
    }

    /// Whether a vertex with that cache map and so many outputs was ever recorded, whatever its inputs were. Reads through all that is recorded.
    pub fn has_recorded(&self, caches: &BTreeSet<CacheId>, map: &Digest, outputs: u32) -> bool {
        let records: Vec<Digest> = (0..outputs).map(|output| KeyId::root(map, output).digest().clone()).collect();
        self.named(caches).any(|(_, store)| store.has_recorded(&records)) || self.local.has_recorded(map)
    }

    /// The results of a key. `exists` says whether a result of the local index is still there.
    pub fn records(&self, caches: &BTreeSet<CacheId>, key: &KeyId, exists: impl Fn(&str) -> bool) -> Vec<Record> {
        let record = |cache| move |Entry { result, created_at }| Record { cache, id: result, created_at };
        let local = self.local.results(key).into_iter().filter(|e| e.result.is_empty() || exists(&e.result));
        let mut records: Vec<Record> = local.map(record(CacheId::LOCAL)).collect();
        for (id, store) in self.named(caches) {
            records.extend(store.results(key).into_iter().map(record(id)));
        }
        records
    }
}
