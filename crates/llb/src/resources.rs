//! Limits of vertices that several builds share: none may be throttled by another, so the most relaxed value wins.
use std::collections::BTreeSet;

use crate::LinuxResources;

impl LinuxResources {
    pub fn most_relaxed(&self, other: &Self) -> Self {
        let (cpu_period, cpu_quota) = bandwidth((self.cpu_period, self.cpu_quota), (other.cpu_period, other.cpu_quota));
        Self {
            memory: if self.memory == 0 || other.memory == 0 { 0 } else { self.memory.max(other.memory) },
            memory_swap: match (self.memory_swap, other.memory_swap) {
                (0, set) | (set, 0) => set,
                (-1, _) | (_, -1) => -1,
                (a, b) => a.max(b),
            },
            // 0 is the kernel's default here, not more than any other value.
            cpu_shares: self.cpu_shares.max(other.cpu_shares),
            cpu_period,
            cpu_quota,
            cpuset_cpus: union(&self.cpuset_cpus, &other.cpuset_cpus),
            cpuset_mems: union(&self.cpuset_mems, &other.cpuset_mems),
        }
    }
}

/// The pair with the higher share of time; the shorter period if they are equal. A quota of 0 is no limit.
fn bandwidth(a: (u64, i64), b: (u64, i64)) -> (u64, i64) {
    match (a, b) {
        ((_, 0), (_, 0)) => (0, 0),
        ((period, 0), _) | (_, (period, 0)) => (period, 0),
        ((0, qa), (0, qb)) => (0, qa.max(qb)),
        ((0, qa), (_, qb)) => {
            if qa > qb {
                a
            } else {
                b
            }
        }
        ((_, qa), (0, qb)) => {
            if qb > qa {
                b
            } else {
                a
            }
        }
        ((pa, qa), (pb, qb)) => {
            let (share_a, share_b) = (i128::from(qa) * i128::from(pb), i128::from(qb) * i128::from(pa));
            match share_a.cmp(&share_b) {
                std::cmp::Ordering::Greater => a,
                std::cmp::Ordering::Less => b,
                std::cmp::Ordering::Equal => {
                    if pa <= pb {
                        a
                    } else {
                        b
                    }
                }
            }
        }
    }
}

/// The union of two lists such as `0-3,7`; no list is no limit, and one that cannot be read gives way to the other.
fn union(a: &str, b: &str) -> String {
    if a.is_empty() || b.is_empty() {
        return String::new();
    }
    match (numbers(a), numbers(b)) {
        (Some(a), Some(b)) => list(&a.union(&b).copied().collect()),
        (None, Some(_)) => b.to_owned(),
        _ => a.to_owned(),
    }
}

/// More than any machine has, so that a range cannot fill the memory.
const MOST: u32 = 1 << 16;

fn numbers(list: &str) -> Option<BTreeSet<u32>> {
    let mut all = BTreeSet::new();
    for part in list.split(',') {
        let (first, last) = part.trim().split_once('-').unwrap_or((part.trim(), part.trim()));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last > MOST {
            return None;
        }
        all.extend(first..=last);
    }
    Some(all)
}

fn list(numbers: &BTreeSet<u32>) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for n in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *n => *last = *n,
            _ => ranges.push((*n, *n)),
        }
    }
    let text = |(a, b): &(u32, u32)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    ranges.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_relaxed_wins() {
        let a = LinuxResources {
            memory: 5,
            memory_swap: -1,
            cpu_shares: 0,
            cpu_period: 100,
            cpu_quota: 50,
            cpuset_cpus: "0-2,5".into(),
            ..Default::default()
        };
        let b = LinuxResources {
            memory: 0,
            memory_swap: 9,
            cpu_shares: 7,
            cpu_period: 10,
            cpu_quota: 5,
            cpuset_cpus: "3".into(),
            ..Default::default()
        };
        let want = LinuxResources {
            memory: 0,
            memory_swap: -1,
            cpu_shares: 7,
            cpu_period: 10,
            cpu_quota: 5,
            cpuset_cpus: "0-3,5".into(),
            ..Default::default()
        };
        assert_eq!(a.most_relaxed(&b), want);
        assert_eq!(b.most_relaxed(&a), want);
    }

    #[test]
    fn bandwidths() {
        for (a, b, want) in [
            ((100, 0), (0, 0), (0, 0)),
            ((100, 0), (10, 50), (100, 0)),
            ((100, 200), (100, 50), (100, 200)),
            ((100, 100), (50, 60), (50, 60)),
            ((0, 10), (50, 10), (50, 10)),
        ] {
            assert_eq!(bandwidth(a, b), want, "{a:?} {b:?}");
            assert_eq!(bandwidth(b, a), want, "{b:?} {a:?}");
        }
    }

    #[test]
    fn sets_that_cannot_be_read_give_way() {
        assert_eq!(union("x", "1"), "1");
        assert_eq!(union("1", "3-1"), "1");
        assert_eq!(union("0-4294967295", "1"), "1");
        assert_eq!(union("", "1"), "");
    }
}
