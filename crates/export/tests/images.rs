//! `image`, `oci` and `docker` exports of real layers, and pushes to a real registry (Debian's docker-registry).
#![allow(clippy::unwrap_used)]
mod support;

use std::fs;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use bytes::Bytes;
use export::Statement;
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
    let statement =
        |_| Statement { predicate_type: "t".into(), predicate: Bytes::from_static(b"{}"), path: "p.json".into(), inline_only: true };
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

#[tokio::test]
async fn what_kiln_does_not_do_it_says() {
    let home = Home::new();
    let source = with_config(single(Some(two_layers(&home))));
    let failure = home.export("image", &[("compression", "estargz")], &source).await.unwrap_err();
    assert!(failure.to_string().contains("estargz"), "{failure}");
    let rewrite = [("rewrite-timestamp", "true"), ("source-date-epoch", "1")];
    let failure = home.export("image", &rewrite, &source).await.unwrap_err();
    assert!(failure.to_string().contains("\"rewrite-timestamp\" is not supported"), "{failure}");
    home.export("image", &rewrite[..1], &source).await.unwrap();
}
