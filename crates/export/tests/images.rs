//! `image`, `oci` and `docker` exports of real layers, and pushes to a real registry (Debian's docker-registry).
#![allow(clippy::unwrap_used)]
mod support;

use std::fs;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use base64::Engine as _;
use bytes::Bytes;
use export::{Predicate, Statement};
use fault::Kind;
use layers::{BlobSource, ByteStream, ImageLayer, Layer, Properties};
use oci::{Descriptor, Digest, media};
use serde_json::{Value, json};
use support::{Home, map, single};
use testkit::{Registry, Tar, read_tar};

fn two_layers(home: &Home) -> Layer {
    let base = home.layer(None, "COPY a", |root| fs::write(root.join("a"), "1").unwrap());
    home.layer(Some(&base), "RUN b", |root| fs::write(root.join("b"), "2").unwrap())
}

fn with_config(mut source: export::Source) -> export::Source {
    for result in &source.results {
        let config = json!({"architecture": result.platform.architecture, "os": "linux", "config": {"Cmd": ["sh"]}});
        let key = if source.is_map { format!("containerimage.config/{}", result.id) } else { "containerimage.config".to_owned() };
        source.metadata.insert(key, Bytes::from(config.to_string()));
    }
    source
}

fn descriptor(response: &std::collections::BTreeMap<String, String>) -> Value {
    let json = base64::engine::general_purpose::STANDARD.decode(&response["containerimage.descriptor"]).unwrap();
    serde_json::from_slice(&json).unwrap()
}

#[tokio::test]
async fn an_image_stays_in_the_store_and_is_pushed() {
    let (home, registry) = (Home::new(), Registry::start());
    let source = with_config(single(Some(two_layers(&home))));
    let names = format!("{0}/app/web:1,{0}/app/web", registry.host());
    let response = home.export("image", &[("name", &names), ("push", "")], &source).await.unwrap();
    assert_eq!(response["image.name"], names);
    let digest = &response["containerimage.digest"];
    assert_eq!(descriptor(&response)["digest"], digest.as_str());
    assert_eq!(descriptor(&response)["platform"], json!({"architecture": "amd64", "os": "linux"}));
    let manifest = registry.manifest("app/web", "1");
    assert_eq!(manifest, registry.manifest("app/web", "latest"));
    assert_eq!(Digest::of(registry.get("/v2/app/web/manifests/1").body).as_str(), digest);
    assert_eq!(manifest["config"]["digest"], response["containerimage.config.digest"].as_str());
    let config: Value = serde_json::from_slice(&registry.blob("app/web", &response["containerimage.config.digest"])).unwrap();
    assert_eq!((&config["history"][0]["created_by"], &config["history"][1]["created_by"]), (&json!("COPY a"), &json!("RUN b")));
    for layer in manifest["layers"].as_array().unwrap() {
        assert_eq!(layer["mediaType"], media::OCI_LAYER_GZIP);
        assert_eq!(layer.get("annotations"), None);
        registry.blob("app/web", layer["digest"].as_str().unwrap());
    }
    let full = format!("{}/app/web:1@{digest}", registry.host());
    let rows = home.rows();
    let expected = [
        "exporting layers".to_owned(),
        format!("exporting manifest {digest}"),
        format!("exporting config {}", response["containerimage.config.digest"]),
        "pushing layers".into(),
        format!("pushing manifest for {full}"),
    ];
    assert!(expected.iter().all(|row| rows.contains(row)), "{rows:?}");

    // Layers go to another repository of the registry by mounting.
    let other = format!("{}/app/copy:1", registry.host());
    let again = home.export("image", &[("name", &other), ("push", "true"), ("oci-mediatypes", "false")], &source).await.unwrap();
    let manifest = registry.manifest("app/copy", "1");
    assert_eq!((&manifest["mediaType"], manifest["layers"].as_array().unwrap().len()), (&json!(media::DOCKER_MANIFEST), 2));
    assert_ne!(again["containerimage.digest"], *digest);
}

