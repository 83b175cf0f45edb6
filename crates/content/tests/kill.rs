//! `kill -9` while blobs come in: what was acknowledged is there and whole, and no blob has bytes that do not match its name.
//!
//! The test starts itself as the child that is killed.
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use content::Store;
use kv::Db;
use oci::Digest;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("child") => child(Path::new(&args[2]), &args[3]),
        // Asked twice, the second time for ignored ones.
        Some("--list") if args.iter().any(|arg| arg == "--ignored") => {}
        Some("--list") => println!("kill: test"),
        _ => parent(),
    }
}

fn open(root: &Path) -> (Db, Store) {
    let db = Db::open(&root.join("db"), kv::Options::default()).expect("the database opens");
    let store = Store::open(root, db.clone()).expect("the store opens");
    (db, store)
}

fn child(root: &Path, seed: &str) {
    let (db, store) = open(root);
    for n in 0u64.. {
        let data = format!("{seed} {n}").repeat(10_000);
        let mut ingest = store.ingest(&format!("{seed} {n}"), None).expect("ingest opens");
        for chunk in data.as_bytes().chunks(8192) {
            ingest.write(chunk).expect("ingest writes");
        }
        let hold = ingest.commit().expect("ingest commits");
        if n % 4 == 0 {
            db.flush_blocking().expect("flush");
            writeln!(std::io::stdout(), "{}", hold.digest()).expect("the parent reads");
        }
    }
}

fn parent() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut acknowledged: Vec<Digest> = Vec::new();
    for round in 0..6 {
        let mut child = Command::new(std::env::current_exe().expect("own path"))
            .args(["child".as_ref(), dir.path().as_os_str(), round.to_string().as_ref()])
            .stdout(Stdio::piped())
            .spawn()
            .expect("child starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        acknowledged.extend(lines.take(3 + round).map(|line| line.expect("a line").parse().expect("a digest")));
        child.kill().expect("kill");
        child.wait().expect("wait");

        let (_db, store) = open(dir.path());
        for digest in &acknowledged {
            assert!(store.has(digest).expect("lookup").is_some(), "{digest} was acknowledged");
        }
        for blob in store.list().expect("list") {
            assert_eq!(Digest::of(store.read(&blob.digest).expect("read")), blob.digest);
        }
    }
    println!("kill: 6 rounds, {} blobs acknowledged", acknowledged.len());
}
