//! Caches that are still on their way when a graph is loaded: what needs no cache goes on meanwhile.
use std::collections::BTreeSet;

use crate::Solver;
use crate::event::{MissingOutput, VertexId};
use crate::key::{CacheId, Store};
use crate::state::EdgeId;

impl<S: Store, F: Clone + From<MissingOutput>> Solver<S, F> {
    /// Announces a cache that [`Spec::caches`](crate::Spec::caches) may name before it can be asked. [`Event::Arrived`](crate::Event::Arrived) has to
    /// follow, or what was loaded with it waits for ever.
    pub fn expect(&mut self, cache: CacheId) {
        self.expected.insert(cache, None);
    }

    /// No graph will name an announced cache any more. It must have arrived.
    pub fn dismiss(&mut self, cache: CacheId) {
        self.expected.remove(&cache);
    }

    /// The same caches, with what came of those that were announced and are here.
    pub(crate) fn arrived(&self, caches: &BTreeSet<CacheId>) -> BTreeSet<CacheId> {
        let known = |cache: &CacheId| match self.expected.get(cache) {
            Some(Some(found)) => found.clone(),
            Some(None) | None => BTreeSet::from([*cache]),
        };
        caches.iter().flat_map(known).collect()
    }

    /// Vertices that were there before the announced cache was named do not wait for it; they too may look into it from now on.
    pub(crate) fn cache_arrived(&mut self, cache: CacheId, found: &BTreeSet<CacheId>) {
        let Some(state) = self.expected.get_mut(&cache) else { return };
        *state = Some(found.clone());
        let mut free: Vec<VertexId> = Vec::new();
        for (id, vertex) in &mut self.vertices {
            if vertex.caches.remove(&cache) {
                vertex.caches.extend(found);
            }
            if vertex.awaits.remove(&cache) && vertex.awaits.is_empty() {
                free.push(*id);
            }
        }
        free.sort_unstable(); // the same events give the same commands
        for id in free {
            let edges: Vec<EdgeId> = self.vertices[&id].edges.values().copied().collect();
            for edge in edges {
                let known = self.edge_mut(edge);
                known.changed = (0..known.inputs.len() as u32).collect();
                self.look_at(edge);
            }
        }
    }
}