#[tokio::test]
async fn platforms_and_statements_are_pushed_by_digest() {
    let (home, registry) = (Home::new(), Registry::start());
    let mut source = with_config(map([("linux/amd64", Some(two_layers(&home))), ("linux/arm64", None)]));
    let statement = |_| Statement {
        predicate_type: "t".into(),
        predicate: Predicate::Given(Bytes::from_static(b"{}")),
        path: "p.json".into(),
        inline_only: true,
        subjects: Vec::new(),
        sbom_core: None,
    };
    source.attestations = ["linux/amd64".to_owned()].into_iter().map(|id| (id, vec![statement(())])).collect();
    let name = format!("{}/x", registry.host());
    let response = home.export("image", &[("name", &name), ("push", ""), ("push-by-digest", "true")], &source).await.unwrap();
    assert!(!response.contains_key("containerimage.config.digest"));
    let index = registry.manifest("x", &response["containerimage.digest"]);
    let manifests = index["manifests"].as_array().unwrap();
    assert_eq!(manifests.len(), 3);
    for manifest in manifests {
        registry.manifest("x", manifest["digest"].as_str().unwrap());
    }
    assert_eq!(registry.get("/v2/x/manifests/latest").status, 404);
    assert!(home.rows().contains(&format!("pushing manifest for {name}")));

    let tagged = format!("{name}:1");
    let failure = home.export("image", &[("name", &tagged), ("push", ""), ("push-by-digest", "")], &source).await.unwrap_err();
    assert_eq!(failure.to_string(), format!("failed to push {tagged}: can't push tagged ref {tagged} by digest"));
}

#[tokio::test]
async fn a_push_that_fails_names_the_image() {
    let home = Home::new();
    let failure = home.export("image", &[("name", "localhost:1/x"), ("push", "")], &with_config(single(None))).await.unwrap_err();
    assert!(failure.to_string().starts_with("failed to push localhost:1/x: "), "{failure}");
    let failure = home.export("image", &[("name", "A B"), ("push", "")], &with_config(single(None))).await.unwrap_err();
    assert!(failure.to_string().starts_with("failed to push A B: invalid reference format"), "{failure}");
}

#[tokio::test]
async fn an_image_without_other_names_may_have_a_dangling_one() {
    let home = Home::new();
    let source = with_config(single(None));
    let dangling = [("dangling-name-prefix", "x"), ("danging-name-empty-only", "true")];
    let response = home.export("image", &dangling, &source).await.unwrap();
    assert_eq!(response["image.name"], format!("x@{}", response["containerimage.digest"]));
    let named = home.export("image", &[dangling[0], dangling[1], ("name", "y")], &source).await.unwrap();
    assert_eq!(named["image.name"], "y");
    let both =
        home.export("image", &[dangling[0], ("name", "*"), ("image.name", "z"), ("unpack", "true"), ("store", "")], &source).await.unwrap();
    assert_eq!(both["image.name"], format!("z,x@{}", both["containerimage.digest"]));
}

