use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex};

/// Remembers the newest few values by key.
pub(crate) struct Memo<K, V> {
    limit: usize,
    state: Mutex<State<K, V>>,
}

struct State<K, V> {
    values: HashMap<K, Arc<V>>,
    /// Oldest first.
    order: VecDeque<K>,
}

impl<K: Clone + Eq + Hash, V> Memo<K, V> {
    pub fn new(limit: usize) -> Self {
        Self { limit, state: Mutex::new(State { values: HashMap::new(), order: VecDeque::new() }) }
    }

    pub fn get(&self, key: &K) -> Option<Arc<V>> {
        self.state.lock().expect("no holder of this lock panics").values.get(key).cloned()
    }

    pub fn put(&self, key: K, value: Arc<V>) {
        let mut dropped = Vec::new();
        let mut state = self.state.lock().expect("no holder of this lock panics");
        match state.values.insert(key.clone(), value) {
            Some(old) => dropped.push(old),
            None => state.order.push_back(key),
        }
        while state.order.len() > self.limit {
            let oldest = state.order.pop_front();
            dropped.extend(oldest.and_then(|oldest| state.values.remove(&oldest)));
        }
        drop(state);
        // Only now: what a value holds may take other locks when it goes.
        drop(dropped);
    }

    pub fn clear(&self) {
        let mut state = self.state.lock().expect("no holder of this lock panics");
        let dropped = (std::mem::take(&mut state.values), std::mem::take(&mut state.order));
        drop(state);
        drop(dropped);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgets_the_oldest() {
        let memo = Memo::new(2);
        for n in 0..4 {
            memo.put(n % 3, Arc::new(n));
        }
        assert_eq!((memo.get(&0).as_deref(), memo.get(&1), memo.get(&2).as_deref()), (Some(&3), None, Some(&2)));
        memo.clear();
        assert!(memo.get(&0).is_none());
    }
}
