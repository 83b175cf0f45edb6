//! What the solver remembers between builds: the cache index, with layers for results.
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use cache::Caches;
use layers::Layer;
use solver::{CacheId, KeyId, Link, Record, Store, Target};

use crate::execute::Execute;

pub struct Memory {
    pub caches: Caches,
    pub execute: Arc<dyn Execute>,
}

impl Store for Memory {
    /// `None` is scratch.
    type Result = Option<Layer>;

    fn links(&self, caches: &BTreeSet<CacheId>, from: &KeyId, link: &Link) -> Vec<Target> {
        self.caches.links(caches, from, link)
    }

    fn records(&self, caches: &BTreeSet<CacheId>, key: &KeyId) -> Vec<Record> {
        self.caches.records(caches, key, |id| id.parse().is_ok_and(|id| self.execute.load(&id).is_some()))
    }

    fn connect(&self, from: &KeyId, link: &Link, to: &KeyId) {
        self.caches.local().connect(from, link, to);
    }

    fn save(&self, key: &KeyId, result: &Self::Result) {
        let id = result.as_ref().map_or_else(String::new, |layer| layer.id().to_string());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
        self.caches.local().add(key, &id, i64::try_from(now).unwrap_or(i64::MAX));
    }
}
