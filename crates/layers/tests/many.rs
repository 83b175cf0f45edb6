//! A store of very many records answers as one of few. `KILN_TEST_RECORDS=100000`, built for release, on a quiet machine, is the bar; without it
//! the figures are printed, and only what does not depend on the machine's speed is held to.
#![allow(clippy::unwrap_used)]
mod common;

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::Home;
use layers::{Layer, LayerId, Layers, Properties, Rule};

/// How many records were asked for.
fn records() -> Option<usize> {
    std::env::var("KILN_TEST_RECORDS").ok().and_then(|text| text.parse().ok())
}

fn fill(layers: &Layers, count: usize) -> Vec<LayerId> {
    let mut draft = layers.draft(None, Properties::new("base")).unwrap();
    draft.editor().unwrap().write_file("/f", 0o644).unwrap().write_all(&[1; 10_000]).unwrap();
    let base = draft.commit().unwrap();
    let other = layers.draft(None, Properties::new("other")).unwrap().commit().unwrap();
    let mut ids = Vec::with_capacity(count);
    for n in 0..count {
        // One in ten has files of its own; the rest are records only.
        let layer: Layer = if n % 10 == 0 {
            layers.draft(Some(&base), Properties::new(format!("step {n}"))).unwrap().commit().unwrap()
        } else {
            layers.diff(Some(&base), Some(&other), Properties::new(format!("RUN step number {n} of very many"))).unwrap()
        };
        ids.push(layer.id());
    }
    ids
}

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

/// A thread that looks layers up and notes how long each look took.
struct Looking {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Vec<Duration>>,
}

impl Looking {
    fn start(layers: &Layers, ids: &[LayerId]) -> Self {
        let (layers, ids, stop) = (layers.clone(), ids.to_vec(), Arc::new(AtomicBool::new(false)));
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            let (mut took, mut at) = (Vec::new(), 0);
            while !told.load(Ordering::Relaxed) {
                at = (at + 7919) % ids.len();
                let begun = Instant::now();
                drop(layers.get(&ids[at]).unwrap());
                took.push(begun.elapsed());
                std::thread::sleep(Duration::from_micros(200));
            }
            took
        });
        Self { stop, thread }
    }

    fn stop_after(self, time: Duration) -> Vec<Duration> {
        std::thread::sleep(time);
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// The time that one of a hundred takes longer than, and the longest.
fn figures(mut took: Vec<Duration>) -> (Duration, Duration) {
    took.sort();
    (took[took.len() * 99 / 100], *took.last().unwrap())
}

fn main() {
    let asked = |what: &str| std::env::args().any(|arg| arg == what);
    if asked("--list") {
        // Asked twice, the second time for ignored ones.
        if !asked("--ignored") {
            println!("many: test");
        }
        return;
    }
    let count = records().unwrap_or(3000);
    let home = Home::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let _entered = runtime.enter();
    let layers = home.open();
    let ids = fill(&layers, count);
    runtime.block_on(layers.flush()).unwrap();
    drop(layers);

    let before = resident();
    let begun = Instant::now();
    let layers = home.open();
    let opened = begun.elapsed();
    drop(layers.get(&ids[0]).unwrap().unwrap());
    let first = begun.elapsed();
    layers.open_account().unwrap();
    layers.measure_queued().unwrap();
    let idle = resident().saturating_sub(before);

    // What the machine does to a thread that only looks up, and then the same while a thousand records are pruned.
    let (quiet99, quiet) = figures(Looking::start(&layers, &ids).stop_after(Duration::from_secs(2)));
    let looking = Looking::start(&layers, &ids);
    let begun = Instant::now();
    let mut gone = 0;
    layers
        .prune(&[Rule::default()], |_| {
            gone += 1;
            gone < 1000
        })
        .unwrap();
    let pruned = begun.elapsed();
    let took = looking.stop_after(Duration::ZERO);
    let answered = took.len();
    let (p99, longest) = figures(took);
    println!(
        "{count} records: open {opened:?} (first answer {first:?}), idle +{} kB; lookups: p99 {quiet99:?}, longest {quiet:?}; {answered} while {gone} were pruned in {pruned:?}: p99 {p99:?}, longest {longest:?}",
        idle / 1024
    );
    assert_eq!(gone, 1000);
    assert!(idle < 40 << 20, "{idle} bytes");
    // Pruning does not keep others out: then there would be one or two.
    assert!(answered > 20, "{answered} lookups while {gone} were pruned in {pruned:?}");
    if records().is_some() {
        assert!(opened < Duration::from_millis(500), "{opened:?}");
        assert!(p99 < Duration::from_millis(10) + 5 * quiet99, "{p99:?}");
        assert!(longest < Duration::from_millis(250) + 5 * quiet, "{longest:?}");
    }
}
