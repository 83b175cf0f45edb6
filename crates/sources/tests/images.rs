//! Images from a registry (Debian package `docker-registry`, which must be installed) and from a client's OCI layout.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use oci::{Descriptor, Digest, Index, media};
use serde_json::json;
use support::{Client, Place, Rows, context, op, read, vertex, watched};
use testkit::{BaseImage, Registry, Tar};

fn image(texts: &[&str]) -> BaseImage {
    let layer = |(n, text): (usize, &&str)| Tar::new().file(&format!("f{n}"), 0o644, *text).finish();
    BaseImage::of_layers(texts.iter().enumerate().map(layer).collect(), json!({"Env": ["A=1"]}))
}

async fn registry() -> Registry {
    tokio::task::spawn_blocking(Registry::start).await.unwrap()
}

async fn push(registry: Registry, tag: &'static str, image: BaseImage) -> Registry {
    tokio::task::spawn_blocking(move || {
        registry.push("team/app", tag, &image);
        registry
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn pins_then_fetches_lazily() {
    let base = image(&["one", "two"]);
    let registry = push(registry().await, "v1", base.clone()).await;
    let place = Place::new();
    let rows = Arc::new(Rows::default());
    let context = watched(&[], rows.clone());
    let reference = format!("{}/team/app:v1", registry.host());
    let source = vertex(&format!("docker-image://{reference}"), &[("image.recordtype", "frontend")]);

    let manifest_key = place.key(&source, 0, &context).await.unwrap();
    assert!(manifest_key.more);
    assert_eq!(manifest_key.pin, base.digest().to_string());
    let chain_key = place.key(&source, 1, &context).await.unwrap();
    let [one, two] = [0, 1].map(|n| Digest::of(&base.layers[n]));
    let chain = Digest::of(format!("{one} {two}"));
    assert_eq!((chain_key.digest, chain_key.more), (Digest::of(format!("buildkit.source.v0:{chain}")), false));
    assert!(rows.0.lock().unwrap().iter().any(|(id, _)| *id == format!("resolve {reference}")));

    let layer = place.fetch(&source, &context).await.unwrap().unwrap();
    assert!(!layer.is_realized());
    assert_eq!((layer.description(), layer.record_type()), (format!("pulled from {reference}"), "frontend"));
    let view = place.files(&layer, &context).await;
    assert_eq!((read(&view, "f0").as_str(), read(&view, "f1").as_str()), ("one", "two"));
    assert_eq!(place.fetch(&source, &context).await.unwrap().unwrap().id(), layer.id());
    let sources = layer.known_blobs()[0].annotations.clone();
    assert_eq!(registry::mount_candidate(&format!("{}/other", registry.host()).parse().unwrap(), &sources), Some("team/app"));
}

#[tokio::test]
async fn a_tag_is_asked_for_anew_and_a_digest_is_not() {
    let (old, new) = (image(&["one"]), image(&["one", "two"]));
    let registry = push(registry().await, "v1", old.clone()).await;
    let place = Place::new();
    let by_tag = vertex(&format!("docker-image://{}/team/app:v1", registry.host()), &[]);
    let context = context(&[]);
    assert_eq!(place.key(&by_tag, 0, &context).await.unwrap().pin, old.digest().to_string());
    let registry = push(registry, "v1", new.clone()).await;
    assert_eq!(place.key(&by_tag, 0, &context).await.unwrap().pin, new.digest().to_string());

    let host = registry.host();
    drop(registry);
    let pinned = op(&format!("docker-image://{host}/team/app:v1@{}", old.digest()), &[]);
    let config = place.sources.image_config(&pinned, None, true, &context).await.unwrap();
    assert_eq!((config.digest, config.config.as_ref()), (old.digest(), old.config.as_slice()));
    place.key(&by_tag, 0, &context).await.unwrap_err();
    let elsewhere = op(&format!("docker-image://{host}/team/other@{}", old.digest()), &[]);
    assert!(
        place.sources.image_config(&elsewhere, None, true, &context).await.is_err(),
        "content from one repository is no proof for another"
    );
}

#[tokio::test]
async fn limits_and_checksums_hold() {
    let base = image(&["one", "two", "three"]);
    let registry = push(registry().await, "v1", base.clone()).await;
    let place = Place::new();
    let context = context(&[]);
    let identifier = format!("docker-image://{}/team/app:v1", registry.host());
    let limited = vertex(&identifier, &[("image.layerlimit", "2")]);
    let layer = place.fetch(&limited, &context).await.unwrap().unwrap();
    assert_eq!(layer.chain().len(), 2);
    for (attr, text) in [
        (("image.layerlimit", "4"), "layer limit 4 is greater than the number of layers in the image 3".to_owned()),
        (
            ("image.checksum", "sha256:0000000000000000000000000000000000000000000000000000000000000000"),
            format!(
                "image digest {} for {}/team/app:v1 does not match expected checksum sha256:0000000000000000000000000000000000000000000000000000000000000000",
                base.digest(),
                registry.host()
            ),
        ),
    ] {
        assert_eq!(place.key(&vertex(&identifier, &[attr]), 0, &context).await.unwrap_err().to_string(), text);
    }
    let missing = vertex(&format!("docker-image://{}/team/app:nope", registry.host()), &[]);
    let text = place.key(&missing, 0, &context).await.unwrap_err().to_string();
    assert_eq!(text, format!("{}/team/app:nope: not found", registry.host()));
}

/// An index with statements about its image, and a signature of these among their referrers.
fn push_signed(registry: &Registry, image: &BaseImage) -> [Descriptor; 6] {
    const IN_TOTO: &str = "application/vnd.in-toto+json";
    let blob = |media_type: &str, data: &str| {
        registry.push_blob("team/app", data.as_bytes());
        Descriptor::of(media_type, data.as_bytes())
    };
    let manifest = |reference: Option<&str>, document: serde_json::Value| {
        let (bytes, kind) = (document.to_string().into_bytes(), document["mediaType"].as_str().unwrap().to_owned());
        let descriptor = Descriptor::of(&kind, &bytes);
        registry.push_manifest("team/app", reference.unwrap_or(descriptor.digest.as_str()), &kind, &bytes);
        descriptor
    };
    registry.push("team/app", "plain", image);
    let statement = |kind: &str| {
        let mut descriptor = blob(IN_TOTO, &format!("{{\"predicateType\":\"{kind}\"}}"));
        descriptor.annotations.insert("in-toto.io/predicate-type".into(), kind.into());
        descriptor
    };
    let (wanted, other) = (statement("https://slsa.dev/provenance/v1"), statement("https://spdx.dev/Document"));
    let config = blob("application/vnd.oci.image.config.v1+json", "{}");
    let layers = [&wanted, &other];
    let mut stated = manifest(None, json!({"schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "config": config, "layers": layers}));
    let proof = blob("application/vnd.dev.sigstore.bundle.v0.3+json", "proof");
    let mut signature = manifest(None, json!({"schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "config": config, "layers": [proof]}));
    signature.artifact_type = "application/vnd.dev.sigstore.bundle.v0.3+json".into();
    let tag = stated.digest.to_string().replace(':', "-");
    manifest(Some(&tag), json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": [signature]}));
    stated.annotations.insert(oci::REFERENCE_TYPE.into(), oci::ATTESTATION_MANIFEST.into());
    stated.annotations.insert(oci::REFERENCE_DIGEST.into(), image.digest().to_string());
    let mut described = Descriptor::of(media::OCI_MANIFEST, &image.manifest);
    described.platform = Some("linux/amd64".parse().unwrap());
    let root = manifest(Some("signed"), json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": [described, stated]}));
    [root, stated, signature, proof, wanted, other]
}

#[tokio::test]
async fn statements_are_followed_to_their_signature() {
    let base = image(&["one"]);
    let registry = registry().await;
    let (registry, [root, stated, signature, proof, wanted, other], base) = tokio::task::spawn_blocking(move || {
        let signed = push_signed(&registry, &base);
        (registry, signed, base)
    })
    .await
    .unwrap();
    let place = Place::new();
    let context = context(&[]);
    let platform: oci::Platform = "linux/amd64".parse().unwrap();
    let op = |tag: &str| op(&format!("docker-image://{}/team/app:{tag}", registry.host()), &[]);
    let chain = |tag: &str, wanted: &[&str]| {
        let (op, wanted): (_, Vec<String>) = (op(tag), wanted.iter().map(|kind| (*kind).to_owned()).collect());
        let (place, context, platform) = (&place, &context, &platform);
        async move { place.sources.attestation_chain(&op, Some(platform), &wanted, context).await.unwrap() }
    };
    assert_eq!(chain("plain", &[]).await, None);
    let found = chain("signed", &[]).await.unwrap();
    assert_eq!((&found.root, &found.image), (&root.digest, &base.digest()));
    assert_eq!((found.attestations.as_ref(), found.signature.as_ref()), (Some(&stated.digest), Some(&signature.digest)));
    let digests = |chain: &sources::Chain| chain.blobs.iter().map(|(d, _)| d.digest.clone()).collect::<Vec<_>>();
    let proofs = [root, stated, signature, proof].map(|d| d.digest);
    assert_eq!(digests(&found), proofs);
    assert!(found.blobs.iter().all(|(d, bytes)| d.digest == Digest::of(bytes)));
    let with = chain("signed", &["https://slsa.dev/provenance/v1"]).await.unwrap();
    assert_eq!(digests(&with)[4..], [wanted.digest]);
    assert!(!digests(&with).contains(&other.digest));
}

/// An index for two platforms in a client's OCI layout.
fn layout(client: &Client) -> (Descriptor, BaseImage) {
    let (wanted, other) = (image(&["wanted"]), image(&["other"]));
    let mut blobs = client.blobs.lock().unwrap();
    let mut put = |data: &[u8]| {
        blobs.insert(format!("oci:store/{}", Digest::of(data)), data.to_vec().into());
    };
    let mut manifests = Vec::new();
    for (image, platform) in [(&other, "linux/arm64"), (&wanted, "linux/amd64")] {
        image.layers.iter().chain([&image.config, &image.manifest]).for_each(|blob| put(blob));
        let mut descriptor = Descriptor::of(media::OCI_MANIFEST, &image.manifest);
        descriptor.platform = Some(platform.parse().unwrap());
        manifests.push(descriptor);
    }
    let index = Index {
        schema_version: 2,
        media_type: media::OCI_INDEX.into(),
        artifact_type: String::new(),
        manifests,
        subject: None,
        annotations: oci::Annotations::new(),
    };
    let bytes = index.to_bytes();
    put(&bytes);
    (Descriptor::of(media::OCI_INDEX, &bytes), wanted)
}

#[tokio::test]
async fn layouts_are_read_from_the_client() {
    let client = Arc::new(Client::new("s1"));
    let (root, wanted) = layout(&client);
    let place = Place::new();
    let context = context(std::slice::from_ref(&client));
    let attrs = [("oci.store", "store"), ("oci.session", "s1")];
    let identifier = format!("oci-layout://not/used@{}", root.digest);
    let source = vertex(&identifier, &attrs);
    assert_eq!(place.key(&source, 0, &context).await.unwrap().pin, root.digest.to_string());
    let layer = place.fetch(&source, &context).await.unwrap().unwrap();
    assert_eq!(read(&place.files(&layer, &context).await, "f0"), "wanted");
    let config = place.sources.image_config(&op(&identifier, &attrs), Some(&"linux/amd64".parse().unwrap()), true, &context).await.unwrap();
    assert_eq!((config.digest, config.config.as_ref()), (root.digest.clone(), wanted.config.as_slice()));
    let error =
        place.sources.image_config(&op(&identifier, &attrs), Some(&"linux/s390x".parse().unwrap()), true, &context).await.unwrap_err();
    assert_eq!(error.to_string(), format!("no match for platform in manifest {}: not found", root.digest));
    let key = format!("oci:store/{}", wanted.digest());
    client.blobs.lock().unwrap().insert(key, "{}".into());
    let error = place.key(&source, 0, &context).await.unwrap_err();
    assert!(error.to_string().contains("unexpected digest"), "{error}");
}

#[tokio::test]
async fn single_blobs_become_files() {
    let base = image(&["one"]);
    let registry = push(registry().await, "v1", base.clone()).await;
    let place = Place::new();
    let context = context(&[]);
    let digest = Digest::of(&base.config);
    let source = vertex(
        &format!("docker-image+blob://{}/team/app@{digest}", registry.host()),
        &[("http.filename", "config.json"), ("http.perm", "0640")],
    );
    let key = place.key(&source, 0, &context).await.unwrap();
    let json = format!(r#"{{"Digest":"{digest}","Filename":"config.json","Perm":416,"UID":0,"GID":0}}"#);
    assert_eq!(key.digest, Digest::of(format!("buildkit.source.v0:{}", Digest::of(json))));
    let layer = place.fetch(&source, &context).await.unwrap().unwrap();
    let view = layer.view().unwrap();
    assert_eq!(read(&view, "config.json").as_bytes(), base.config);
    let entry = view.require("config.json", snapshot::Follow::No).unwrap();
    assert_eq!((entry.metadata().mode & 0o7777, entry.metadata().mtime.unix_nanos()), (0o640, 0));
}

#[tokio::test]
async fn unknown_schemes_are_named() {
    let place = Place::new();
    for (identifier, text) in [("alpine", "failed to parse alpine: invalid"), ("ftp://x", "unknown scheme ftp: not found")] {
        assert_eq!(place.key(&vertex(identifier, &[]), 0, &context(&[])).await.unwrap_err().to_string(), text);
    }
}
