#![allow(clippy::unwrap_used)]
mod common;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::Duration;

use common::{Archive, Home, pull};
use layers::{Layer, LayerId, Layers, Properties, Rule, Sharing, UsageQuery, UsageRecord};
use task::Cancel;

fn step(layers: &Layers, parent: Option<&Layer>, name: &str, bytes: usize, record_type: &str) -> Layer {
    let mut draft = layers.draft(parent, Properties::new(name).of_type(record_type)).unwrap();
    let mut editor = draft.editor().unwrap();
    editor.write_file(format!("/{name}"), 0o644).unwrap().write_all(&vec![b'x'; bytes]).unwrap();
    drop(editor);
    draft.commit().unwrap()
}

fn usage(layers: &Layers, filters: &[&str]) -> BTreeMap<String, UsageRecord> {
    let query = UsageQuery { filters: filters.iter().map(|&f| f.to_owned()).collect(), age_limit: None };
    layers.usage(&query).unwrap().into_iter().map(|usage| (usage.description.clone(), usage)).collect()
}

fn names(map: &BTreeMap<String, UsageRecord>) -> Vec<&str> {
    map.keys().map(String::as_str).collect()
}

async fn prune(layers: &Layers, rule: Rule) -> Vec<String> {
    let layers = layers.clone();
    let work = move || {
        let mut deleted = Vec::new();
        layers.prune(&[rule], |usage| {
            assert!(!usage.in_use);
            deleted.push(usage.description);
            true
        })?;
        Ok(deleted)
    };
    task::blocking(work).await.unwrap()
}

#[tokio::test]
async fn usage_tells_what_is_there() {
    let home = Home::new();
    let layers = home.open();
    let base = step(&layers, None, "base", 100_000, "");
    let top = step(&layers, Some(&base), "top", 10_000, "internal");
    let other = step(&layers, Some(&base), "other", 0, "");
    let cell = layers.cell("c", None, Sharing::Shared, Properties::new("cell").of_type("exec.cachemount"), &Cancel::new()).await.unwrap();
    std::fs::write(cell.path().join("f"), vec![1; 50_000]).unwrap();
    drop((other, base));

    let all = usage(&layers, &[]);
    assert_eq!(names(&all), ["base", "cell", "other", "top"]);
    assert!(all["base"].size >= 100_000 && all["base"].size < 130_000, "{}", all["base"].size);
    assert_eq!((all["cell"].size, all["cell"].mutable, all["cell"].in_use), (0, true, true), "may be changing");
    assert!(all["base"].in_use, "below what is used");
    assert!(!all["other"].in_use && all["top"].in_use);
    assert_eq!(all["top"].parents, [all["base"].id]);
    assert_eq!((all["other"].usage_count, all["other"].last_used_at.is_some()), (1, true));
    assert_eq!((all["top"].usage_count, all["top"].last_used_at), (0, None), "a use counts when it ends");
    assert_eq!(all["base"].record_type, "regular");

    assert_eq!(names(&usage(&layers, &["type==internal", "mutable"])), ["cell", "top"]);
    assert_eq!(names(&usage(&layers, &["inuse,immutable,description~=^b"])), ["base"]);
    assert_eq!(names(&usage(&layers, &[&format!("parents=={}", all["base"].id)])), ["other", "top"]);
    let query = UsageQuery { filters: Vec::new(), age_limit: Some(Duration::from_secs(60)) };
    let old: Vec<String> = layers.usage(&query).unwrap().into_iter().map(|u| u.description).collect();
    assert!(!old.contains(&"other".to_owned()) && old.contains(&"top".to_owned()), "{old:?}");
    drop(cell);
    assert!(usage(&layers, &[])["cell"].size >= 50_000);
    assert!(layers.usage(&UsageQuery { filters: vec!["a==".into()], age_limit: None }).is_err());

    let id = top.id();
    drop(top);
    layers.flush().await.unwrap();
    let layers = home.open_again(layers);
    drop(layers.get(&id).unwrap().unwrap());
    assert_eq!(usage(&layers, &[])["top"].usage_count, 2, "uses add up over restarts");
}

#[tokio::test]
async fn prune_deletes_what_nobody_uses() {
    let home = Home::new();
    let layers = home.open();
    let base = step(&layers, None, "base", 1000, "");
    let used = step(&layers, Some(&base), "used", 1000, "");
    let loose = step(&layers, Some(&base), "loose", 1000, "");
    drop(step(&layers, Some(&loose), "on loose", 1000, ""));
    drop(step(&layers, None, "frontend", 1000, "frontend"));
    drop((base, loose));
    let merged = layers.merge(&[Some(used.clone()), Some(step(&layers, None, "side", 10, ""))], Properties::new("merged")).unwrap();
    drop(used);

    let mut gone = prune(&layers, Rule::default()).await;
    gone.sort();
    assert_eq!(gone, ["loose", "on loose"]);
    drop(merged);
    let gone = prune(&layers, Rule { filters: vec!["description==merged".into()], ..Rule::default() }).await;
    assert_eq!(gone, ["merged"]);
    let gone = prune(&layers, Rule { keep_duration: Duration::from_secs(3600), ..Rule::default() }).await;
    assert!(gone.is_empty(), "all were used just now: {gone:?}");
    let mut gone = prune(&layers, Rule::default()).await;
    gone.sort();
    assert_eq!(gone, ["base", "side", "used"]);
    assert_eq!(prune(&layers, Rule { all: true, ..Rule::default() }).await, ["frontend"]);
    assert!(layers.trees().trees().unwrap().is_empty());
    let layers = home.open_again(layers);
    assert!(usage(&layers, &[]).is_empty());
}

