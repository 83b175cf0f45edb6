use std::ops::ControlFlow;

use kv::{Db, Table};
use oci::Digest;
use solver::{KeyId, Link};

use crate::tables::{self, BACKLINKS, KEYS, LINKS, RESULTS};
use crate::{Entry, KeyStore, Origin};

/// The local cache's index. Clones are the same index.
#[derive(Clone)]
pub struct Index {
    pub(crate) db: Db,
}

impl Index {
    pub fn new(db: Db) -> Self {
        Self { db }
    }

    /// Adds a link, unless it is there or one of the keys is a session's own.
    pub fn connect(&self, from: &KeyId, link: &Link, to: &KeyId) {
        if from.is_random() || to.is_random() {
            return;
        }
        let (place, target) = (tables::link(from, link), to.to_string());
        if lines(&self.db, &LINKS, &place).lines().any(|l| l == target) {
            return;
        }
        self.change("add a link to", |update| {
            if let Some(targets) = tables::with_line(update.get(&LINKS, place.as_str())?, &target) {
                update.put(&LINKS, place.as_str(), &targets);
            }
            if let Some(origins) = tables::with_line(update.get(&BACKLINKS, target.as_str())?, &place) {
                update.put(&BACKLINKS, target.as_str(), &origins);
            }
            Ok(())
        });
    }

    /// Adds a result to a key. `created_at` is in Unix nanoseconds; a result that the key has keeps the time it has.
    pub fn add(&self, key: &KeyId, result: &str, created_at: i64) {
        if key.is_random() {
            return;
        }
        let key = key.to_string();
        self.change("add a result to", |update| {
            let entries: String = update.get(&RESULTS, key.as_str())?.unwrap_or_default();
            if entries.lines().filter_map(tables::parse_entry).any(|e| e.result == result) {
                return Ok(());
            }
            let line = tables::entry(&Entry { result: result.to_owned(), created_at });
            let entries = if entries.is_empty() { line } else { format!("{entries}\n{line}") };
            update.put(&RESULTS, key.as_str(), &entries);
            if result.is_empty() {
                return Ok(()); // scratch is never pruned
            }
            if let Some(keys) = tables::with_line(update.get(&KEYS, result)?, &key) {
                update.put(&KEYS, result, &keys);
            }
            Ok(())
        });
    }

    /// The keys that have a result; not kept for scratch.
    pub fn keys_of(&self, result: &str) -> Vec<KeyId> {
        lines(&self.db, &KEYS, result).lines().filter_map(tables::key).collect()
    }

    /// Whether a vertex with that cache map was ever recorded, whatever its inputs were. Reads through all that is recorded.
    pub fn has_recorded(&self, map: &Digest) -> bool {
        let mut found = false;
        let looked = self.db.read().and_then(|reader| {
            reader.each(&LINKS, b"", |place: String, _: String| {
                found = tables::parse_link(&place).is_some_and(|(_, link)| link.digest == *map);
                if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
        });
        if let Err(error) = looked {
            tracing::warn!(%error, "could not read the cache index");
        }
        found
    }

    /// A cache that cannot be written is a slower cache, not a failed build.
    pub(crate) fn change(&self, what: &str, work: impl FnOnce(&mut kv::Update<'_>) -> kv::Result<()>) {
        if let Err(error) = self.db.update(work) {
            tracing::warn!(%error, "could not {what} the cache index");
        }
    }
}

impl KeyStore for Index {
    fn links(&self, from: &KeyId, link: &Link) -> Vec<KeyId> {
        if from.is_random() {
            return Vec::new();
        }
        lines(&self.db, &LINKS, &tables::link(from, link)).lines().filter_map(tables::key).collect()
    }

    fn results(&self, key: &KeyId) -> Vec<Entry> {
        lines(&self.db, &RESULTS, &key.to_string()).lines().filter_map(tables::parse_entry).collect()
    }

    fn origins(&self, key: &KeyId) -> Vec<Origin> {
        let origin = |(from, link): (KeyId, Link)| {
            let record = KeyId::root(&link.digest, link.output).digest().clone();
            Origin { from, input: link.input, selector: link.selector, record }
        };
        lines(&self.db, &BACKLINKS, &key.to_string()).lines().filter_map(tables::parse_link).map(origin).collect()
    }
}

pub(crate) fn lines(db: &Db, table: &Table<str, String>, key: &str) -> String {
    match db.get(table, key) {
        Ok(value) => value.unwrap_or_default(),
        Err(error) => {
            tracing::warn!(%error, "could not read the cache index");
            String::new()
        }
    }
}