/// Files that do not get smaller.
fn noise(length: u32) -> Vec<u8> {
    let mut state = 1u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(length as usize).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_pushed_while_they_are_packed_and_nothing_names_them_yet() {
    let (home, registry) = (Home::new(), Registry::start());
    let base = home.layer(None, "COPY small", |root| fs::write(root.join("small"), "1").unwrap());
    let layer = home.layer(Some(&base), "COPY large", |root| fs::write(root.join("large"), noise(20 << 20)).unwrap());
    let source = with_config(single(Some(layer)));
    let attrs = [("name", format!("{}/early:1", registry.host())), ("push", "true".into()), ("compression", "zstd".into())];
    let attrs = attrs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let exporter = home.exporters.resolve("image", &attrs, 30).unwrap();
    let exported = exporter.export(&source, &home.context()).await.unwrap();
    let manifest: Value = serde_json::from_slice(&home.store.read(&exported.descriptor.as_ref().unwrap().digest).unwrap()).unwrap();
    let digests: Vec<_> = manifest["layers"].as_array().unwrap().iter().map(|layer| layer["digest"].as_str().unwrap().to_owned()).collect();
    for digest in &digests {
        let path = format!("/v2/early/blobs/{digest}");
        let there = || (registry.get(&path).status == 200).then_some(());
        testkit::wait_until("a layer at the registry", std::time::Duration::from_secs(120), there);
    }
    assert_eq!(registry.get("/v2/early/manifests/1").status, 404, "who fails from here on has pushed nothing");
    exported.finalize.unwrap().await.unwrap();
    assert_eq!(registry.manifest("early", "1"), manifest);
    let large: Digest = digests[1].parse().unwrap();
    assert_eq!(Digest::of(registry.blob("early", &digests[1])), large);
    let labels = home.store.labels(&large).unwrap();
    assert!(labels.iter().any(|(key, value)| key.contains("distribution.source") && value == "early"), "{labels:?}");
}

/// A registry's stand-in with one blob.
struct One(Bytes);

#[async_trait]
impl BlobSource for One {
    async fn fetch(&self, _: &Descriptor, offset: u64) -> fault::Result<ByteStream> {
        let rest = self.0.slice(offset as usize..);
        Ok(Box::pin(futures_util::stream::once(async move { Ok(rest) })))
    }
}

fn lazy(home: &Home) -> (Layer, Digest) {
    let tar = Bytes::from(Tar::new().file("lazy", 0o644, "1").finish());
    let descriptor = Descriptor::of(media::OCI_LAYER, &tar);
    let (digest, diff_id) = (descriptor.digest.clone(), Digest::of(&tar));
    let layer = ImageLayer { descriptor, diff_id, created: None, properties: Properties::new("pulled") };
    (home.layers.from_image(vec![layer], Arc::new(One(tar))).unwrap().unwrap(), digest)
}

#[tokio::test]
async fn lazy_layers_are_only_fetched_where_their_bytes_leave() {
    let home = Home::new();
    let (layer, digest) = lazy(&home);
    let source = with_config(single(Some(layer)));
    home.export("image", &[], &source).await.unwrap();
    assert_eq!(home.store.has(&digest).unwrap(), None);
    home.export("oci", &[], &source).await.unwrap();
    assert!(read_tar(&home.client.file()).contains_key(&format!("blobs/sha256/{}", digest.hex())));
    assert!(home.store.has(&digest).unwrap().is_some());
}

#[tokio::test]
async fn a_platform_that_cannot_be_sent_leaves_the_tag_as_it_was() {
    let (home, registry) = (Home::new(), Registry::start());
    let name = format!("{}/app:v1", registry.host());
    let push = [("name", name.as_str()), ("push", "")];
    let before = home.export("image", &push, &with_config(single(Some(two_layers(&home))))).await.unwrap();
    // Of the other platform a layer is elsewhere, and what comes from there is something else.
    let tar = Bytes::from(Tar::new().file("lazy", 0o644, "1").finish());
    let descriptor = Descriptor::of(media::OCI_LAYER, &tar);
    let layer = ImageLayer { descriptor, diff_id: Digest::of(&tar), created: None, properties: Properties::new("pulled") };
    let damaged = home.layers.from_image(vec![layer], Arc::new(One(Bytes::from_static(b"damaged")))).unwrap();
    let other = home.layer(None, "COPY c", |root| fs::write(root.join("c"), "3").unwrap());
    let source = with_config(map([("linux/amd64", Some(other)), ("linux/arm64", damaged)]));
    home.export("image", &push, &source).await.unwrap_err();
    assert_eq!(Digest::of(registry.get("/v2/app/manifests/v1").body).as_str(), before["containerimage.digest"]);
    let fresh = format!("{}/fresh:v1", registry.host());
    home.export("image", &[("name", &fresh), ("push", "")], &source).await.unwrap_err();
    assert_eq!(registry.get("/v2/fresh/manifests/v1").status, 404);
}

#[tokio::test]
async fn an_oci_tar_goes_to_the_client_with_the_response() {
    let home = Home::new();
    let source = with_config(single(Some(two_layers(&home))));
    let response = home.export("oci", &[("name", "x"), ("compression", "zstd"), ("source-date-epoch", "5")], &source).await.unwrap();
    assert_eq!(response["image.name"], "docker.io/library/x:latest");
    assert_eq!(descriptor(&response)["annotations"]["org.opencontainers.image.created"], "1970-01-01T00:00:05Z");
    {
        let files = home.client.files.lock().unwrap();
        assert_eq!((files[0].exporter, &files[0].metadata), (3, &response));
    }
    let entries = read_tar(&home.client.file());
    let index: Value = serde_json::from_slice(&entries["index.json"].data).unwrap();
    assert_eq!(index["manifests"][0]["digest"], response["containerimage.digest"].as_str());
    let root = response["containerimage.digest"].trim_start_matches("sha256:");
    let manifest: Value = serde_json::from_slice(&entries[&format!("blobs/sha256/{root}")].data).unwrap();
    assert_eq!(manifest["layers"][1]["mediaType"], media::OCI_LAYER_ZSTD);
    assert!(home.rows().contains(&"sending tarball".to_owned()));
    assert!(!entries.contains_key("manifest.json"));
}

#[tokio::test]
async fn a_client_that_has_the_image_is_no_failure() {
    let home = Home::new();
    let source = with_config(single(None));
    *home.client.refuse.lock().unwrap() = Some(Kind::AlreadyExists);
    home.export("docker", &[], &source).await.unwrap();
    *home.client.refuse.lock().unwrap() = Some(Kind::Exhausted);
    assert_eq!(home.export("docker", &[], &source).await.unwrap_err().to_string(), "refused");
}

#[tokio::test]
async fn a_clients_content_store_gets_what_names_others_last() {
    let home = Home::new();
    let source = with_config(map([("linux/amd64", Some(two_layers(&home))), ("linux/arm64", None)]));
    let response = home.export("oci", &[("tar", "false")], &source).await.unwrap();
    let order = home.client.order.lock().unwrap().clone();
    assert_eq!(order.last().unwrap().as_str(), response["containerimage.digest"]);
    assert_eq!(order.len(), 2 + 2 + 2 + 1, "layers, configs, manifests, the index");
    let failure = home.export("docker", &[], &source).await.unwrap_err();
    assert_eq!(failure.to_string(), "docker exporter does not currently support exporting manifest lists");
}

#[tokio::test(flavor = "multi_thread")]
async fn estargz_names_its_tables_in_the_manifest_and_its_archives_in_the_config() {
    let home = Home::new();
    let source = with_config(single(Some(two_layers(&home))));
    let response = home.export("oci", &[("compression", "estargz")], &source).await.unwrap();
    let all = blobs(&home.client.file());
    let manifest: Value = serde_json::from_slice(&all[&response["containerimage.digest"]]).unwrap();
    let config: Value = serde_json::from_slice(&all[manifest["config"]["digest"].as_str().unwrap()]).unwrap();
    for (layer, diff_id) in manifest["layers"].as_array().unwrap().iter().zip(config["rootfs"]["diff_ids"].as_array().unwrap()) {
        assert_eq!(layer["mediaType"], media::OCI_LAYER_GZIP);
        let annotations: Vec<&str> = layer["annotations"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(annotations, ["containerd.io/snapshot/stargz/toc.digest", "io.containers.estargz.uncompressed-size"]);
        let mut plain = Vec::new();
        let packed = all[layer["digest"].as_str().unwrap()].as_slice();
        std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(packed), &mut plain).unwrap();
        assert_eq!(diff_id, Digest::of(&plain).as_str());
        assert_eq!(layer["annotations"]["io.containers.estargz.uncompressed-size"], plain.len().to_string());
    }
}

/// The blobs of an OCI tar.
fn blobs(tar: &[u8]) -> std::collections::BTreeMap<String, Vec<u8>> {
    let entries = read_tar(tar).into_iter();
    entries.filter_map(|(name, entry)| Some((format!("sha256:{}", name.strip_prefix("blobs/sha256/")?), entry.data))).collect()
}

#[tokio::test]
async fn rewritten_times_give_the_same_image_whenever_it_was_made() {
    let attrs = [("rewrite-timestamp", "true"), ("source-date-epoch", "1700000000"), ("compression", "uncompressed")];
    let mut digests = Vec::new();
    for seconds in [1_800_000_000, 1_900_000_000] {
        let home = Home::new();
        let times = |path: &std::path::Path, seconds: i64| {
            let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: 5 };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
        };
        let base = home.layer(None, "base", |root| {
            fs::write(root.join("base"), "0").unwrap();
            times(&root.join("base"), 1_750_000_000);
        });
        let layer = home.layer(Some(&base), "new", |root| {
            fs::create_dir(root.join("d")).unwrap();
            fs::write(root.join("d/new"), "1").unwrap();
            fs::write(root.join("old"), "2").unwrap();
            times(&root.join("d/new"), seconds);
            times(&root.join("d"), seconds);
            times(&root.join("old"), 1_600_000_000);
        });
        let mut source = with_config(single(Some(layer)));
        let base_id = home.export("oci", &[("compression", "uncompressed")], &single(Some(base))).await.unwrap();
        let tar = home.client.file();
        let manifest: Value = serde_json::from_slice(&blobs(&tar)[&base_id["containerimage.digest"]]).unwrap();
        let diff_id = manifest["layers"][0]["digest"].as_str().unwrap().to_owned();
        let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [diff_id]}});
        source.metadata.insert("containerimage.base.config".into(), Bytes::from(config.to_string()));
        // History tells when layers were made; that is clamped as well.
        let response = home.export("oci", &attrs, &source).await.unwrap();
        let again = home.export("oci", &attrs, &source).await.unwrap();
        assert_eq!(response["containerimage.digest"], again["containerimage.digest"]);
        let all = blobs(&home.client.file());
        let manifest: Value = serde_json::from_slice(&all[&response["containerimage.digest"]]).unwrap();
        assert_eq!(manifest["layers"][0]["digest"], diff_id.as_str(), "the base image is left alone");
        assert_eq!(manifest["layers"][0].get("annotations"), None);
        assert_eq!(manifest["layers"][1]["annotations"], json!({"buildkit/rewritten-timestamp": "1700000000"}));
        let layer = read_tar(&all[manifest["layers"][1]["digest"].as_str().unwrap()]);
        let times: Vec<(&str, i64)> = layer.iter().map(|(name, entry)| (name.as_str(), entry.mtime)).collect();
        assert_eq!(times, [("d", 1_700_000_000), ("d/new", 1_700_000_000), ("old", 1_600_000_000)]);
        let config: Value = serde_json::from_slice(&all[&response["containerimage.config.digest"]]).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][1], manifest["layers"][1]["digest"]);
        assert!(home.rows().iter().any(|r| r == "rewriting layers with source-date-epoch 1700000000 (2023-11-14 22:13:20 +0000 UTC)"));
        digests.push((manifest["layers"][1]["digest"].clone(), response["containerimage.digest"].clone()));
    }
    assert_eq!(digests[0], digests[1]);
    let home = Home::new();
    let source = with_config(single(Some(two_layers(&home))));
    home.export("image", &[("rewrite-timestamp", "true")], &source).await.unwrap();
}

