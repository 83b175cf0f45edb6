//! Caches that leave one home and arrive in another. Needs root, as overlay trees do.
#![allow(clippy::unwrap_used)]
mod servers;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::sync::Arc;

use base64::Engine as _;
use cache::remote::{Context, Environment, Remotes, Subject};
use cache::{Caches, Import, Index};
use layers::{Layer, Layers, Properties};
use oci::Digest;
use progress::Reporter;
use servers::Objects;
use session::Group;
use solver::key::InputKey;
use solver::{CacheId, Key, Link};
use task::Cancel;

struct Home {
    _dir: tempfile::TempDir,
    layers: Layers,
    caches: Caches,
    remotes: Remotes,
}

impl Home {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let db = kv::Db::open(&root.join("db"), kv::Options::default()).unwrap();
        let content = content::Store::open(&root.join("content"), db.clone()).unwrap();
        let trees = snapshot::Store::open(&root.join("trees"), snapshot::Options::default()).unwrap();
        let layers = Layers::open(db.clone(), content, trees).unwrap();
        let client = registry::Client::new(registry::Config::default());
        let remotes = Remotes::new(layers.clone(), client, Environment::default());
        Self { _dir: dir, layers, caches: Caches::new(Index::new(db)), remotes }
    }

    fn layer(&self, below: Option<&Layer>, path: &str, text: &str) -> Layer {
        let mut draft = self.layers.draft(below, Properties::new("test")).unwrap();
        draft.editor().unwrap().write_file(path, 0o644).unwrap().write_all(text.as_bytes()).unwrap();
        draft.commit().unwrap()
    }

    /// An image, a step on it, and a copy out of that which is known by content, too. All in the local cache; the copy is given back.
    fn build(&self) -> Key {
        let base = self.layer(None, "/base", "base");
        let run = self.layer(Some(&base), "/run", "run");
        let copy = self.layer(None, "/copy", "copied");
        let image = Key::root(&d("image"), 0, None);
        let run_key = derived("run", vec![vec![way(&image, None)]]);
        let inputs = vec![vec![way(&run_key, Some("/run")), way(&Key::content(&d("content")), None)]];
        let copy_key = derived("copy", inputs);
        for (key, layer) in [(&run_key, &run), (&copy_key, &copy)] {
            key.links().for_each(|(from, link)| self.caches.local().connect(&from.id, &link, &key.id));
            self.caches.local().add(&key.id, layer.id().to_string().as_str(), 1_700_000_000_000_000_000);
        }
        copy_key
    }

    async fn export(&self, key: &Key, kind: &str, attrs: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let subject = Subject { keys: &[vec![key.clone()]], caches: &self.caches, imports: &BTreeSet::new() };
        self.remotes.exporter(kind, attrs).unwrap().export(&subject, &context()).await.unwrap()
    }

    async fn import(&self, kind: &str, attrs: &BTreeMap<String, String>) -> BTreeSet<CacheId> {
        let found = self.remotes.importer(kind, attrs).unwrap().import(&context()).await.unwrap();
        found.into_iter().map(|cache| self.caches.add(cache as Arc<dyn Import>)).collect()
    }

    /// Follows the image to the copy, as the solver does.
    async fn find_copy(&self, caches: &BTreeSet<CacheId>) -> Option<Layer> {
        let link = |op: &str, selector: Option<&str>| Link { input: 0, output: 0, digest: d(op), selector: selector.map(d) };
        let run = self.caches.links(caches, &Key::root(&d("image"), 0, None).id, &link("run", None)).pop()?;
        let by_definition = self.caches.links(caches, &run.id, &link("copy", Some("/run"))).pop()?;
        let by_content = self.caches.links(caches, &Key::content(&d("content")).id, &link("copy", None)).pop()?;
        assert_eq!(by_definition.id, by_content.id);
        let record = self.caches.records(caches, &by_content.id, |_| true).pop()?;
        assert_eq!(record.created_at, 1_700_000_000_000_000_000);
        self.caches.import(record.cache)?.load(&record.id, &Group::default(), &Cancel::new()).await.unwrap()
    }
}

fn d(name: &str) -> Digest {
    Digest::of(name)
}

fn way(key: &Key, selector: Option<&str>) -> InputKey {
    InputKey { key: key.clone(), selector: selector.map(d) }
}

fn derived(op: &str, inputs: Vec<Vec<InputKey>>) -> Key {
    Key::derived(Key::mint(&d(op), 0, &inputs), &d(op), 0, inputs, None, true)
}

fn context() -> Context {
    Context { cancel: Cancel::new(), reporter: Reporter::silent(), sessions: Group::default(), session: None }
}

fn attrs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn text(layer: &Layer, path: &str) -> String {
    let mut text = String::new();
    layer.view().unwrap().open(path).unwrap().read_to_string(&mut text).unwrap();
    text
}

async fn arrives(kind: &str, given: &BTreeMap<String, String>) -> Home {
    let home = Home::new();
    let caches = home.import(kind, given).await;
    let copy = home.find_copy(&caches).await.unwrap();
    assert!(!copy.is_realized(), "nothing is fetched before it is needed");
    assert_eq!(home.layers.content().list().unwrap().len(), 0);
    copy.realize(&Cancel::new(), &Reporter::silent()).await.unwrap();
    assert_eq!(text(&copy, "/copy"), "copied");
    assert_eq!(home.layers.content().list().unwrap().len(), 1, "only what was needed came");
    home
}

