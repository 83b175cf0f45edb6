//! The index over a real database in a directory of its own.
#![allow(clippy::unwrap_used)]
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cache::{Caches, Entry, Import, Index, KeyStore, Origin};
use kv::{Db, Options};
use oci::Digest;
use solver::{CacheId, KeyId, Link, Target};

fn open(dir: &tempfile::TempDir) -> Db {
    Db::open(&dir.path().join("cache.db"), Options::default()).unwrap()
}

fn key(name: &str) -> KeyId {
    KeyId::root(&Digest::of(name), 0)
}

fn link(op: &str) -> Link {
    Link { input: 0, output: 0, digest: Digest::of(op), selector: None }
}

fn random(name: &str) -> KeyId {
    KeyId::root(&Digest::of(name).into_random(), 0)
}

#[test]
fn links_and_results_survive_a_restart_and_lead_back() {
    let dir = tempfile::tempdir().unwrap();
    let selected = Link { selector: Some(Digest::of("/src")), input: 1, output: 2, ..link("copy") };
    {
        let index = Index::new(open(&dir));
        index.connect(&key("image"), &link("run"), &key("a"));
        index.connect(&key("image"), &link("run"), &key("b"));
        index.connect(&key("image"), &link("run"), &key("a"));
        index.connect(&key("a"), &selected, &key("c"));
        index.add(&key("c"), "layer1", 5);
        index.add(&key("c"), "layer1", 9);
        index.add(&key("c"), "", 7);
    }
    let index = Index::new(open(&dir));
    assert_eq!(index.links(&key("image"), &link("run")), [key("a"), key("b")]);
    assert_eq!(index.links(&key("image"), &link("other")), []);
    assert_eq!(index.links(&key("a"), &selected), [key("c")]);
    assert_eq!(index.links(&key("a"), &Link { selector: None, ..selected.clone() }), [], "the selector is part of the link");
    let entry = |result: &str, created_at| Entry { result: result.into(), created_at };
    assert_eq!(index.results(&key("c")), [entry("layer1", 5), entry("", 7)]);
    let record = KeyId::root(&selected.digest, selected.output).digest().clone();
    assert_eq!(index.origins(&key("c")), [Origin { from: key("a"), input: 1, selector: selected.selector, record }]);
    assert_eq!(index.keys_of("layer1"), [key("c")]);
}

#[test]
fn keys_of_a_session_are_not_stored() {
    let dir = tempfile::tempdir().unwrap();
    let index = Index::new(open(&dir));
    index.connect(&random("s"), &link("run"), &key("a"));
    index.connect(&key("a"), &link("run"), &random("s"));
    index.add(&random("s"), "layer1", 1);
    assert_eq!(index.links(&random("s"), &link("run")), []);
    assert_eq!(index.links(&key("a"), &link("run")), []);
    assert_eq!(index.results(&random("s")), []);
    assert_eq!(index.origins(&key("a")), []);
}

/// All that the index stores, to see that nothing is left behind.
fn stored(db: &Db) -> usize {
    let tables = ["cache.links", "cache.backlinks", "cache.results", "cache.keys"];
    let reader = db.read().unwrap();
    tables.iter().map(|t| reader.all(&kv::Table::<str, String>::new(t)).unwrap().len()).sum()
}

#[test]
fn forgetting_takes_dead_ends_along_but_not_ways_to_others() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(&dir);
    let index = Index::new(db.clone());
    // image -> a -> b -> c, and a -> d; results of all but a.
    for (from, to) in [("image", "a"), ("a", "b"), ("b", "c"), ("a", "d")] {
        index.connect(&key(from), &link(to), &key(to));
    }
    for name in ["image", "b", "c", "d"] {
        index.add(&key(name), &format!("layer {name}").replace(' ', "-"), 1);
    }
    index.forget(["layer-b"]);
    assert_eq!(index.results(&key("b")), []);
    assert_eq!(index.links(&key("a"), &link("b")), [key("b")], "c is still reached through b");
    index.forget(["layer-c"]);
    assert_eq!(index.links(&key("b"), &link("c")), []);
    assert_eq!(index.links(&key("a"), &link("b")), [], "b went with c");
    assert_eq!(index.links(&key("image"), &link("a")), [key("a")], "a still leads to d");
    index.forget(["layer-d", "layer-image", "never-there"]);
    assert_eq!(stored(&db), 0);
}

