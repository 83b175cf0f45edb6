//! Forgetting results, and the links that lead nowhere without them.
use std::collections::{BTreeSet, VecDeque};
use std::ops::ControlFlow;

use crate::index::{Index, lines};
use crate::tables::{self, BACKLINKS, KEYS, LINKS, RESULTS};

/// How many keys one call looks at for links that lead nowhere. What is left over costs a little space and is found by a later call.
const MOST_KEYS: usize = 10_000;

impl Index {
    /// Forgets results, because what they name is gone. Keys that are then neither a result's nor a step on the way to another key go too,
    /// within a bound.
    pub fn forget<'a>(&self, results: impl IntoIterator<Item = &'a str>) {
        let mut candidates = VecDeque::new();
        for result in results {
            candidates.extend(self.forget_result(result));
        }
        let mut seen = BTreeSet::new();
        while let Some(key) = candidates.pop_front() {
            if seen.len() >= MOST_KEYS {
                return;
            }
            if seen.insert(key.clone()) && self.is_dead_end(&key) {
                let before = self.forget_key(&key);
                // One that was looked at before may be a dead end only now.
                before.iter().for_each(|k| _ = seen.remove(k));
                candidates.extend(before);
            }
        }
    }

    /// Returns the keys that had the result.
    fn forget_result(&self, result: &str) -> Vec<String> {
        let keys: Vec<String> = lines(&self.db, &KEYS, result).lines().map(str::to_owned).collect();
        self.change("forget a result of", |update| {
            for key in &keys {
                let entries: String = update.get(&RESULTS, key.as_str())?.unwrap_or_default();
                let is_other = |line: &str| tables::parse_entry(line).is_some_and(|e| e.result != result);
                match tables::without_lines(&entries, is_other) {
                    Some(entries) => update.put(&RESULTS, key.as_str(), &entries),
                    None => update.delete(&RESULTS, key.as_str()),
                }
            }
            update.delete(&KEYS, result);
            Ok(())
        });
        keys
    }

    /// Whether a key has no result and leads to no other key.
    fn is_dead_end(&self, key: &str) -> bool {
        if !lines(&self.db, &RESULTS, key).is_empty() {
            return false;
        }
        let mut leads_on = false;
        let looked = self.db.read().and_then(|reader| {
            reader.each(&LINKS, format!("{key} ").as_bytes(), |_, _| {
                leads_on = true;
                ControlFlow::Break(())
            })
        });
        looked.is_ok() && !leads_on
    }

    /// Takes out the links that lead to a key, and returns where they came from.
    fn forget_key(&self, key: &str) -> Vec<String> {
        let origins: Vec<String> = lines(&self.db, &BACKLINKS, key).lines().map(str::to_owned).collect();
        self.change("forget a key of", |update| {
            for origin in &origins {
                let targets: String = update.get(&LINKS, origin.as_str())?.unwrap_or_default();
                match tables::without_lines(&targets, |line| line != key) {
                    Some(targets) => update.put(&LINKS, origin.as_str(), &targets),
                    None => update.delete(&LINKS, origin.as_str()),
                }
            }
            update.delete(&BACKLINKS, key);
            Ok(())
        });
        origins.iter().filter_map(|o| o.split(' ').next().map(str::to_owned)).collect()
    }
}
