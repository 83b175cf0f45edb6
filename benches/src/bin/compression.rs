//! How block compression scales: the same layer's worth of bytes with one, two, four and eight threads, up to the machine's cores at least. With more threads
//! than cores there must be no loss; the digest shows that the result is the same.
//!
//! `cargo run --release -p kiln-benches --bin compression [MEGABYTES]`
#![allow(clippy::unwrap_used)]
use std::time::Instant;

use layers::{Compression, CompressionKind, CompressionRoom};

const ROUNDS: usize = 3;

fn main() {
    let megabytes = std::env::args().nth(1).map_or(128, |text| text.parse().expect("a number of megabytes"));
    let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads: Vec<usize> = std::iter::successors(Some(1), |n| Some(n * 2)).take_while(|n| *n <= cores.max(8)).collect();
    println!("{cores} cores");
    println!("{:<10}{:<10}{:>10}{:>10}{:>10}{:>8}  digest", "input", "format", "threads", "MB/s", "speed-up", "size");
    for (name, block) in [("text", text()), ("noise", noise())] {
        for kind in [CompressionKind::Gzip, CompressionKind::Zstd] {
            let mut alone = 0.0;
            for &threads in &threads {
                let rounds = (0..ROUNDS).map(|_| compress(&runtime, &block, megabytes, kind, threads));
                let Done { rate, size, digest } = rounds.max_by(|a, b| a.rate.total_cmp(&b.rate)).unwrap();
                alone = if threads == 1 { rate } else { alone };
                let share = size as f64 / (megabytes << 20) as f64 * 100.0;
                println!(
                    "{name:<10}{:<10}{threads:>10}{rate:>10.0}{:>9.2}x{share:>7.1}%  {}",
                    kind.name(),
                    rate / alone,
                    &digest.hex()[..12]
                );
            }
        }
    }
}

struct Done {
    /// Megabytes of input a second.
    rate: f64,
    /// Bytes of output.
    size: u64,
    digest: oci::Digest,
}

fn compress(runtime: &tokio::runtime::Runtime, block: &[u8], megabytes: usize, kind: CompressionKind, threads: usize) -> Done {
    let block = block.to_vec();
    let produce = move |out: &mut dyn std::io::Write| Ok((0..megabytes).try_for_each(|_| out.write_all(&block))?);
    let compression = Compression { kind, ..Compression::default() };
    let begun = Instant::now();
    let done = runtime.block_on(layers::compress(compression, CompressionRoom::new(threads), Output::default(), produce)).unwrap();
    let Output { size, hasher } = done.out;
    Done { rate: megabytes as f64 / begun.elapsed().as_secs_f64(), size, digest: hasher.finish() }
}

/// Hashed, as a blob is.
#[derive(Default)]
struct Output {
    size: u64,
    hasher: oci::Hasher,
}

impl std::io::Write for Output {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.size += data.len() as u64;
        self.hasher.update(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
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