#[tokio::test(flavor = "multi_thread")]
async fn through_a_bucket() {
    let objects = Objects::default();
    let url = servers::s3(objects.clone());
    let given = attrs(&[
        ("bucket", "b"),
        ("region", "r"),
        ("endpoint_url", &url),
        ("use_path_style", "true"),
        ("access_key_id", "key"),
        ("secret_access_key", "secret"),
        ("prefix", "p-"),
        ("name", "one;two"),
        ("mode", "max"),
    ]);
    let home = Home::new();
    let key = home.build();
    assert_eq!(home.export(&key, "s3", &given).await, BTreeMap::new());
    let names = objects.names();
    assert_eq!(names.iter().filter(|n| n.starts_with("/b/p-blobs/sha256:")).count(), 3, "{names:?}");
    assert!(names.contains(&"/b/p-manifests/one".to_owned()) && names.contains(&"/b/p-manifests/two".to_owned()));
    assert_eq!(objects.count("PUT"), 5);
    home.export(&key, "s3", &given).await;
    assert_eq!(objects.count("PUT"), 2, "blobs that are there are not sent again");
    arrives("s3", &given).await;
    // A blob that is gone makes its result a miss.
    objects.remove("blobs/");
    let later = Home::new();
    let caches = later.import("s3", &given).await;
    assert_eq!(later.find_copy(&caches).await, None);
    objects.remove("manifests/");
    assert!(Home::new().import("s3", &given).await.is_empty(), "no cache is no failure");
}

#[tokio::test(flavor = "multi_thread")]
async fn through_github_actions() {
    let claims = r#"{"ac":"[{\"Scope\":\"refs/heads/x\",\"Permission\":3}]","exp":9999999999,"nbf":0}"#;
    let part = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
    let token = format!("{}.{}.x", part("{}"), part(claims));
    for (old, url) in [(false, "url_v2"), (true, "url")] {
        let objects = Objects::default();
        let address = servers::github(objects.clone(), token.clone(), old);
        let given = attrs(&[("token", &token), (url, &address), ("scope", "s")]);
        let home = Home::new();
        let key = home.build();
        home.export(&key, "gha", &given).await;
        let index = format!("index-s-1-{}#1", &d("refs/heads/x").hex()[..8]);
        let names = objects.names();
        assert!(names.contains(&index), "{names:?}");
        assert_eq!(names.iter().filter(|n| n.starts_with("buildkit-blob-1-sha256:")).count(), 1, "min: the result alone");
        arrives("gha", &given).await;
        // The next export is a new entry, which is then the one that is read.
        objects.count("POST");
        home.export(&key, "gha", &given).await;
        assert!(objects.names().contains(&index.replace("#1", "#2")), "{:?}", objects.names());
        arrives("gha", &given).await;
        objects.remove("buildkit-blob");
        let later = Home::new();
        let caches = later.import("gha", &given).await;
        assert_eq!(later.find_copy(&caches).await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn through_a_registry() {
    let registry = testkit::Registry::start();
    for (name, more) in [("image", [("mode", "max")]), ("index", [("image-manifest", "false")]), ("list", [("oci-mediatypes", "false")])] {
        let reference = format!("{}/cache:{name}", registry.host());
        let mut given = attrs(&[("ref", reference.as_str())]);
        given.extend(attrs(&more));
        let home = Home::new();
        let key = home.build();
        let response = home.export(&key, "registry", &given).await;
        let manifest: oci::Descriptor = serde_json::from_str(&response["cache.manifest"]).unwrap();
        let found = registry.get(&format!("/v2/cache/manifests/{name}"));
        assert_eq!(Digest::of(&found.body), manifest.digest);
        assert_eq!(home.export(&key, "registry", &given).await, response, "the same again gives the same");
        arrives("registry", &given).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_named_before_anything_runs() {
    let home = Home::new();
    let failure = |kind: &str, given: &[(&str, &str)]| home.remotes.exporter(kind, &attrs(given)).err().unwrap().to_string();
    assert_eq!(failure("ftp", &[]), r#"unknown cache exporter: "ftp""#);
    for (kind, given, want) in [
        ("registry", &[][..], "missing ref"),
        ("local", &[], "local cache exporter requires dest"),
        ("s3", &[], "bucket ($AWS_BUCKET) not set for s3 cache"),
        ("s3", &[("bucket", "b")], "region ($AWS_REGION) not set for s3 cache"),
        ("s3", &[("bucket", "b"), ("region", "r"), ("upload_parallelism", "0")], "upload_parallelism must be a positive integer"),
        ("s3", &[("bucket", "b"), ("region", "r"), ("retry_mode", "x")], "retry_mode must be \"standard\" or \"adaptive\""),
        ("s3", &[("bucket", "b"), ("region", "r"), ("retry_max_attempts", "x")], "retry_max_attempts must be a positive integer"),
        ("gha", &[], "token not set for github actions cache"),
        ("gha", &[("token", "t")], "url not set for github actions cache"),
    ] {
        assert_eq!(failure(kind, given), format!("failed to configure {kind} cache exporter: {want}"));
    }
    let azure = failure("azblob", &[]);
    assert!(azure.contains("account_url attribute is required for azblob cache"), "{azure}");
    let import = home.remotes.importer("local", &attrs(&[("src", "x")])).err().unwrap().to_string();
    assert_eq!(import, "failed to configure local cache importer: local cache importer requires explicit digest");
}
