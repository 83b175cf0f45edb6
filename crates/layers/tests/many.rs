//! A store of very many records answers as one of few. `KILN_TEST_RECORDS=100000`, built for release, is the bar.
mod common;

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::Home;
use layers::{Layer, LayerId, Layers, Properties, Rule};

fn records() -> usize {
    std::env::var("KILN_TEST_RECORDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3000)
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

fn main() {
    let asked = |what: &str| std::env::args().any(|arg| arg == what);
    if asked("--list") {
        // Asked twice, the second time for ignored ones.
        if !asked("--ignored") {
            println!("many: test");
        }
        return;
    }
    let count = records();
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

    // Lookups all the while that a thousand records are pruned.
    let stop = Arc::new(AtomicBool::new(false));
    let looking = std::thread::spawn({
        let (layers, ids, stop) = (layers.clone(), ids.clone(), stop.clone());
        move || {
            let mut took = Vec::new();
            let mut at = 0;
            while !stop.load(Ordering::Relaxed) {
                at = (at + 7919) % ids.len();
                let begun = Instant::now();
                drop(layers.get(&ids[at]).unwrap());
                took.push(begun.elapsed());
                std::thread::sleep(Duration::from_micros(200));
            }
            took.sort();
            took
        }
    });
    std::thread::sleep(Duration::from_millis(500));
    let begun = Instant::now();
    let mut gone = 0;
    layers
        .prune(&[Rule::default()], |_| {
            gone += 1;
            gone < 1000
        })
        .unwrap();
    let pruned = begun.elapsed();
    stop.store(true, Ordering::Relaxed);
    let took = looking.join().unwrap();
    let (p99, longest) = (took[took.len() * 99 / 100], *took.last().unwrap());
    println!(
        "{count} records: open {opened:?} (first answer {first:?}), idle +{} kB, {} lookups: p99 {p99:?}, longest {longest:?} while {gone} were pruned in {pruned:?}",
        idle / 1024,
        took.len()
    );
    assert_eq!(gone, 1000);
    // Loose where the machine is shared and the build is not optimized; the figures are printed.
    assert!(opened < Duration::from_millis(500), "{opened:?}");
    assert!(p99 < Duration::from_millis(10), "{p99:?}");
    assert!(longest < Duration::from_millis(250), "{longest:?}");
    assert!(idle < 40 << 20, "{idle} bytes");
}
