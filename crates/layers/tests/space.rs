//! What is on disk is known exactly, and stays below the ceiling. Needs root, as overlay trees do.
#![allow(clippy::unwrap_used)]
mod common;

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Archive, Home, image, pull};
use layers::{Compression, Housekeeping, Layer, Layers, Properties, Rule, Sharing, UsageQuery};
use progress::Reporter;
use task::Cancel;

fn step(layers: &Layers, parent: Option<&Layer>, name: &str, bytes: usize) -> Layer {
    let mut draft = layers.draft(parent, Properties::new(name)).unwrap();
    let mut editor = draft.editor().unwrap();
    editor.write_file(format!("/{name}"), 0o644).unwrap().write_all(&vec![b'x'; bytes]).unwrap();
    drop(editor);
    draft.commit().unwrap()
}

/// Blocks below `root`, each inode once. Files may go meanwhile.
fn disk_use(root: &Path) -> u64 {
    let (mut seen, mut total, mut pending) = (std::collections::HashSet::new(), 0, vec![root.to_owned()]);
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if seen.insert(metadata.ino()) {
                total += metadata.blocks() * 512;
            }
            if metadata.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    total
}

fn files_of(home: &Home) -> u64 {
    disk_use(&home.dir.path().join("trees/trees"))
        + disk_use(&home.dir.path().join("trees/cells"))
        + disk_use(&home.dir.path().join("content/blobs"))
}

/// Within two parts of a hundred, and the directories of the store itself.
fn assert_close(said: u64, found: u64) {
    assert!(said.abs_diff(found) < found / 50 + 20_000, "said {said}, on disk {found}");
}

fn listed(layers: &Layers) -> u64 {
    layers.usage(&UsageQuery::default()).unwrap().iter().map(|usage| usage.size).sum()
}

fn link(layers: &Layers, from: &Layer, names: &[&str], as_name: &str) -> Layer {
    let view = from.view().unwrap();
    let mut draft = layers.draft(None, Properties::new(as_name)).unwrap();
    let mut editor = draft.editor().unwrap();
    for name in names {
        let entry = view.lookup(format!("/{name}"), snapshot::Follow::No).unwrap().unwrap();
        editor.link_file(&entry, format!("/{name}")).unwrap();
    }
    drop(editor);
    draft.commit().unwrap()
}

#[tokio::test]
async fn what_is_counted_is_what_is_on_disk() {
    let home = Home::new();
    let layers = home.open();
    layers.open_account().unwrap();
    let base = step(&layers, None, "base", 3_000_000);
    let top = step(&layers, Some(&base), "top", 1_000_000);
    let copy = link(&layers, &base, &["base"], "copy");
    let again = link(&layers, &base, &["base"], "again");
    let pulled = pull(&layers, &[Archive::default().file("a", &"pulled".repeat(100_000)).end()]).await;
    top.blobs(Compression::default(), &Cancel::new(), &Reporter::silent()).await.unwrap();
    let cell = layers.cell("c", None, Sharing::Shared, Properties::new("cell"), &Cancel::new()).await.unwrap();
    std::fs::write(cell.path().join("f"), vec![1; 500_000]).unwrap();
    drop(cell);

    layers.measure_queued().unwrap();
    assert_close(layers.used().unwrap(), files_of(&home));
    assert_close(listed(&layers), files_of(&home));
    let usage = layers.usage(&UsageQuery::default()).unwrap();
    let of = |name: &str| usage.iter().find(|usage| usage.description == name).unwrap();
    assert!(of("copy").deduplicated >= 3_000_000 && of("copy").size < 100_000, "{:?}", of("copy"));

    // The layer where the file was made goes: those that have it share what it takes.
    drop((top, base, pulled));
    let rule = Rule { filters: vec!["description==top".into(), "description==base".into()], ..Rule::default() };
    let pruning = layers.clone();
    task::blocking(move || pruning.prune(&[rule], |_| true)).await.unwrap();
    layers.trees().empty_trash().unwrap();
    assert_close(layers.used().unwrap(), files_of(&home));
    assert_close(listed(&layers), files_of(&home));
    drop(copy);
    let rule = Rule { filters: vec!["description==copy".into()], ..Rule::default() };
    let pruning = layers.clone();
    task::blocking(move || pruning.prune(&[rule], |_| true)).await.unwrap();
    layers.trees().empty_trash().unwrap();
    assert_close(layers.used().unwrap(), files_of(&home));
    let usage = layers.usage(&UsageQuery::default()).unwrap();
    assert!(usage.iter().any(|usage| usage.description == "again" && usage.size >= 3_000_000), "{usage:?}");

    let used = layers.used().unwrap();
    drop((again, usage));
    layers.flush().await.unwrap();
    let layers = home.open_again(layers);
    layers.open_account().unwrap();
    layers.measure_queued().unwrap();
    assert_eq!(layers.used().unwrap(), used, "known again after a restart");
}

