//! What the solver remembers: the caches' keys, with results that are layers.
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use cache::Caches;
use layers::{Layer, LayerId};
use solver::{CacheId, KeyId, Link, Record, Store, Target};

use crate::execute::Execute;

/// `None` is scratch.
pub(crate) type Output = Option<Layer>;

#[derive(Clone)]
pub(crate) struct Memory {
    pub caches: Caches,
    pub execute: Arc<dyn Execute>,
}

impl Memory {
    /// The result of a local record, if it is still there.
    pub fn local(&self, id: &str) -> Option<Output> {
        match id {
            "" => Some(None),
            id => id.parse::<LayerId>().ok().and_then(|id| self.execute.load(&id)).map(Some),
        }
    }
}

impl Store for Memory {
    type Result = Output;

    fn links(&self, caches: &BTreeSet<CacheId>, from: &KeyId, link: &Link) -> Vec<Target> {
        self.caches.links(caches, from, link)
    }

    fn records(&self, caches: &BTreeSet<CacheId>, key: &KeyId) -> Vec<Record> {
        self.caches.records(caches, key, |id| self.local(id).is_some())
    }

    fn connect(&self, from: &KeyId, link: &Link, to: &KeyId) {
        self.caches.local().connect(from, link, to);
    }

    fn save(&self, key: &KeyId, result: &Output, created_at: Option<i64>) {
        let id = result.as_ref().map_or_else(String::new, |layer| layer.id().to_string());
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        self.caches.local().add(key, &id, created_at.unwrap_or_else(|| i64::try_from(now()).unwrap_or(i64::MAX)));
    }
}