#[test]
fn forgetting_keeps_other_results_of_a_key() {
    let dir = tempfile::tempdir().unwrap();
    let index = Index::new(open(&dir));
    index.connect(&key("image"), &link("run"), &key("a"));
    index.add(&key("a"), "old", 1);
    index.add(&key("a"), "new", 2);
    index.add(&key("b"), "old", 1);
    index.forget(["old"]);
    assert_eq!(index.results(&key("a")), [Entry { result: "new".into(), created_at: 2 }]);
    assert_eq!(index.results(&key("b")), []);
    assert_eq!(index.links(&key("image"), &link("run")), [key("a")]);
}

/// An imported cache as a test would have it.
#[derive(Default)]
struct Imported {
    links: BTreeMap<(KeyId, Link), Vec<KeyId>>,
    results: BTreeMap<KeyId, Vec<Entry>>,
}

impl KeyStore for Imported {
    fn links(&self, from: &KeyId, link: &Link) -> Vec<KeyId> {
        self.links.get(&(from.clone(), link.clone())).cloned().unwrap_or_default()
    }
    fn results(&self, key: &KeyId) -> Vec<Entry> {
        self.results.get(key).cloned().unwrap_or_default()
    }
    fn origins(&self, key: &KeyId) -> Vec<Origin> {
        let leads = |(_, to): &(&(KeyId, Link), &Vec<KeyId>)| to.contains(key);
        let origin = |((from, link), _): (&(KeyId, Link), _)| Origin {
            from: from.clone(),
            input: link.input,
            selector: link.selector.clone(),
            record: KeyId::root(&link.digest, link.output).digest().clone(),
        };
        self.links.iter().filter(leads).map(origin).collect()
    }
}

#[async_trait::async_trait]
impl Import for Imported {
    fn has_recorded(&self, records: &[Digest]) -> bool {
        self.links.keys().any(|(_, link)| records.contains(KeyId::root(&link.digest, link.output).digest()))
    }

    async fn load(&self, _: &str, _: &session::Group, _: &task::Cancel) -> fault::Result<Option<layers::Layer>> {
        Ok(None)
    }
}

#[test]
fn imported_caches_are_asked_by_those_that_name_them() {
    let dir = tempfile::tempdir().unwrap();
    let caches = Caches::new(Index::new(open(&dir)));
    caches.local().connect(&key("image"), &link("run"), &key("local"));
    caches.local().add(&key("local"), "layer1", 1);
    caches.local().add(&key("local"), "pruned", 1);
    let imported = Imported {
        links: [((key("image"), link("run")), vec![key("local"), key("remote")]), ((key("image"), link("elsewhere")), vec![])].into(),
        results: [(key("remote"), vec![Entry { result: "0".into(), created_at: 3 }])].into(),
    };
    let id = caches.add(Arc::new(imported));
    let (none, one) = (BTreeSet::new(), BTreeSet::from([id]));
    let target = |name: &str, local| Target { id: key(name), local };
    assert_eq!(caches.links(&none, &key("image"), &link("run")), [target("local", true)]);
    assert_eq!(caches.links(&one, &key("image"), &link("run")), [target("local", true), target("remote", false)]);
    let has = |caches_used: &BTreeSet<CacheId>, map: &str| caches.has_recorded(caches_used, &Digest::of(map), 1);
    assert_eq!([has(&none, "run"), has(&none, "elsewhere"), has(&one, "elsewhere"), has(&one, "never")], [true, false, true, false]);
    let ids = |caches_used: &BTreeSet<CacheId>, name: &str| {
        let records = caches.records(caches_used, &key(name), |id| id != "pruned");
        records.into_iter().map(|r| (r.cache, r.id)).collect::<Vec<_>>()
    };
    assert_eq!(ids(&one, "local"), [(CacheId::LOCAL, "layer1".to_owned())], "what was pruned is not offered");
    assert_eq!(ids(&none, "remote"), []);
    assert_eq!(ids(&one, "remote"), [(id, "0".to_owned())]);
    caches.remove(id);
    assert_eq!(ids(&one, "remote"), []);
}

#[test]
fn thousands_of_links_from_one_key_stay_cheap() {
    let dir = tempfile::tempdir().unwrap();
    let index = Index::new(open(&dir));
    let start = std::time::Instant::now();
    for i in 0..5000 {
        let name = format!("step {i}");
        assert_eq!(index.links(&key("image"), &link(&name)), []);
        index.connect(&key("image"), &link(&name), &key(&name));
        index.add(&key(&name), &format!("layer{i}"), i);
    }
    for i in 0..5000 {
        let name = format!("step {i}");
        assert_eq!(index.links(&key("image"), &link(&name)).len(), 1);
        assert_eq!(index.results(&key(&name)).len(), 1);
    }
    let took = start.elapsed();
    println!("5,000 misses, links, results and hits: {took:?}");
    // A second or two, or minutes if each took longer than the one before.
    assert!(took.as_secs() < 120, "{took:?}");
}