#[tokio::test]
async fn prune_keeps_what_the_limits_allow() {
    let home = Home::new();
    let layers = home.open();
    let mut ids: Vec<LayerId> = Vec::new();
    for n in 0..5 {
        ids.push(step(&layers, None, &format!("l{n}"), 100_000, "").id());
    }
    // The first is used most, and last.
    for _ in 0..3 {
        drop(layers.get(&ids[0]).unwrap());
    }
    let each = usage(&layers, &[])["l0"].size;
    assert!(prune(&layers, Rule { max_used_space: each * 6, ..Rule::default() }).await.is_empty());
    let gone = prune(&layers, Rule { max_used_space: each * 3, ..Rule::default() }).await;
    assert_eq!(gone, ["l1", "l2", "l3"], "the least used first, until strictly below the limit");
    assert!(prune(&layers, Rule { max_used_space: 1, reserved_space: each * 3, ..Rule::default() }).await.is_empty());
    assert!(prune(&layers, Rule { min_free_space: 1, ..Rule::default() }).await.is_empty(), "there is room");
    let gone = prune(&layers, Rule { min_free_space: u64::MAX / 2, ..Rule::default() }).await;
    assert_eq!(gone, ["l0", "l4"], "no room will do: all go");
}

#[tokio::test]
async fn a_pruned_layer_takes_its_blobs_with_it() {
    let home = Home::new();
    let layers = home.open();
    let layer = pull(&layers, &[Archive::default().file("a", "1").end()]).await;
    let blob = layer.known_blobs()[0].digest.clone();
    assert!(layers.content().is_pinned(&blob).unwrap());
    let gone = prune(&layers, Rule { all: true, ..Rule::default() }).await;
    assert!(gone.is_empty());
    drop(layer);
    let gone = prune(&layers, Rule { all: true, ..Rule::default() }).await;
    assert_eq!(gone, ["pulled from example.com/image"]);
    assert!(!layers.content().is_pinned(&blob).unwrap());
    assert!(layers.content().has(&blob).unwrap().is_none());
}

#[tokio::test]
async fn trees_without_layers_are_removed() {
    let home = Home::new();
    let layers = home.open();
    let kept = step(&layers, None, "kept", 10, "").id();
    // As if killed between the commit of a tree and that of its record.
    layers.trees().commit(layers.trees().create().unwrap()).unwrap();
    drop(layers.trees().keep(layers.trees().create().unwrap()).unwrap());
    layers.flush().await.unwrap();
    let layers = home.open_again(layers);
    let fresh = step(&layers, None, "fresh", 10, "").id();
    layers.trees().commit(layers.trees().create().unwrap()).unwrap();
    assert_eq!(layers.reconcile().unwrap(), 2, "what is new may be about to be recorded");
    assert_eq!(layers.trees().trees().unwrap().len(), 3);
    assert!(layers.trees().cells().unwrap().is_empty());
    assert!(layers.get(&kept).unwrap().is_some() && layers.get(&fresh).unwrap().is_some());
}

#[tokio::test]
async fn a_layer_whose_files_are_gone_is_no_more_or_is_unpacked_again() {
    let home = Home::new();
    let layers = home.open();
    let made = step(&layers, None, "made", 10, "");
    let on_it = step(&layers, Some(&made), "on it", 10, "");
    let pulled = pull(&layers, &[Archive::default().file("a", "1").end()]).await;
    let ids = [made.id(), on_it.id(), pulled.id()];
    for layer in [&made, &pulled] {
        layers.trees().remove(&layer.stack().unwrap()[0]).unwrap();
    }
    drop((made, on_it, pulled));
    layers.flush().await.unwrap();
    let layers = home.open_again(layers);
    assert!(layers.get(&ids[1]).unwrap().is_none());
    assert!(layers.get(&ids[0]).unwrap().is_none());
    let pulled = layers.get(&ids[2]).unwrap().unwrap();
    assert!(!pulled.is_realized());
    assert!(pulled.missing().unwrap().is_empty());
    pulled.realize(&Cancel::new(), &progress::Reporter::silent()).await.unwrap();
    assert_eq!(pulled.view().unwrap().read_dir("/").unwrap().len(), 1);
}