struct House {
    cancel: Cancel,
    task: task::Task<()>,
    gone: Arc<Mutex<Vec<String>>>,
}

impl House {
    fn keep(layers: &Layers, rules: Vec<Rule>) -> Self {
        let (cancel, gone) = (Cancel::new(), Arc::<Mutex<Vec<String>>>::default());
        let (child, log, home) = (cancel.child(), gone.clone(), layers.clone());
        let deleted = Arc::new(move |id: &layers::LayerId| log.lock().unwrap().push(id.to_string()));
        let task = task::spawn("house", async move { home.keep_house(Housekeeping { rules, deleted }, &child).await });
        Self { cancel, task, gone }
    }

    async fn end(self) {
        self.cancel.cancel("the test is over");
        self.task.join().await.unwrap();
    }
}

/// Builds of one chain each, one after the other, far more in all than the ceiling allows.
#[tokio::test(flavor = "multi_thread")]
async fn the_ceiling_holds_while_builds_run() {
    const STEP: u64 = 1_000_000;
    const CEILING: u64 = 8 * STEP;
    let home = Home::new();
    let layers = home.open();
    layers.set_ceiling(CEILING);
    let house = House::keep(&layers, Vec::new());
    let cancel = Cancel::new();
    for build in 0..6 {
        let mut below: Option<Layer> = None;
        for depth in 0..4 {
            let room = layers.room(&cancel).await.unwrap();
            below = Some(step(&layers, below.as_ref(), &format!("b{build}d{depth}"), STEP as usize));
            assert!(files_of(&home) <= CEILING + STEP + 50_000, "{} on disk in build {build}, step {depth}", files_of(&home));
            drop(room);
        }
        let entries = below.expect("four steps").view().unwrap().read_dir("/").unwrap();
        assert_eq!(entries.len(), 4, "nothing that the build holds was taken");
    }
    assert!(house.gone.lock().unwrap().len() >= 6 * 4 - 8);
    // A build that needs more than all of it fails with a clear word, and what it held serves the next.
    let mut held = Vec::new();
    let fault = loop {
        match layers.room(&cancel).await {
            Ok(_room) => held.push(step(&layers, held.last(), &format!("l{}", held.len()), STEP as usize)),
            Err(fault) => break fault,
        }
    };
    assert!(fault.to_string().contains("ceiling"), "{fault}");
    assert_eq!(fault.kind(), fault::Kind::Exhausted);
    assert!(held.len() >= 7, "{}", held.len());
    drop(held);
    drop(layers.room(&cancel).await.unwrap());
    house.end().await;
}

