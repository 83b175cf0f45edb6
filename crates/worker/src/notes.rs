//! What becomes known of vertices while they run, for provenance.
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use oci::Digest;

/// More vertices than builds that run at once are likely to have; the oldest are forgotten.
const LIMIT: usize = 16 << 10;

/// One note for each vertex. Clones are the same.
pub struct Notes<T>(Arc<Mutex<State<T>>>);

struct State<T> {
    limit: usize,
    notes: HashMap<Digest, T>,
    /// Oldest first.
    order: VecDeque<Digest>,
}

impl<T> Clone for Notes<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for Notes<T> {
    fn default() -> Self {
        Self::with_limit(LIMIT)
    }
}

impl<T> Notes<T> {
    /// The oldest of more notes are forgotten.
    pub fn with_limit(limit: usize) -> Self {
        Self(Arc::new(Mutex::new(State { limit, notes: HashMap::new(), order: VecDeque::new() })))
    }
}

impl<T: Clone> Notes<T> {
    pub fn put(&self, vertex: &Digest, note: T) {
        let mut state = self.0.lock().expect("no holder of this lock panics");
        if state.notes.insert(vertex.clone(), note).is_none() {
            state.order.push_back(vertex.clone());
        }
        while state.order.len() > state.limit {
            let oldest = state.order.pop_front().expect("there are more than none");
            state.notes.remove(&oldest);
        }
    }

    pub fn get(&self, vertex: &Digest) -> Option<T> {
        self.0.lock().expect("no holder of this lock panics").notes.get(vertex).cloned()
    }
}
