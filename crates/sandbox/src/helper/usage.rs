//! What a container uses of the machine, read while it runs and when it has ended.
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::Timespec;
use serde::{Deserialize, Serialize};

/// What the kernel counted for a container until then: files of its cgroup by their names, of v2 or v1, and [`NET`] if it has a network of its own.
/// What the kernel does not count is not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    pub time: SystemTime,
    pub files: BTreeMap<String, String>,
}

/// The sums over all interfaces but the loopback, as lines of a name (`rx_bytes` and the like) and a number.
pub const NET: &str = "net";
const NET_NAMES: [&str; 8] = ["rx_bytes", "rx_packets", "rx_errors", "rx_dropped", "tx_bytes", "tx_packets", "tx_errors", "tx_dropped"];
const DEVICES: &str = "/proc/thread-self/net/dev";

/// Between the first samples. In a long step they get further apart.
const INTERVAL: Duration = Duration::from_secs(2);
const MOST: usize = 20;

pub(super) struct Sampler {
    files: Vec<PathBuf>,
    /// What the network had seen before the container: it may have served others.
    before: Option<[u64; 8]>,
    interval: Duration,
    due: Instant,
    taken: Vec<Sample>,
}

impl Sampler {
    /// Reads those of these files that are there, and about the network that this process is in if it is the container's own.
    pub fn new(files: Vec<PathBuf>, own_network: bool) -> Self {
        let before = own_network.then(traffic).flatten();
        Self { files, before, interval: INTERVAL, due: Instant::now() + INTERVAL, taken: Vec::new() }
    }

    /// How long it is until [`Sampler::keep_up`] has something to do.
    pub fn patience(&self) -> Timespec {
        let left = self.due.saturating_duration_since(Instant::now());
        Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
    }

    /// Takes a sample if one is due.
    pub fn keep_up(&mut self) {
        if Instant::now() < self.due {
            return;
        }
        self.taken.extend(self.sample());
        if self.taken.len() > MOST {
            let mut keep = false;
            self.taken.retain(|_| {
                keep = !keep;
                keep
            });
            self.interval *= 2;
        }
        self.due = Instant::now() + self.interval;
    }

    /// All samples, with one of now.
    pub fn finish(mut self) -> Vec<Sample> {
        self.taken.extend(self.sample());
        self.taken
    }

    /// `None` if nothing is counted.
    fn sample(&self) -> Option<Sample> {
        let named = |path: &PathBuf| Some((path.file_name()?.to_str()?.to_owned(), read(path)?));
        let mut files: BTreeMap<String, String> = self.files.iter().filter_map(named).collect();
        if let (Some(before), Some(now)) = (self.before, traffic()) {
            let lines = NET_NAMES
                .iter()
                .zip(now.iter().zip(before))
                .map(|(name, (now, before))| format!("{name} {}\n", now.saturating_sub(before)));
            files.insert(NET.to_owned(), lines.collect());
        }
        (!files.is_empty()).then(|| Sample { time: SystemTime::now(), files })
    }
}

/// At once: such files say nothing of their size.
fn read(path: &Path) -> Option<String> {
    let mut buffer = [0; 4096];
    let length = File::open(path).ok()?.read(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn traffic() -> Option<[u64; 8]> {
    Some(sums(&std::fs::read_to_string(DEVICES).ok()?))
}

/// Of a table of interfaces as in `/proc/net/dev`, two lines of which are its head.
fn sums(table: &str) -> [u64; 8] {
    let mut sums = [0; 8];
    for (name, counts) in table.lines().skip(2).filter_map(|line| line.trim_start().split_once(':')) {
        let counts: Vec<u64> = counts.split_whitespace().map(|count| count.parse().unwrap_or_default()).collect();
        if name == "lo" || counts.len() < 16 {
            continue;
        }
        // Four of what came, and behind four of no interest, of what went.
        for (sum, count) in sums.iter_mut().zip(counts[..4].iter().chain(&counts[8..12])) {
            *sum += count;
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_summed() {
        let table = "Inter-|   Receive\n face |bytes\n    lo: 9 9 9 9 0 0 0 0 9 9 9 9 0 0 0 0\n  eth0:  10 2 3 4 5 6 7 8 20 22 23 24 0 0 0 0\n\
                     eth1: 1 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0\n";
        assert_eq!(sums(table), [11, 2, 3, 4, 21, 22, 23, 24]);
        assert_eq!(sums(""), [0; 8]);
    }

    #[test]
    fn what_is_there_is_read_and_old_samples_get_sparse() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cpu.stat"), "usage_usec 7\n").unwrap();
        let mut sampler = Sampler::new(vec![dir.path().join("cpu.stat"), dir.path().join("io.stat")], false);
        assert!(sampler.patience().tv_sec <= 2);
        sampler.due += Duration::from_secs(3600);
        sampler.keep_up();
        assert!(sampler.taken.is_empty(), "nothing is due");
        for _ in 0..=MOST {
            sampler.due = Instant::now();
            sampler.keep_up();
        }
        assert_eq!((sampler.taken.len(), sampler.interval), (MOST / 2 + 1, INTERVAL * 2));
        let samples = sampler.finish();
        assert_eq!(samples.last().unwrap().files, BTreeMap::from([("cpu.stat".to_owned(), "usage_usec 7\n".to_owned())]));
        assert!(Sampler::new(Vec::new(), false).finish().is_empty());
    }
}
