use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use crate::batch::Op;

/// Table and key of a change.
type Place = (&'static str, Vec<u8>);
/// The latest value of each changed place; `None` is a deletion.
pub(crate) type Changes = BTreeMap<Place, Option<Arc<[u8]>>>;

/// What is submitted and not committed: a stack of changes, oldest first. The topmost is written to unless a reader holds it.
#[derive(Default, Clone)]
pub(crate) struct Overlay {
    stack: Vec<Arc<Changes>>,
}

/// More than this many are merged when another is added, so that lookups stay short however many readers freeze the overlay.
const DEEPEST: usize = 8;

impl Overlay {
    pub fn is_empty(&self) -> bool {
        self.stack.iter().all(|c| c.is_empty())
    }

    /// `Some(None)` says that the key is deleted, `None` that the engine decides.
    pub fn get(&self, table: &'static str, key: &[u8]) -> Option<Option<Arc<[u8]>>> {
        if self.stack.is_empty() {
            return None;
        }
        let place = (table, key.to_vec());
        self.stack.iter().rev().find_map(|changes| changes.get(&place)).cloned()
    }

    /// The changes within a range of one table.
    pub fn range(&self, table: &'static str, range: (Bound<&[u8]>, Bound<&[u8]>)) -> BTreeMap<Vec<u8>, Option<Arc<[u8]>>> {
        let lower = match range.0 {
            Bound::Included(k) => Bound::Included((table, k.to_vec())),
            Bound::Excluded(k) => Bound::Excluded((table, k.to_vec())),
            Bound::Unbounded => Bound::Included((table, Vec::new())),
        };
        let inside = |key: &[u8]| match range.1 {
            Bound::Included(end) => key <= end,
            Bound::Excluded(end) => key < end,
            Bound::Unbounded => true,
        };
        let mut found = BTreeMap::new();
        for changes in &self.stack {
            let from_start = changes.range((lower.clone(), Bound::Unbounded));
            let within = from_start.take_while(|((t, key), _)| *t == table && inside(key));
            found.extend(within.map(|((_, key), value)| (key.clone(), value.clone())));
        }
        found
    }

    pub fn apply(&mut self, ops: impl IntoIterator<Item = Op>) {
        if self.stack.last_mut().and_then(Arc::get_mut).is_none() {
            if self.stack.len() >= DEEPEST {
                self.merge(0);
            }
            self.stack.push(Arc::default());
        }
        let top = self.stack.last_mut().and_then(Arc::get_mut).expect("the topmost changes were just made sole");
        for op in ops {
            top.insert((op.table, op.key), op.value.map(Arc::from));
        }
    }

    /// Merges everything from `start` up into one.
    fn merge(&mut self, start: usize) {
        let mut merged = Changes::new();
        for changes in self.stack.drain(start..) {
            match Arc::try_unwrap(changes) {
                Ok(mut owned) if merged.is_empty() => std::mem::swap(&mut merged, &mut owned),
                Ok(owned) => merged.extend(owned),
                Err(shared) => merged.extend(shared.iter().map(|(k, v)| (k.clone(), v.clone()))),
            }
        }
        self.stack.push(Arc::new(merged));
    }
}

/// The overlay with the mark of what is being committed.
#[derive(Default)]
pub(crate) struct Pending {
    /// Being committed: below `recent` for readers.
    committing: Option<Arc<Changes>>,
    recent: Overlay,
}

impl Pending {
    pub fn is_empty(&self) -> bool {
        self.committing.is_none() && self.recent.is_empty()
    }

    pub fn apply(&mut self, ops: Vec<Op>) {
        self.recent.apply(ops);
    }

    pub fn get(&self, table: &'static str, key: &[u8]) -> Option<Option<Arc<[u8]>>> {
        self.recent.get(table, key).or_else(|| self.committing.as_ref()?.get(&(table, key.to_vec())).cloned())
    }

    /// Everything pending, unchanging from now on.
    pub fn freeze(&self) -> Overlay {
        let mut stack: Vec<_> = self.committing.iter().cloned().collect();
        stack.extend(self.recent.stack.iter().filter(|c| !c.is_empty()).cloned());
        Overlay { stack }
    }

    /// Takes everything pending for a commit. It stays readable until [`Pending::committed`] or [`Pending::failed`].
    pub fn begin(&mut self) -> Option<Arc<Changes>> {
        debug_assert!(self.committing.is_none(), "one commit at a time");
        if self.recent.is_empty() {
            return None;
        }
        if self.recent.stack.len() > 1 {
            self.recent.merge(0);
        }
        self.committing = self.recent.stack.pop();
        self.committing.clone()
    }

    pub fn committed(&mut self) {
        self.committing = None;
    }

    /// Puts the changes back below what came since.
    pub fn failed(&mut self) {
        if let Some(changes) = self.committing.take() {
            self.recent.stack.insert(0, changes);
        }
    }
}
