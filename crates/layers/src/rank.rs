//! Which layers go first.
use std::collections::HashMap;
use std::time::SystemTime;

use oci::Timestamp;

use crate::LayerId;
use crate::inventory::{Inventory, Item};

/// BuildKit's order for its rules: the least recently and least often used first, by the ascending sum of the two ranks, each relative to
/// the highest.
pub(crate) fn least_used(inventory: &Inventory, list: &mut Vec<LayerId>) {
    let item = |id: &LayerId| inventory.get(id);
    let last: Vec<Option<Timestamp>> = list.iter().map(|id| item(id).and_then(|i| i.uses.last)).collect();
    let count: Vec<u64> = list.iter().map(|id| item(id).map_or(0, |i| i.uses.count)).collect();
    let mut by_time: Vec<usize> = (0..list.len()).collect();
    by_time.sort_by_key(|&at| last[at]);
    let mut by_count: Vec<usize> = (0..list.len()).collect();
    by_count.sort_by_key(|&at| count[at]);
    let times = ranks(&by_time, |at| last[at]);
    let counts = ranks(&by_count, |at| Some(count[at]).filter(|&count| count > 0));
    let mut order: Vec<usize> = (0..list.len()).collect();
    order.sort_by(|&a, &b| (times[a] + counts[a]).total_cmp(&(times[b] + counts[b])));
    *list = order.into_iter().map(|at| list[at]).collect();
}

/// Ranks from 1, equal values sharing one, divided by the highest. `None` values have the first rank.
fn ranks<T: PartialEq>(order: &[usize], value: impl Fn(usize) -> Option<T>) -> Vec<f64> {
    let mut ranks = vec![1.0; order.len()];
    let mut rank = 1.0;
    let mut last = None;
    for &at in order {
        let value = value(at);
        if value.is_some() && value != last {
            rank += 1.0;
            last = value;
        }
        ranks[at] = rank;
    }
    ranks.iter().map(|own| own / rank).collect()
}

/// What keeping a layer is worth for each byte that it takes: the time to make it again, more for what is used often, less for what was not
/// used for long. A leaf is judged with those below that only it keeps, where that makes it cheaper: they can go after it.
pub(crate) fn worth(inventory: &Inventory, leaf: &LayerId, now: SystemTime) -> f64 {
    let (mut value, mut bytes, mut best) = (0.0, 0.0, f64::INFINITY);
    let mut at = Some(*leaf);
    for _ in 0..DEEPEST {
        let Some((id, item)) = at.and_then(|id| Some((id, inventory.get(&id)?))) else { break };
        if item.in_use || id != *leaf && inventory.children(&id) > 1 {
            break;
        }
        let size = inventory.freed_by(item);
        value += seconds(item, size) * (1 + item.uses.count) as f64 / (1.0 + idle_hours(item, now));
        bytes += size.max(SMALLEST) as f64;
        best = best.min(value / bytes);
        at = match &*item.parents {
            [parent] => Some(*parent),
            _ => None,
        };
    }
    best
}

/// How far below a leaf is looked.
const DEEPEST: usize = 32;
/// No layer takes less than this: a directory and its record.
const SMALLEST: u64 = 8192;
/// What was pulled or transferred took no time of its own; it comes back at about this rate.
const BYTES_PER_SECOND: f64 = 20e6;

fn seconds(item: &Item, size: u64) -> f64 {
    if item.cost > 0 { item.cost as f64 / 1000.0 } else { 0.01 + size as f64 / BYTES_PER_SECOND }
}

fn idle_hours(item: &Item, now: SystemTime) -> f64 {
    let since = SystemTime::from(item.uses.last.unwrap_or(item.created));
    now.duration_since(since).map_or(0.0, |idle| idle.as_secs_f64() / 3600.0)
}

/// A queue of leaves, the least worth first.
#[derive(Default)]
pub(crate) struct Queue {
    worth: HashMap<LayerId, f64>,
    order: Vec<LayerId>,
}

impl Queue {
    pub fn of_leaves(inventory: &Inventory, now: SystemTime) -> Self {
        let worth: HashMap<LayerId, f64> = inventory.leaves().map(|(id, _)| (*id, worth(inventory, id, now))).collect();
        let mut order: Vec<LayerId> = worth.keys().copied().collect();
        order.sort_by(|a, b| worth[b].total_cmp(&worth[a]).then(b.cmp(a)));
        Self { worth, order }
    }

    pub fn pop(&mut self) -> Option<LayerId> {
        self.order.pop()
    }

    pub fn push(&mut self, id: LayerId, worth: f64) {
        let at = self.order.partition_point(|other| self.worth.get(other).is_some_and(|other| *other > worth));
        self.order.insert(at, id);
        self.worth.insert(id, worth);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_relative() {
        let values = [None, Some(5), Some(5), Some(9)];
        assert_eq!(ranks(&[0, 1, 2, 3], |at| values[at]), [1.0 / 3.0, 2.0 / 3.0, 2.0 / 3.0, 1.0]);
    }
}
