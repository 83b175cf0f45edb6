//! The machine loses power: what was not synced is torn or gone, though the database speaks of it. Needs root, as overlay trees do.
#![allow(clippy::unwrap_used)]
mod common;

use std::collections::HashSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use common::Home;
use layers::{Compression, Layer, LayerId, Layers, Properties, UsageQuery};
use progress::Reporter;
use task::Cancel;

fn step(layers: &Layers, parent: Option<&Layer>, name: &str) -> Layer {
    let mut draft = layers.draft(parent, Properties::new(name)).unwrap();
    let mut editor = draft.editor().unwrap();
    editor.write_file("/name", 0o644).unwrap().write_all(name.repeat(3000).as_bytes()).unwrap();
    drop(editor);
    draft.commit().unwrap()
}

fn files(root: &Path) -> Vec<PathBuf> {
    let (mut found, mut pending) = (Vec::new(), vec![root.to_owned()]);
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().unwrap().is_dir() { pending.push(entry.path()) } else { found.push(entry.path()) }
        }
    }
    found
}

fn stored(home: &Home) -> Vec<PathBuf> {
    [files(&home.dir.path().join("trees/trees")), files(&home.dir.path().join("content/blobs"))].concat()
}

/// Ten boots; in each some layers are synced and some are not, and then every file that was not is cut, or gone.
#[tokio::test]
async fn a_power_cut_leaves_a_consistent_smaller_cache() {
    let home = Home::new();
    let mut survivors: Vec<(LayerId, String)> = Vec::new();
    for boot in 0..10u32 {
        let layers = home.open_in_boot(&format!("boot {boot}"));
        layers.reconcile().unwrap();
        let known: HashSet<LayerId> = layers.usage(&UsageQuery::default()).unwrap().into_iter().map(|usage| usage.id).collect();
        assert_eq!(known, survivors.iter().map(|(id, _)| *id).collect(), "boot {boot}: what was synced, and nothing else");
        assert_eq!(layers.trees().trees().unwrap().len(), known.len());
        for (id, name) in &survivors {
            let layer = layers.get(id).unwrap().unwrap();
            let entry = layer.view().unwrap().lookup("/name", snapshot::Follow::No).unwrap().unwrap();
            assert_eq!(std::fs::read(entry.real_path()).unwrap(), name.repeat(3000).as_bytes());
            for blob in layer.blobs(Compression::default(), &Cancel::new(), &Reporter::silent()).await.unwrap() {
                let data = layers.content().read(&blob.descriptor.digest).unwrap();
                assert_eq!(oci::Digest::of(&data), blob.descriptor.digest);
            }
        }
        let mut below: Option<Layer> = survivors.last().and_then(|(id, _)| layers.get(id).unwrap());
        let mut make = |count: u32, what: &str| {
            let names: Vec<String> = (0..count).map(|n| format!("{boot} {what} {n}")).collect();
            let made = names.into_iter().map(|name| {
                let layer = step(&layers, below.as_ref(), &name);
                below = Some(layer.clone());
                (layer, name)
            });
            made.collect::<Vec<_>>()
        };
        let synced = make(2, "synced");
        let (cancel, silent) = (Cancel::new(), Reporter::silent());
        synced[1].0.blobs(Compression::default(), &cancel, &silent).await.unwrap();
        layers.sync().await.unwrap();
        let safe: HashSet<PathBuf> = stored(&home).into_iter().collect();
        let lost = make(1 + boot % 3, "not synced");
        lost[0].0.blobs(Compression::default(), &cancel, &silent).await.unwrap();
        layers.flush().await.unwrap();
        survivors.extend(synced.iter().map(|(layer, name)| (layer.id(), name.clone())));
        drop((synced, lost, below));
        drop(layers);
        for (n, path) in stored(&home).into_iter().filter(|path| !safe.contains(path)).enumerate() {
            if n % 2 == 0 {
                std::fs::File::options().write(true).open(&path).unwrap().set_len(n as u64 * 100).unwrap();
            } else {
                std::fs::remove_file(&path).unwrap();
            }
        }
    }
}
