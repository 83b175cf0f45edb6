//! `kill -9` in the middle of builds: what was acknowledged is there with its files and blobs, the next start is immediate, and the usage
//! adds up. Needs root, as overlay trees do.
//!
//! The test starts itself as the child that is killed.
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use layers::{Compression, Layer, LayerId, Layers, Properties, Rule, Sharing, UsageQuery};
use progress::Reporter;
use task::Cancel;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    match args.get(1).map(String::as_str) {
        Some("child") => runtime.block_on(child(Path::new(&args[2]))),
        // Asked twice, the second time for ignored ones.
        Some("--list") if args.iter().any(|arg| arg == "--ignored") => {}
        Some("--list") => println!("kill: test"),
        _ => runtime.block_on(parent()),
    }
}

fn open(root: &Path) -> Layers {
    let db = kv::Db::open(&root.join("db"), kv::Options::default()).expect("the database opens");
    let content = content::Store::open(&root.join("content"), db.clone()).expect("the content opens");
    let trees = snapshot::Store::open(&root.join("trees"), snapshot::Options::default()).expect("the trees open");
    Layers::open(db, content, trees).expect("the layers open")
}

/// Builds chains of layers with blobs for ever, uses a cell, prunes now and then, and prints each top layer once it is flushed.
async fn child(root: &Path) {
    let layers = open(root);
    let (cancel, silent) = (Cancel::new(), Reporter::silent());
    for n in 0u64.. {
        let mut below: Option<Layer> = None;
        for depth in 0..4 {
            let mut draft = layers.draft(below.as_ref(), Properties::new(format!("{n}/{depth}"))).expect("a draft");
            let mut editor = draft.editor().expect("an editor");
            let mut file = editor.write_file(format!("/file{depth}"), 0o644).expect("a file");
            file.write_all(format!("{n}/{depth}").repeat(2000).as_bytes()).expect("written");
            drop((file, editor));
            below = Some(draft.commit().expect("committed"));
        }
        let top = below.expect("four layers");
        top.blobs(Compression::default(), &cancel, &silent).await.expect("blobs");
        let cell = layers.cell("cache", None, Sharing::Locked, Properties::new("cell"), &cancel).await.expect("a cell");
        std::fs::write(cell.path().join("counter"), n.to_string()).expect("written");
        drop(cell);
        layers.flush().await.expect("flushed");
        writeln!(std::io::stdout(), "{}", top.id()).expect("the parent reads");
        if n % 3 == 2 {
            let (layers, filter) = (layers.clone(), format!("description~=^{}/", n - 1));
            let rule = Rule { filters: vec![filter], ..Rule::default() };
            task::blocking(move || layers.prune(&[rule], |_| true)).await.expect("pruned");
        }
    }
}

async fn parent() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut rounds = 0;
    for round in 0..8u32 {
        let mut child = Command::new(std::env::current_exe().expect("own path"))
            .args(["child".as_ref(), dir.path().as_os_str()])
            .stdout(Stdio::piped())
            .spawn()
            .expect("child starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut id = || lines.next().map(|line| line.expect("a line").parse().expect("an id"));
        let mut ids: Vec<LayerId> = (0..2 + round).map(|_| id().expect("it goes on for ever")).collect();
        child.kill().expect("kill");
        child.wait().expect("wait");
        // What it said before it heard of that: only the last is never pruned.
        ids.extend(std::iter::from_fn(id));

        let start = Instant::now();
        let layers = open(dir.path());
        let took = start.elapsed();
        // Milliseconds, where nobody else has the disk.
        assert!(took < Duration::from_secs(60), "starting after a kill took {took:?}");
        check(&layers, &ids).await;
        rounds += 1;
    }
    println!("kill: {rounds} rounds");
}

async fn check(layers: &Layers, ids: &[LayerId]) {
    // The last one is never pruned, whatever the child was doing when it was killed.
    let top = layers.get(ids.last().expect("an id")).expect("lookup").expect("it was acknowledged");
    let entries = top.view().expect("realized").read_dir("/").expect("readable");
    assert_eq!(entries.len(), 4);
    for blob in top.blobs(Compression::default(), &Cancel::new(), &Reporter::silent()).await.expect("blobs") {
        let data = layers.content().read(&blob.descriptor.digest).expect("the blob is there");
        assert_eq!(oci::Digest::of(&data), blob.descriptor.digest);
    }
    layers.reconcile().expect("reconciled");
    let usage = layers.usage(&UsageQuery::default()).expect("usage");
    let immutable = usage.iter().filter(|record| !record.mutable).count();
    assert_eq!(layers.trees().trees().expect("trees").len(), immutable, "a tree for each layer, and no other");
    assert!(usage.iter().all(|record| record.size > 0), "{usage:?}");
    for record in &usage {
        if !record.mutable {
            assert!(layers.get(&record.id).expect("lookup").is_some(), "{} is listed but cannot be used", record.id);
        }
    }
}
