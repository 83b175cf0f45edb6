//! Directories of a client, from build to build.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use support::{Client, Place, Rows, context, read, vertex, watched};

#[tokio::test]
async fn the_same_directory_is_the_same_layer() {
    let place = Place::new();
    let client = Arc::new(Client::new("s1"));
    client.serve("context", &[("a/", ""), ("a/x", "hello"), ("b", "world")]);
    let rows = Arc::new(Rows::default());
    let context = watched(std::slice::from_ref(&client), rows.clone());
    let source = vertex("local://context", &[("local.session", "s1"), ("local.followpaths", r#"["a"]"#)]);
    let key = place.key(&source, 0, &context).await.unwrap();
    assert!(key.digest.is_random() && !key.more);
    let layer = place.fetch(&source, &context).await.unwrap().unwrap();
    assert_eq!((layer.description().as_str(), layer.record_type()), ("local source for context", "source.local"));
    assert_eq!(client.take_asked(), ["a/x", "b"]);
    assert_eq!(client.requests.lock().unwrap()[0].follow_paths, ["a"]);
    assert!(rows.0.lock().unwrap().contains(&("transferring context:".into(), "transferring".into())));
    let view = layer.view().unwrap();
    assert_eq!((read(&view, "/a/x").as_str(), read(&view, "b").as_str()), ("hello", "world"));

    let first = layer.id();
    let again = place.fetch(&source, &context).await.unwrap().unwrap().id();
    assert_eq!((again, client.take_asked()), (first, vec![]));

    drop((view, layer));
    let place = place.reopened().await;
    let after_restart = place.fetch(&source, &context).await.unwrap().unwrap();
    assert_eq!((after_restart.id(), client.take_asked()), (first, vec![]));

    client.serve("context", &[("a/", ""), ("a/x", "changed"), ("b", "world"), ("c", "new")]);
    let changed = place.fetch(&source, &context).await.unwrap().unwrap();
    assert_ne!(changed.id(), first);
    assert_eq!(client.take_asked(), ["a/x", "c"]);
    assert_eq!(read(&changed.view().unwrap(), "/a/x"), "changed");
    assert_eq!(read(&after_restart.view().unwrap(), "/a/x"), "hello", "who uses the last version is not disturbed");
}

#[tokio::test]
async fn what_is_sent_whole_each_time_is_a_new_layer_only_if_it_changed() {
    let place = Place::new();
    let client = Arc::new(Client::new("s1"));
    let source = vertex("local://dockerfile", &[("local.differ", "none")]);
    let context = context(std::slice::from_ref(&client));
    let mut ids = Vec::new();
    for content in ["FROM a", "FROM a", "FROM b", "FROM b"] {
        client.serve("dockerfile", &[("Dockerfile", content)]);
        ids.push(place.fetch(&source, &context).await.unwrap().unwrap().id());
        assert_eq!(client.take_asked(), ["Dockerfile"]);
    }
    assert!(ids[0] == ids[1] && ids[1] != ids[2] && ids[2] == ids[3], "{ids:?}");
}

#[tokio::test]
async fn what_versions_have_in_common_is_counted_once() {
    let place = Place::new();
    let client = Arc::new(Client::new("s1"));
    let source = vertex("local://context", &[]);
    let context = context(std::slice::from_ref(&client));
    let large = "x".repeat(1 << 20);
    let mut versions = Vec::new();
    for content in ["one", "two", "three"] {
        client.serve("context", &[("a/", ""), ("a/large", &large), ("small", content)]);
        versions.push(place.fetch(&source, &context).await.unwrap().unwrap());
    }
    let usage = |layers: &layers::Layers| -> Vec<(u64, u64)> {
        let records = layers.usage(&layers::UsageQuery::default()).unwrap();
        records.iter().map(|record| (record.size, record.deduplicated)).collect()
    };
    let now = usage(&place.layers);
    assert!(now[0].0 > 1 << 20 && now[0].1 == 0, "{now:?}");
    assert!(now[1..].iter().all(|(size, shared)| *size < 100_000 && *shared >= 1 << 20), "{now:?}");

    // Those that are left have all of it.
    drop(versions.remove(0));
    let first = place.layers.usage(&layers::UsageQuery::default()).unwrap()[0].id;
    let rule = layers::Rule { filters: vec![format!("id=={first}")], all: true, ..layers::Rule::default() };
    let layers = place.layers.clone();
    tokio::task::spawn_blocking(move || layers.prune(&[rule], |_| true).unwrap()).await.unwrap();
    let left = usage(&place.layers);
    let sum: u64 = left.iter().map(|(size, _)| size).sum();
    assert!(left.len() == 2 && sum > 1 << 20 && sum < 1_400_000, "{left:?}");
}

#[tokio::test]
async fn content_digests_come_with_the_layer() {
    let place = Place::new();
    let client = Arc::new(Client::new("s1"));
    client.serve("context", &[("a/", ""), ("a/x", "hello"), ("b", "world")]);
    let context = context(std::slice::from_ref(&client));
    let layer = place.fetch(&vertex("local://context", &[]), &context).await.unwrap().unwrap();
    let attached = layer.meta_get("treehash").unwrap().expect("attached");
    let mut attached = treehash::Records::decode(&attached).unwrap();
    let view = layer.view().unwrap();
    for path in ["/a", "/a/x", "/b"] {
        let options = treehash::Options::default();
        let computed = treehash::Records::new().checksum(&view, path, &options).unwrap();
        assert_eq!(attached.checksum(&view, path, &options).unwrap(), computed, "{path}");
    }
}

#[tokio::test]
async fn a_client_without_the_directory_leaves_it_to_the_next() {
    let place = Place::new();
    let (gone, has) = (Arc::new(Client::new("gone")), Arc::new(Client::new("has")));
    has.serve("context", &[("x", "1")]);
    let source = vertex("local://context", &[("local.session", "gone")]);
    let layer = place.fetch(&source, &context(&[gone.clone(), has])).await.unwrap().unwrap();
    assert_eq!(read(&layer.view().unwrap(), "x"), "1");
    let error = place.fetch(&source, &context(&[gone])).await.unwrap_err();
    assert_eq!(error.to_string(), "no access allowed to dir \"context\"");
    for outcome in
        [place.fetch(&source, &context(&[])).await.err(), place.key(&vertex("local://context", &[]), 0, &context(&[])).await.err()]
    {
        assert_eq!(outcome.unwrap().to_string(), "could not access local files without session");
    }
}

#[tokio::test]
async fn concurrent_builds_do_not_disturb_each_other() {
    let place = Arc::new(Place::new());
    let tasks: Vec<_> = (0..8)
        .map(|n: usize| {
            let place = place.clone();
            tokio::spawn(async move {
                let client = Arc::new(Client::new(&format!("s{n}")));
                let content = format!("{n}");
                client.serve("context", &[("own", content.as_str()), ("same", "same")]);
                let layer = place.fetch(&vertex("local://context", &[]), &context(&[client])).await.unwrap().unwrap();
                assert_eq!(read(&layer.view().unwrap(), "own"), content);
                assert_eq!(read(&layer.view().unwrap(), "same"), "same");
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}
