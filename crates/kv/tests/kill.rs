//! `kill -9` in the middle of commits: what was flushed is there, batches are whole and in order, and opening is immediate.
//!
//! The test starts itself as the child that is killed.
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kv::{Batch, Db, Options, Table};

const N: Table<u64, u64> = Table::new("n");
const COPY: Table<u64, Vec<u8>> = Table::new("copy");

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("child") => child(Path::new(&args[2])),
        // Asked twice, the second time for ignored ones.
        Some("--list") if args.iter().any(|arg| arg == "--ignored") => {}
        Some("--list") => println!("kill: test"),
        _ => parent(),
    }
}

/// Writes numbered batches to two tables for ever and prints each number once it is flushed.
fn child(path: &Path) {
    let db = Db::open(path, Options::default()).expect("it works");
    let first = db.read().expect("it works").all(&N).expect("it works").last().map_or(0, |(n, _)| n + 1);
    for n in first.. {
        let mut batch = Batch::new();
        batch.put(&N, &n, &n).put(&COPY, &n, &vec![n as u8; 2000]);
        db.submit(batch);
        if n % 5 == 0 {
            db.flush_blocking().expect("it works");
            writeln!(std::io::stdout(), "{n}").expect("it works");
        }
    }
}

fn parent() {
    let dir = tempfile::tempdir().expect("it works");
    let path = dir.path().join("db");
    let mut acknowledged = None;
    for round in 0..12u64 {
        let mut child = Command::new(std::env::current_exe().expect("it works"))
            .args(["child".as_ref(), path.as_os_str()])
            .stdout(Stdio::piped())
            .spawn()
            .expect("it works");
        let lines = BufReader::new(child.stdout.take().expect("it works")).lines();
        for line in lines.take(3 + round as usize * 2) {
            acknowledged = Some(line.expect("it works").parse::<u64>().expect("it works"));
        }
        child.kill().expect("it works");
        child.wait().expect("it works");

        let start = Instant::now();
        let db = Db::open(&path, Options::default()).expect("it works");
        let took = start.elapsed();
        // Milliseconds, where nobody else has the disk.
        assert!(took < Duration::from_secs(60), "opening after a kill took {took:?}");
        let (numbers, copies) = {
            let read = db.read().expect("it works");
            (read.all(&N).expect("it works"), read.all(&COPY).expect("it works"))
        };
        let last = numbers.last().map(|(n, _)| *n);
        assert!(last >= acknowledged, "round {round}: flushed {acknowledged:?}, found {last:?}");
        assert!(numbers.iter().enumerate().all(|(i, (n, v))| i as u64 == *n && n == v), "in order, without holes");
        assert_eq!(numbers.len(), copies.len(), "batches are whole");
    }
    println!("kill: 12 rounds, {} batches flushed", acknowledged.expect("it works"));
}
