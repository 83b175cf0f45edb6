//! How block compression scales: the same layer's worth of bytes with one thread, two, four, up to the machine's cores.
//!
//! `cargo run --release -p kiln-benches --bin compression [MEGABYTES]`
#![allow(clippy::unwrap_used)]
use std::io::Write as _;
use std::time::Instant;

use layers::{CompressionKind, CompressionRoom, Compressor};

const ROUNDS: usize = 3;

fn main() {
    let megabytes = std::env::args().nth(1).map_or(128, |text| text.parse().expect("a number of megabytes"));
    let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads: Vec<usize> = std::iter::successors(Some(1), |n| Some(n * 2)).take_while(|n| *n < cores).chain([cores]).collect();
    println!("{:<10}{:<10}{:>10}{:>10}{:>10}", "input", "format", "threads", "MB/s", "speed-up");
    for (name, block) in [("text", text()), ("noise", noise())] {
        for kind in [CompressionKind::Gzip, CompressionKind::Zstd] {
            let mut alone = 0.0;
            for &threads in &threads {
                let rate = (0..ROUNDS).map(|_| rate(&runtime, &block, megabytes, kind, threads)).fold(0.0, f64::max);
                alone = if threads == 1 { rate } else { alone };
                println!("{name:<10}{:<10}{threads:>10}{rate:>10.0}{:>9.2}x", kind.name(), rate / alone);
            }
        }
    }
}

/// Megabytes a second.
fn rate(runtime: &tokio::runtime::Runtime, block: &[u8], megabytes: usize, kind: CompressionKind, threads: usize) -> f64 {
    let block = block.to_vec();
    runtime.block_on(async move {
        let work = tokio::task::spawn_blocking(move || {
            let begun = Instant::now();
            let mut compressor = Compressor::new(std::io::sink(), kind, None, CompressionRoom::new(threads));
            (0..megabytes).for_each(|_| compressor.write_all(&block).unwrap());
            compressor.finish().unwrap();
            megabytes as f64 / begun.elapsed().as_secs_f64()
        });
        work.await.unwrap()
    })
}

/// A megabyte that compresses as source code does.
fn text() -> Vec<u8> {
    let words =
        ["let ", "value", " = ", "self.", "layers", "()", ";\n", "    ", "if ", "match ", "blob", " {\n", "}\n", "// what ", "digest"];
    let mut state = 0x9e37_79b9u32;
    let mut out = Vec::with_capacity((1 << 20) + 16);
    while out.len() < 1 << 20 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        out.extend_from_slice(words[(state >> 24) as usize % words.len()].as_bytes());
    }
    out.truncate(1 << 20);
    out
}

/// A megabyte with eight random bits in each byte, as what is compressed already has.
fn noise() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let random = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    });
    random.take(1 << 20).collect()
}
