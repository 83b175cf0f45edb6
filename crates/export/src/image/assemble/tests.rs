use oci::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::attrs::Attrs;
use crate::image::options::ImageOptions;

pub fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let db = kv::Db::open(&dir.path().join("db"), kv::Options::default()).unwrap();
    let store = Store::open(dir.path(), db).unwrap();
    (dir, store)
}

pub fn layer(store: &Store, text: &str) -> Packed {
    let _hold = store.put(text.as_bytes()).unwrap();
    let mut descriptor = Descriptor::of(media::OCI_LAYER_GZIP, text.as_bytes());
    for (key, value) in [(UNCOMPRESSED, "x"), (CREATED_AT, "y"), ("containerd.io/distribution.source.r.io", "a/b"), ("kept", "z")] {
        descriptor.annotations.insert(key.into(), value.into());
    }
    let facts = LayerFacts {
        diff_id: Digest::of(format!("diff {text}")),
        created: Some(Timestamp::from_unix(1_000_000_000, 0)),
        description: format!("RUN {text}"),
    };
    Packed { descriptor, facts }
}

pub fn options(pairs: &[(&str, &str)], draft: &Draft) -> Result<Settled> {
    let attrs = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    ImageOptions::take(&mut Attrs::new(&attrs), 30, true)?.settle("image", &draft.metadata, !draft.attestations.is_empty(), false)
}

pub fn draft(store: &Store, platforms: &[&str]) -> Draft {
    let part = |id: &&str| Part { id: (*id).into(), platform: id.parse().unwrap(), layers: vec![layer(store, id), layer(store, "top")] };
    let config = |id: &&str| {
        let platform: Platform = id.parse().unwrap();
        let config =
            json!({"architecture": platform.architecture, "os": "linux", "config": {"Cmd": ["sh"]}, "created": "2001-09-09T01:46:40Z"});
        (format!("containerimage.config/{id}"), Bytes::from(config.to_string()))
    };
    Draft {
        parts: platforms.iter().map(part).collect(),
        is_map: platforms.len() > 1,
        metadata: platforms.iter().map(config).collect(),
        ..Draft::default()
    }
}

fn statement(inline_only: bool) -> Written {
    Written {
        predicate_type: "https://slsa.dev/provenance/v1".into(),
        predicate: "{}".into(),
        path: "provenance.json".into(),
        inline_only,
        subjects: Vec::new(),
        sbom_core: None,
    }
}

fn built(store: &Store, draft: &Draft, pairs: &[(&str, &str)]) -> Result<Image> {
    let options = options(pairs, draft)?;
    let platforms: Vec<&str> = draft.parts.iter().map(|part| part.id.as_str()).collect();
    let statements: Vec<bool> = draft.attestations.values().flatten().map(|statement| statement.inline_only).collect();
    check(draft.is_map, &platforms, &statements, &options)?;
    assemble(draft, &options, store, &Reporter::silent())
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn a_single_result_is_a_manifest() {
    let (_dir, store) = store();
    let draft = draft(&store, &["linux/amd64"]);
    let image = built(&store, &draft, &[("annotation.a", "1"), ("annotation-manifest-descriptor.b", "2")]).unwrap();
    let (base, top) = (Digest::of("linux/amd64"), Digest::of("top"));
    let config = image.config.clone().unwrap();
    let size = store.has(&config).unwrap().unwrap();
    let want = format!(
        r#"{{
  "schemaVersion": 2,
  "mediaType": "application/vnd.oci.image.manifest.v1+json",
  "config": {{
    "mediaType": "application/vnd.oci.image.config.v1+json",
    "digest": "{config}",
    "size": {size}
  }},
  "layers": [
    {{
      "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
      "digest": "{base}",
      "size": 11,
      "annotations": {{
        "kept": "z"
      }}
    }},
    {{
      "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
      "digest": "{top}",
      "size": 3,
      "annotations": {{
        "kept": "z"
      }}
    }}
  ],
  "annotations": {{
    "a": "1"
  }}
}}"#
    );
    assert_eq!(text(&image.root.bytes), want);
    let diff_ids = ["linux/amd64", "top"].map(|t| Digest::of(format!("diff {t}")));
    let history =
        |t: &str| format!(r#"{{"created":"2001-09-09T01:46:40Z","created_by":"RUN {t}","comment":"buildkit.exporter.image.v0"}}"#);
    let want = format!(
        r#"{{"architecture":"amd64","config":{{"Cmd":["sh"]}},"created":"2001-09-09T01:46:40Z","history":[{},{}],"os":"linux","rootfs":{{"type":"layers","diff_ids":["{}","{}"]}}}}"#,
        history("linux/amd64"),
        history("top"),
        diff_ids[0],
        diff_ids[1]
    );
    assert_eq!(text(&store.read(&config).unwrap()), want);
    assert_eq!(image.root.descriptor.platform, Some("linux/amd64".parse().unwrap()));
    assert_eq!(image.root.descriptor.annotations["b"], "2");
    let sources = &image.root.blobs[1].annotations;
    assert_eq!(sources["containerd.io/distribution.source.r.io"], "a/b", "a push can mount from there");
    let labels = store.labels(&image.root.descriptor.digest).unwrap();
    assert_eq!(labels[0], ("containerd.io/gc.ref.content.0".to_owned(), config.to_string()));
}

