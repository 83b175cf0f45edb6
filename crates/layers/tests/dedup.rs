//! Equal files of different layers share storage. Needs root, as overlay trees do.
#![allow(clippy::unwrap_used)]
mod common;

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use common::Home;
use layers::{Compression, Layer, Layers, Properties, Rule, UsageQuery};
use progress::Reporter;
use task::Cancel;

const FILES: usize = 200;
const SIZE: usize = 16 << 10;
const OLD: std::time::SystemTime = std::time::SystemTime::UNIX_EPOCH;

fn write(path: &Path, data: &[u8], when: Duration) {
    std::fs::write(path, data).unwrap();
    std::fs::File::options().write(true).open(path).unwrap().set_modified(OLD + when).unwrap();
}

fn content(file: usize, version: usize) -> Vec<u8> {
    (0..SIZE).map(|at| (at * 31 + file * 7 + version * 13 + at / 251) as u8).collect()
}

/// A layer of files with fixed times, as an unpacked archive or an installed package has them; `changed` gives other versions.
fn variant(layers: &Layers, name: &str, changed: impl Fn(usize) -> usize) -> Layer {
    let draft = layers.draft(None, Properties::new(name)).unwrap();
    for dir in 0..10 {
        std::fs::create_dir(draft.own_files().join(format!("d{dir}"))).unwrap();
    }
    for file in 0..FILES {
        let path = draft.own_files().join(format!("d{}/f{file}", file % 10));
        write(&path, &content(file, changed(file)), Duration::from_secs(1000 + file as u64));
    }
    draft.commit().unwrap()
}

fn size_of(layers: &Layers, name: &str) -> (u64, u64) {
    let usage = layers.usage(&UsageQuery::default()).unwrap();
    let record = usage.iter().find(|usage| usage.description == name).unwrap();
    (record.size, record.deduplicated)
}

fn file(layer: &Layer, path: &str) -> std::fs::Metadata {
    let entry = layer.view().unwrap().lookup(path, snapshot::Follow::No).unwrap().unwrap();
    std::fs::metadata(entry.real_path()).unwrap()
}

/// The bar: variants that differ from each other in one file of twenty take less than half as much again as one of them.
#[tokio::test]
async fn twenty_variants_take_little_more_than_one() {
    let home = Home::new();
    let layers = home.open();
    let mut ids = Vec::new();
    for number in 0..20 {
        // Each changes one file of forty, so any two differ in one of twenty.
        ids.push(variant(&layers, &format!("v{number}"), |file| if number > 0 && file % 40 == number % 40 { number } else { 0 }).id());
        layers.measure_queued().unwrap();
        layers.deduplicate(Duration::from_secs(60)).unwrap();
    }
    let one = size_of(&layers, "v0").0;
    let total: u64 = layers.usage(&UsageQuery::default()).unwrap().iter().map(|usage| usage.size).sum();
    // The directories and records of twenty layers weigh more beside 3 MB than they would beside 200.
    let bound = one * 3 / 2 + 20 * 16 * 4096;
    assert!(total < bound, "{total} for all, {one} for one");
    let (own, elsewhere) = size_of(&layers, "v7");
    assert!(own < one / 8 && elsewhere > one * 9 / 10, "{own} of its own, {elsewhere} in common");
    for (number, id) in ids.iter().enumerate() {
        let layer = layers.get(id).unwrap().unwrap();
        for index in 0..FILES {
            let version = if number > 0 && index % 40 == number % 40 { number } else { 0 };
            let entry = layer.view().unwrap().lookup(format!("/d{}/f{index}", index % 10), snapshot::Follow::No).unwrap().unwrap();
            assert_eq!(std::fs::read(entry.real_path()).unwrap(), content(index, version), "{number} {index}");
        }
    }
    // The one where the files were made goes: nothing is lost, and the rest adds up.
    let pruning = layers.clone();
    let rule = Rule { filters: vec!["description==v0".into()], ..Rule::default() };
    task::blocking(move || pruning.prune(&[rule], |_| true)).await.unwrap();
    let after: u64 = layers.usage(&UsageQuery::default()).unwrap().iter().map(|usage| usage.size).sum();
    assert!(after < total && after > one, "{after}");
    assert_eq!(layers.used().unwrap(), after);
}

#[tokio::test]
async fn only_what_nobody_can_tell_apart_is_linked() {
    let home = Home::new();
    let layers = home.open();
    let make = |name: &str, files: &[(&str, &[u8], u64, u32)]| {
        let draft = layers.draft(None, Properties::new(name)).unwrap();
        for (path, data, time, mode) in files {
            let path = draft.own_files().join(path);
            write(&path, data, Duration::from_secs(*time));
            std::os::unix::fs::chown(&path, Some(0), Some(0)).unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(*mode)).unwrap();
        }
        draft.commit().unwrap()
    };
    let data = vec![7; 40_000];
    let mut other = data.clone();
    other[39_999] = 8;
    let first =
        make("first", &[("same", &data, 1, 0o644), ("time", &data, 2, 0o644), ("mode", &data, 3, 0o644), ("content", &data, 4, 0o644)]);
    let files: [(&str, &[u8], u64, u32); 6] = [
        ("same", &data, 1, 0o644),
        ("copy of same", &data, 1, 0o644),
        ("time", &data, 20, 0o644),
        ("mode", &data, 3, 0o600),
        ("content", &other, 4, 0o644),
        ("moved", &data, 2, 0o644),
    ];
    let second = make("second", &files);
    let before: Vec<_> = files.iter().map(|(name, ..)| file(&second, &format!("/{name}"))).collect();
    let dir = file(&second, "/");
    let blobs = |layer: Layer| async move {
        layer.blobs(Compression::default(), &Cancel::new(), &Reporter::silent()).await.unwrap()[0].diff_id.clone()
    };
    layers.measure_queued().unwrap();
    assert!(!layers.deduplicate(Duration::from_secs(60)).unwrap());
    assert_ne!(file(&first, "/same").ino(), file(&second, "/same").ino(), "not while anybody holds it");
    let (first_id, second_id) = (first.id(), second.id());
    drop((first, second));
    layers.deduplicate(Duration::from_secs(60)).unwrap();
    let (first, second) = (layers.get(&first_id).unwrap().unwrap(), layers.get(&second_id).unwrap().unwrap());
    let ino = |layer: &Layer, path: &str| file(layer, path).ino();
    assert_eq!(ino(&first, "/same"), ino(&second, "/same"));
    assert_eq!(ino(&first, "/time"), ino(&second, "/moved"));
    for path in ["/time", "/mode", "/content"] {
        assert_ne!(ino(&first, path), ino(&second, path), "{path}");
    }
    assert_ne!(ino(&second, "/same"), ino(&second, "/copy of same"), "never twice in one layer");
    for ((name, data, ..), before) in files.iter().zip(before) {
        let now = file(&second, &format!("/{name}"));
        assert_eq!((now.mode(), now.uid(), now.mtime(), now.size()), (before.mode(), before.uid(), before.mtime(), before.size()));
        let entry = second.view().unwrap().lookup(format!("/{name}"), snapshot::Follow::No).unwrap().unwrap();
        assert_eq!(std::fs::read(entry.real_path()).unwrap(), *data);
    }
    let now = file(&second, "/");
    assert_eq!((now.mtime(), now.mtime_nsec()), (dir.mtime(), dir.mtime_nsec()));
    let again = make("second, untouched", &files);
    // The root's own time is the only thing in the archive that may differ, and it is not in it.
    assert_eq!(blobs(second).await, blobs(again).await, "the archive is the same");
}
