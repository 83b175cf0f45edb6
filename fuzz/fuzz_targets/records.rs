//! A database whose records say what they like about layers and cache keys. The input is a script, one record a line: a letter for the table,
//! a tab, the key, a tab, the value; `|` in keys is a NUL.
#![no_main]
use std::path::Path;
use std::sync::LazyLock;

use cache::{Index, KeyStore as _};
use kv::{Batch, Db, Table};
use layers::{Layer, LayerId, Layers, Properties, Rule, Sharing, UsageQuery};
use libfuzzer_sys::fuzz_target;
use oci::Digest;
use solver::{KeyId, Link};
use task::Cancel;
use tokio::runtime::Runtime;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().expect("a runtime")
});

/// The tables by their letters, as `docs/formats` has them.
const TABLES: [(&str, Table<[u8], Vec<u8>>); 13] = [
    ("r", Table::new("layers.records")),
    ("c", Table::new("layers.children")),
    ("u", Table::new("layers.uses")),
    ("m", Table::new("layers.meta")),
    ("b", Table::new("layers.blob-chains")),
    ("h", Table::new("layers.chains")),
    ("t", Table::new("layers.trees")),
    ("s", Table::new("layers.sizes")),
    ("l", Table::new("layers.cells")),
    ("L", Table::new("cache.links")),
    ("B", Table::new("cache.backlinks")),
    ("R", Table::new("cache.results")),
    ("K", Table::new("cache.keys")),
];

fuzz_target!(|text: &str| {
    let scratch = if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" };
    let home = tempfile::tempdir_in(scratch).expect("a temporary directory can be made");
    let records: Vec<[&str; 3]> = text.lines().take(60).filter_map(record).collect();
    let db = Db::open(&home.path().join("db"), kv::Options::default()).expect("a new database opens");
    let mut batch = Batch::new();
    for [table, key, value] in &records {
        let Some((_, table)) = TABLES.iter().find(|(letter, _)| letter == table) else { continue };
        batch.put(table, key.replace('|', "\0").as_bytes(), &value.as_bytes().to_vec());
    }
    db.submit(batch);
    db.flush_blocking().expect("a new database can be written");
    ask_index(&Index::new(db.clone()), &records);
    RUNTIME.block_on(ask_layers(home.path(), db, &records));
});

fn record(line: &str) -> Option<[&str; 3]> {
    let mut fields = line.splitn(3, '\t');
    Some([fields.next()?, fields.next()?, fields.next().unwrap_or_default()])
}

fn ask_index(index: &Index, records: &[[&str; 3]]) {
    for [_, key, value] in records {
        for word in key.split([' ', '|']).chain(value.split([' ', '\n'])) {
            let Ok(digest) = word.parse::<Digest>() else { continue };
            let key = KeyId::from(digest.clone());
            let _ = (index.links(&key, &Link { input: 0, output: 0, digest, selector: None }), index.results(&key), index.origins(&key));
        }
        let _ = index.keys_of(key);
        index.forget([*key]);
    }
}

async fn ask_layers(home: &Path, db: Db, records: &[[&str; 3]]) {
    let content = content::Store::open(&home.join("content"), db.clone()).expect("a new store opens");
    let trees = snapshot::Store::open(&home.join("trees"), snapshot::Options::default()).expect("a new store opens");
    let Ok(layers) = Layers::open(db, content, trees) else { return };
    let _ = layers.open_account();
    for [_, key, _] in records {
        for id in key.split(['/', '|']).filter_map(|word| word.parse::<LayerId>().ok()) {
            if let Ok(Some(layer)) = layers.get(&id) {
                ask(&layer);
            }
        }
        if let Some((key, _)) = key.split_once('|') {
            let _ = layers.cell(key, None, Sharing::Shared, Properties::new("cell"), &Cancel::new()).await;
        }
    }
    let _ = layers.usage(&UsageQuery::default());
    let pruned = layers.clone();
    let _ = task::blocking(move || pruned.prune(&[Rule::default()], |_| true)).await;
    let _ = layers.flush().await;
}

fn ask(layer: &Layer) {
    let _ = (layer.stack(), layer.mount_spec().is_ok(), layer.view().is_ok(), layer.known_blobs(), layer.description());
    let _ = layer.blobs_at_hand(layers::Compression::default());
}