#[test]
fn dockers_types_have_no_annotations() {
    let (_dir, store) = store();
    let mut draft = draft(&store, &["linux/amd64"]);
    draft.parts[0].layers[0].descriptor.media_type = media::OCI_NONDIST_GZIP.into();
    draft.parts[0].layers[0].descriptor.urls = vec!["http://x".into()];
    let image = built(&store, &draft, &[("oci-mediatypes", "false")]).unwrap();
    let manifest: Value = serde_json::from_slice(&image.root.bytes).unwrap();
    assert_eq!((&manifest["mediaType"], &manifest["config"]["mediaType"]), (&json!(media::DOCKER_MANIFEST), &json!(media::DOCKER_CONFIG)));
    assert_eq!(manifest["layers"][0], json!({"mediaType": media::DOCKER_LAYER_GZIP, "digest": Digest::of("linux/amd64"), "size": 11}));
    let image = built(&store, &draft, &[("oci-mediatypes", "false"), ("prefer-nondist-layers", "1")]).unwrap();
    let manifest: Value = serde_json::from_slice(&image.root.bytes).unwrap();
    assert_eq!(
        (&manifest["layers"][0]["mediaType"], &manifest["layers"][0]["urls"]),
        (&json!(media::DOCKER_FOREIGN_GZIP), &json!(["http://x"]))
    );
}

#[test]
fn an_empty_result_has_null_layers() {
    let (_dir, store) = store();
    let mut draft = draft(&store, &["linux/amd64"]);
    draft.parts[0].layers.clear();
    let image = built(&store, &draft, &[]).unwrap();
    assert!(text(&image.root.bytes).ends_with("  \"layers\": null\n}"), "{}", text(&image.root.bytes));
}