/// Tells how many layers of the result had blobs when it was asked.
struct Witness(Layer);

#[async_trait]
impl export::Author for Witness {
    async fn predicate(&self) -> fault::Result<Bytes> {
        let packed = self.0.chain().iter().filter(|layer| !layer.known_blobs().is_empty()).count();
        Ok(json!({ "packed": packed }).to_string().into())
    }
}

#[tokio::test]
async fn statements_are_written_once_the_layers_are_packed_and_boms_learn_of_these() {
    let home = Home::new();
    let layer = two_layers(&home);
    let mut source = with_config(single(Some(layer.clone())));
    let statement = |kind: &str, path: &str, predicate| Statement {
        predicate_type: kind.into(),
        predicate,
        path: path.into(),
        inline_only: false,
        subjects: Vec::new(),
        sbom_core: Some("sbom".into()),
    };
    let document = json!({"spdxVersion": "SPDX-2.3", "files": [{"fileName": "/a"}, {"fileName": "/none"}]}).to_string();
    let statements = vec![
        statement("https://spdx.dev/Document", "sbom.spdx.json", Predicate::Given(document.into())),
        statement("late", "late.json", Predicate::Late(Arc::new(Witness(layer)))),
    ];
    source.attestations.insert("linux/amd64".into(), statements);
    let response = home.export("oci", &[("name", "r.io/x")], &source).await.unwrap();
    let all = blobs(&home.client.file());
    let read = |digest: &Value| -> Value { serde_json::from_slice(&all[digest.as_str().unwrap()]).unwrap() };
    let index = read(&json!(response["containerimage.digest"]));
    let (image, attestation) = (read(&index["manifests"][0]["digest"]), read(&index["manifests"][1]["digest"]));
    assert_eq!(attestation["subject"]["digest"], index["manifests"][0]["digest"]);
    let bom = read(&attestation["layers"][0]["digest"]);
    assert_eq!(bom["predicate"]["files"][0]["comment"], format!("layerID: {}", image["layers"][0]["digest"].as_str().unwrap()));
    assert_eq!(bom["predicate"]["files"][1].get("comment"), None);
    assert_eq!(bom["subject"][0]["name"], "pkg:docker/r.io/x@latest?platform=linux%2Famd64");
    assert_eq!(read(&attestation["layers"][1]["digest"])["predicate"], json!({"packed": 2}));
}

