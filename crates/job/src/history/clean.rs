//! Which records go.
use std::time::{Duration, SystemTime};

use super::record::Record;

/// A record goes once it is beyond the newest `entries` and older than `age`; pinned ones stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    pub age: Duration,
    pub entries: usize,
}

impl Default for Retention {
    fn default() -> Self {
        Self { age: Duration::from_secs(48 * 3600), entries: 50 }
    }
}

impl Retention {
    /// The references of those that go.
    pub(super) fn expired(self, mut records: Vec<Record>, now: SystemTime) -> Vec<String> {
        records.retain(|record| !record.pinned);
        records.sort_by_key(|record| std::cmp::Reverse(record.completed_at));
        let is_old = |record: &Record| {
            let age = record.completed_at.and_then(|at| now.duration_since(at).ok());
            age.is_some_and(|age| age > self.age)
        };
        records.into_iter().skip(self.entries).filter(is_old).map(|record| record.reference).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_both_old_and_beyond_the_newest_goes() {
        let now = SystemTime::now();
        let record = |name: &str, hours: u64, pinned| {
            let at = now - Duration::from_secs(hours * 3600);
            Record { completed_at: Some(at), pinned, ..Record::begun(name) }
        };
        let records = vec![
            record("old", 60, false),
            record("young", 1, false),
            record("pinned", 90, true),
            record("oldest", 70, false),
            record("older", 65, false),
        ];
        let expired = |entries, hours: u64| Retention { entries, age: Duration::from_secs(hours * 3600) }.expired(records.clone(), now);
        assert_eq!(expired(2, 48), ["older", "oldest"]);
        assert_eq!(expired(2, 66), ["oldest"]);
        assert_eq!(expired(0, 48), ["old", "older", "oldest"]);
        assert!(expired(4, 0).is_empty());
    }
}
