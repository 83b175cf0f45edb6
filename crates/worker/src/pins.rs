//! What sources were pinned to, for provenance.
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use oci::Digest;

/// More vertices than builds that run at once are likely to have; the oldest are forgotten.
const LIMIT: usize = 16 << 10;

/// By vertex: a manifest's digest, a commit, a checksum. Clones are the same.
#[derive(Clone, Default)]
pub struct Pins(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    pins: HashMap<Digest, String>,
    /// Oldest first.
    order: VecDeque<Digest>,
}

impl Pins {
    pub fn put(&self, vertex: &Digest, pin: String) {
        if pin.is_empty() {
            return;
        }
        let mut state = self.0.lock().expect("no holder of this lock panics");
        if state.pins.insert(vertex.clone(), pin).is_none() {
            state.order.push_back(vertex.clone());
        }
        while state.order.len() > LIMIT {
            let oldest = state.order.pop_front().expect("there are more than none");
            state.pins.remove(&oldest);
        }
    }

    pub fn get(&self, vertex: &Digest) -> Option<String> {
        self.0.lock().expect("no holder of this lock panics").pins.get(vertex).cloned()
    }
}