/// Blobs are made of layers that the export holds, so what others left has to go for them.
#[tokio::test(flavor = "multi_thread")]
async fn the_ceiling_holds_while_blobs_are_made() {
    const STEP: u64 = 1_000_000;
    const CEILING: u64 = 20 * STEP;
    let home = Home::new();
    let layers = home.open();
    layers.set_ceiling(CEILING);
    let house = House::keep(&layers, Vec::new());
    for n in 0..9 {
        drop(step(&layers, None, &format!("left{n}"), STEP as usize));
    }
    let mut held: Vec<Layer> = Vec::new();
    for n in 0..9 {
        held.push(step(&layers, held.last(), &format!("held{n}"), STEP as usize));
    }
    let (stop, root) = (Arc::new(std::sync::atomic::AtomicBool::new(false)), home.dir.path().to_owned());
    let watch = {
        let stop = stop.clone();
        std::thread::spawn(move || {
            // What only grows is looked at first: what goes for it afterwards is not counted beside it.
            let parts = ["content/blobs", "trees/cells", "trees/trees"].map(|part| root.join(part));
            let mut most = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                most = most.max(parts.iter().map(|part| disk_use(part)).sum());
            }
            most
        })
    };
    let plain = Compression { kind: layers::CompressionKind::Uncompressed, ..Compression::default() };
    let blobs = held.last().unwrap().blobs(plain, &Cancel::new(), &Reporter::silent()).await.unwrap();
    assert_eq!(blobs.len(), 9);
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let most: u64 = watch.join().unwrap();
    let at_once = 1 + std::thread::available_parallelism().map_or(1, usize::from) as u64;
    assert!(most <= CEILING + at_once * STEP + 100_000, "{most} on disk");
    // 18 layers and what blobs there were when the last began.
    assert!(house.gone.lock().unwrap().len() as u64 >= 8_u64.saturating_sub(at_once));
    house.end().await;
}

/// As exports and looks into results do it, which are no steps.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_unpacked_outside_of_steps_waits_for_room() {
    let home = Home::new();
    let layers = home.open();
    for n in 0..4 {
        drop(step(&layers, None, &format!("left{n}"), 1_000_000));
    }
    let (list, source) = image(&[Archive::default().file("a", &"pulled".repeat(100_000)).end()]);
    let source = Arc::new(source);
    let lazy = layers.from_image(list, source.clone()).unwrap().unwrap();
    layers.set_ceiling(2_000_000);
    let unpacking = {
        let lazy = lazy.clone();
        task::spawn("unpacking", async move { lazy.realize_with_room(&Cancel::new(), &Reporter::silent()).await })
    };
    tokio::time::timeout(Duration::from_millis(200), async {
        while !unpacking.is_finished() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect_err("nobody makes room yet");
    assert_eq!(source.fetches.load(std::sync::atomic::Ordering::SeqCst), 0);

    let house = House::keep(&layers, Vec::new());
    unpacking.join().await.unwrap().unwrap();
    assert_eq!(lazy.view().unwrap().read_dir("/").unwrap().len(), 1);
    assert!(house.gone.lock().unwrap().len() >= 3, "the rest was deleted for it");
    // What is there needs no room.
    house.end().await;
    layers.set_ceiling(1);
    lazy.realize_with_room(&Cancel::new(), &Reporter::silent()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cheap_to_make_goes_first() {
    let home = Home::new();
    let layers = home.open();
    // A slow step that wrote little, on it a quick one that wrote much, and one by itself that wrote next to nothing. That took some time,
    // too, so that the quick one is cheap however long it takes here.
    let mut drafts = ["slow", "small"].map(|name| layers.draft(None, Properties::new(name)).unwrap());
    tokio::time::sleep(Duration::from_millis(300)).await;
    for (draft, (path, bytes)) in drafts.iter_mut().zip([("/slow", 100_000), ("/small", 1000)]) {
        draft.editor().unwrap().write_file(path, 0o644).unwrap().write_all(&vec![0; bytes]).unwrap();
    }
    let [slow, small] = drafts.map(|draft| draft.commit().unwrap());
    drop(step(&layers, Some(&slow), "quick", 3_000_000));
    drop((slow, small));
    layers.set_ceiling(1_000_000);
    let house = House::keep(&layers, Vec::new());
    drop(layers.room(&Cancel::new()).await.unwrap());
    let left: Vec<String> = layers.usage(&UsageQuery::default()).unwrap().into_iter().map(|usage| usage.description).collect();
    assert_eq!(left, ["slow", "small"]);
    house.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_are_applied_by_themselves() {
    let home = Home::new();
    let layers = home.open();
    drop(step(&layers, None, "old", 100_000));
    let held = step(&layers, None, "held", 100_000);
    let house = House::keep(&layers, vec![Rule { max_used_space: 1, ..Rule::default() }]);
    let waited = async {
        while house.gone.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), waited).await.expect("garbage is collected a second after the start");
    let left: Vec<String> = layers.usage(&UsageQuery::default()).unwrap().into_iter().map(|usage| usage.description).collect();
    assert_eq!(left, ["held"]);
    drop(held);
    house.end().await;
}