#[test]
fn platforms_and_statements_share_an_index() {
    let (_dir, store) = store();
    let mut draft = draft(&store, &["linux/amd64", "linux/arm64"]);
    draft.attestations = BTreeMap::from([("linux/arm64".to_owned(), vec![statement(false)])]);
    draft.names = "r.io/x:1".into();
    let image =
        built(&store, &draft, &[("annotation-index.i", "1"), ("annotation-index-descriptor.d", "2"), ("annotation[linux/arm64].m", "3")]);
    let image = image.unwrap();
    assert_eq!(image.config, None);
    assert_eq!(image.root.descriptor.annotations["d"], "2");
    let arm = &image.children[1].descriptor;
    let attestation = &image.children[2];
    let want = json!({
        "schemaVersion": 2,
        "mediaType": media::OCI_INDEX,
        "manifests": [
            {"mediaType": media::OCI_MANIFEST, "digest": image.children[0].descriptor.digest, "size": image.children[0].bytes.len(),
             "platform": {"architecture": "amd64", "os": "linux"}},
            {"mediaType": media::OCI_MANIFEST, "digest": arm.digest, "size": arm.size, "platform": {"architecture": "arm64", "os": "linux"}},
            {"mediaType": media::OCI_MANIFEST, "digest": attestation.descriptor.digest, "size": attestation.bytes.len(),
             "annotations": {"vnd.docker.reference.digest": arm.digest, "vnd.docker.reference.type": "attestation-manifest"},
             "platform": {"architecture": "unknown", "os": "unknown"}},
        ],
        "annotations": {"i": "1"},
    });
    assert_eq!(text(&image.root.bytes), text(&gojson::to_vec_indent(&want)));
    let manifest: Value = serde_json::from_slice(&image.children[1].bytes).unwrap();
    assert_eq!(manifest["annotations"], json!({"m": "3"}));
    let statement: Value = serde_json::from_slice(&store.read(&attestation.blobs[1].digest).unwrap()).unwrap();
    assert_eq!(statement["subject"][0]["name"], "pkg:docker/r.io/x@1?platform=linux%2Farm64");
    let want = json!({
        "schemaVersion": 2,
        "mediaType": media::OCI_MANIFEST,
        "artifactType": "application/vnd.docker.attestation.manifest.v1+json",
        "config": {"mediaType": media::OCI_EMPTY, "digest": Digest::of("{}"), "size": 2, "data": "e30="},
        "layers": [{"mediaType": media::IN_TOTO, "digest": attestation.blobs[1].digest, "size": attestation.blobs[1].size,
            "annotations": {"in-toto.io/predicate-type": "https://slsa.dev/provenance/v1"}}],
        "subject": {"mediaType": media::OCI_MANIFEST, "digest": arm.digest, "size": arm.size},
    });
    assert_eq!(text(&attestation.bytes), text(&gojson::to_vec_indent(&want)));

    let image = built(&store, &draft, &[("oci-artifact", "false")]).unwrap();
    let attestation = &image.children[2];
    let layer = &attestation.blobs[1].digest;
    let want = format!(r#"{{"architecture":"unknown","os":"unknown","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{layer}"]}}}}"#);
    assert_eq!(text(&store.read(&attestation.blobs[0].digest).unwrap()), want);
    assert!(!text(&attestation.bytes).contains("subject"));
}

#[test]
fn inline_statements_alone_make_an_index_only_where_wanted() {
    let (_dir, store) = store();
    let mut draft = draft(&store, &["linux/amd64"]);
    draft.attestations = BTreeMap::from([("linux/amd64".to_owned(), vec![statement(true)])]);
    assert!(built(&store, &draft, &[]).unwrap().config.is_none());
    assert!(built(&store, &draft, &[("attestation-inline", "false")]).unwrap().config.is_some());
}

#[test]
fn what_does_not_go_together_is_named() {
    let (_dir, store) = store();
    let mut one = draft(&store, &["linux/amd64"]);
    let two = Draft { is_map: false, ..draft(&store, &["linux/amd64", "linux/arm64"]) };
    let failure = |draft: &Draft, pairs: &[(&str, &str)]| built(&store, draft, pairs).unwrap_err().to_string();
    assert_eq!(failure(&one, &[("annotation-index.a", "1")]), "index annotations not supported for single platform export");
    assert_eq!(failure(&two, &[]), "cannot export multiple platforms without multi-platform enabled");
    let map = Draft { is_map: true, ..two };
    assert_eq!(failure(&map, &[("annotation[linux/s390x].a", "1")]), "invalid annotation: no platform linux/s390x found in source");
    one.attestations = BTreeMap::from([("linux/amd64".to_owned(), vec![statement(false)])]);
    assert_eq!(failure(&one, &[("oci-mediatypes", "false")]), "cannot export attestations with \"oci-mediatypes=false\"");
}