/// Notes what it is asked, and gives that as the cache.
#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

#[async_trait]
impl export::CacheAuthor for Notes {
    async fn cache(
        &self,
        id: &str,
        diff_ids: &[Digest],
        compression: layers::Compression,
        _: &progress::Reporter,
    ) -> fault::Result<Option<Bytes>> {
        let asked = format!("{id} {} {diff_ids:?}", compression.kind.name());
        self.0.lock().unwrap().push(asked.clone());
        Ok(Some(asked.into()))
    }
}

/// Whatever times the image's own layers get: the next build compares with the layers that the steps made.
#[tokio::test]
async fn an_image_carries_the_cache_of_its_layers_as_the_steps_made_them() {
    let home = Home::new();
    let notes = Arc::new(Notes::default());
    let mut source = with_config(single(Some(two_layers(&home))));
    source.inline_cache = Some(notes.clone());
    let mut diff_ids = Vec::new();
    for attrs in [&[][..], &[("rewrite-timestamp", "true"), ("source-date-epoch", "1700000000")]] {
        home.export("oci", &[attrs, &[("name", "r.io/x"), ("compression", "zstd")]].concat(), &source).await.unwrap();
        let all = blobs(&home.client.file());
        let config =
            all.values().filter_map(|blob| serde_json::from_slice::<Value>(blob).ok()).find(|v| v.get("rootfs").is_some()).unwrap();
        let asked = notes.0.lock().unwrap().last().unwrap().clone();
        let carried = base64::engine::general_purpose::STANDARD.decode(config["moby.buildkit.cache.v0"].as_str().unwrap()).unwrap();
        assert_eq!(String::from_utf8(carried).unwrap(), asked);
        diff_ids.push(config["rootfs"]["diff_ids"].clone());
    }
    let asked = notes.0.lock().unwrap().clone();
    assert_eq!((asked.len(), &asked[0]), (2, &asked[1]));
    assert!(asked[0].starts_with("linux/amd64 zstd ["), "{asked:?}");
    for diff_id in diff_ids[0].as_array().unwrap() {
        assert!(asked[0].contains(diff_id.as_str().unwrap()), "{asked:?}");
    }
    assert_ne!(diff_ids[0], diff_ids[1]);
}
