//! From packed layers to manifests, configs and an index in the content store.
use std::collections::BTreeMap;

use bytes::Bytes;
use content::{Hold, Store};
use fault::{Fault, Result};
use oci::{Annotations, Descriptor, Digest, Index, Manifest, Platform, REFERENCE_DIGEST, REFERENCE_TYPE, gojson, media};
use progress::Reporter;

use crate::annotations;
use crate::api::Statement;
use crate::attestation::{image_subjects, render};
use crate::attrs::lookup;
use crate::config::{self, LayerFacts, Patch};
use crate::image::options::Settled;

/// A layer with a blob. Its descriptor still has the annotations that stay inside the house.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    pub descriptor: Descriptor,
    pub facts: LayerFacts,
}

/// One platform's layers, lowest first.
#[derive(Debug, Clone)]
pub struct Part {
    pub id: String,
    pub platform: Platform,
    pub layers: Vec<Packed>,
}

/// What an image is made of.
#[derive(Debug, Clone, Default)]
pub struct Draft {
    pub parts: Vec<Part>,
    pub is_map: bool,
    pub metadata: BTreeMap<String, Bytes>,
    pub attestations: BTreeMap<String, Vec<Statement>>,
    /// Comma-separated; subjects of the statements.
    pub names: String,
}

/// A manifest or an index in the content store, and the blobs it names other than manifests.
#[derive(Debug, Clone)]
pub struct Document {
    pub descriptor: Descriptor,
    pub bytes: Bytes,
    pub blobs: Vec<Descriptor>,
}

/// An image in the content store. Its layers may still be elsewhere.
#[derive(Debug, Clone)]
pub struct Image {
    pub root: Document,
    /// The index's manifests.
    pub children: Vec<Document>,
    /// Where the root is a manifest.
    pub config: Option<Digest>,
    /// Keeps all but the layers from being swept.
    pub holds: Vec<Hold>,
}

impl Image {
    /// Every document, the root last.
    pub fn documents(&self) -> impl Iterator<Item = &Document> {
        self.children.iter().chain([&self.root])
    }
}

const ATTESTATION_ARTIFACT: &str = "application/vnd.docker.attestation.manifest.v1+json";
const UNCOMPRESSED: &str = "containerd.io/uncompressed";
const CREATED_AT: &str = "buildkit/createdat";

/// Plain disk work. Every document has a row in the progress.
pub fn assemble(draft: &Draft, options: &Settled, store: &Store, reporter: &Reporter) -> Result<Image> {
    let writer = Writer { options, store, reporter, holds: Vec::new() };
    let known = |id: &str| !draft.is_map || draft.parts.len() == 1 || draft.parts.iter().any(|p| p.id == id);
    options.annotations.check(options.oci_types, known)?;
    if draft.is_map || needs_index(draft, options) { writer.index(draft) } else { writer.single(draft) }
}

/// A single result becomes an index to hold statements, unless these are all to be left out here.
fn needs_index(draft: &Draft, options: &Settled) -> bool {
    let counts = |s: &Statement| options.inline_attestations || !s.inline_only;
    draft.parts.iter().any(|part| draft.attestations.get(&part.id).is_some_and(|all| all.iter().any(counts)))
}

struct Writer<'a> {
    options: &'a Settled,
    store: &'a Store,
    reporter: &'a Reporter,
    holds: Vec<Hold>,
}

impl Writer<'_> {
    fn single(mut self, draft: &Draft) -> Result<Image> {
        let [part] = draft.parts.as_slice() else {
            return Err(Fault::invalid("cannot export multiple platforms without multi-platform enabled"));
        };
        let annotations = self.options.annotations.of(None);
        if !(annotations.index.is_empty() && annotations.index_descriptor.is_empty()) {
            return Err(Fault::invalid("index annotations not supported for single platform export"));
        }
        let mut root = self.manifest(draft, part, &annotations)?;
        root.descriptor.platform = Some(part.platform.clone());
        let config = root.blobs.first().map(|c| c.digest.clone());
        Ok(Image { root, children: Vec::new(), config, holds: self.holds })
    }

    fn index(mut self, draft: &Draft) -> Result<Image> {
        if !self.options.oci_types && !draft.attestations.is_empty() {
            return Err(Fault::invalid("cannot export attestations with \"oci-mediatypes=false\""));
        }
        let (mut images, mut attestations) = (Vec::new(), Vec::new());
        for part in &draft.parts {
            let annotations = self.options.annotations.of(Some(&part.platform));
            let mut image = self.manifest(draft, part, &annotations)?;
            image.descriptor.platform = Some(part.platform.clone());
            if let Some(statements) = draft.attestations.get(&part.id) {
                attestations.push(self.attestation(draft, part, statements, &image.descriptor)?);
            }
            images.push(image);
        }
        images.extend(attestations);
        let all = self.options.annotations.of(None);
        let index = Index {
            schema_version: 2,
            media_type: if self.options.oci_types { media::OCI_INDEX } else { media::DOCKER_LIST }.into(),
            artifact_type: String::new(),
            manifests: images.iter().map(|d| d.descriptor.clone()).collect(),
            subject: None,
            annotations: all.index,
        };
        let bytes = Bytes::from(index.to_bytes());
        let mut descriptor = Descriptor::of(index.media_type, &bytes);
        descriptor.annotations = all.index_descriptor;
        let _row = self.row("exporting manifest list", &descriptor);
        self.put(&bytes, index.manifests.iter().map(|d| &d.digest))?;
        let root = Document { descriptor, bytes, blobs: Vec::new() };
        Ok(Image { root, children: images, config: None, holds: self.holds })
    }

    fn manifest(&mut self, draft: &Draft, part: &Part, annotations: &annotations::Annotations) -> Result<Document> {
        let config = self.config(draft, part)?;
        let (manifest_type, config_type) = self.types();
        let manifest = Manifest {
            schema_version: 2,
            media_type: manifest_type.into(),
            artifact_type: String::new(),
            config: Descriptor::of(config_type, &config),
            layers: part.layers.iter().map(|layer| self.public(&layer.descriptor)).collect(),
            subject: None,
            annotations: annotations.manifest.clone(),
        };
        let document = self.document(&manifest, "exporting manifest", annotations.manifest_descriptor.clone())?;
        let _row = self.row("exporting config", &manifest.config);
        self.put(&config, [])?;
        // The blobs keep what pushes need to know of them.
        let layers = document.blobs[1..].iter().zip(&part.layers).map(|(public, packed)| with_sources(public, &packed.descriptor));
        let blobs = document.blobs[..1].iter().cloned().chain(layers).collect();
        Ok(Document { blobs, ..document })
    }

    fn config(&self, draft: &Draft, part: &Part) -> Result<Vec<u8>> {
        let get = |key| lookup(&draft.metadata, key, &part.id).filter(|v| !v.is_empty());
        let config = get("containerimage.config").map_or_else(config::default_config, |c| c.to_vec());
        let facts: Vec<LayerFacts> = part.layers.iter().map(|l| l.facts.clone()).collect();
        let with = Patch {
            base: get("containerimage.base.config").map(|b| &b[..]),
            epoch: self.options.epoch.resolve(&draft.metadata, &part.id)?,
            inline_cache: get("containerimage.inlinecache").map(|c| &c[..]),
        };
        config::patch(&config, &facts, with)
    }

    fn attestation(&mut self, draft: &Draft, part: &Part, statements: &[Statement], image: &Descriptor) -> Result<Document> {
        let subjects = image_subjects(&draft.names, &part.platform, &image.digest)?;
        let mut layers = Vec::new();
        for statement in statements {
            let json = render(statement, &subjects)?;
            let mut descriptor = Descriptor::of(media::IN_TOTO, json.as_bytes());
            descriptor.annotations = Annotations::from([("in-toto.io/predicate-type".to_owned(), statement.predicate_type.clone())]);
            self.put(json.as_bytes(), [])?;
            layers.push(descriptor);
        }
        let (manifest_type, config_type) = self.types();
        let artifact = self.options.oci_artifact;
        let config = if artifact { b"{}".to_vec() } else { attestation_config(&layers) };
        let mut manifest = Manifest {
            schema_version: 2,
            media_type: manifest_type.into(),
            artifact_type: String::new(),
            config: Descriptor::of(config_type, &config),
            layers,
            subject: None,
            annotations: Annotations::new(),
        };
        if artifact {
            manifest.artifact_type = ATTESTATION_ARTIFACT.into();
            manifest.config = Descriptor { data: "e30=".into(), ..Descriptor::of(media::OCI_EMPTY, &config) };
            manifest.subject = Some(Descriptor::new(image.media_type.clone(), image.digest.clone(), image.size));
        }
        let references = Annotations::from([
            (REFERENCE_TYPE.to_owned(), oci::ATTESTATION_MANIFEST.to_owned()),
            (REFERENCE_DIGEST.to_owned(), image.digest.to_string()),
        ]);
        let mut document = self.document(&manifest, "exporting attestation manifest", references)?;
        self.put(&config, [])?;
        document.descriptor.platform = Some(Platform::new("unknown", "unknown", ""));
        Ok(document)
    }

    fn document(&mut self, manifest: &Manifest, step: &str, annotations: Annotations) -> Result<Document> {
        let bytes = Bytes::from(manifest.to_bytes());
        let mut descriptor = Descriptor::of(manifest.media_type.clone(), &bytes);
        descriptor.annotations = annotations;
        let _row = self.row(step, &descriptor);
        let blobs: Vec<Descriptor> = [&manifest.config].into_iter().chain(&manifest.layers).cloned().collect();
        self.put(&bytes, blobs.iter().map(|b| &b.digest))?;
        Ok(Document { descriptor, bytes, blobs })
    }

    fn put<'d>(&mut self, bytes: &[u8], children: impl IntoIterator<Item = &'d Digest>) -> Result<()> {
        let hold = self.store.put(bytes)?;
        for (number, child) in children.into_iter().enumerate() {
            self.store.set_label(hold.digest(), &format!("containerd.io/gc.ref.content.{number}"), child.as_str());
        }
        self.holds.push(hold);
        Ok(())
    }

    fn row(&self, step: &str, descriptor: &Descriptor) -> progress::Row {
        self.reporter.row(format!("{step} {}", descriptor.digest), "", 0)
    }

    fn types(&self) -> (&'static str, &'static str) {
        if self.options.oci_types { (media::OCI_MANIFEST, media::OCI_CONFIG) } else { (media::DOCKER_MANIFEST, media::DOCKER_CONFIG) }
    }

    /// The layer as others may see it: media type of the wanted family, no annotations of ours.
    fn public(&self, layer: &Descriptor) -> Descriptor {
        let mut public = layer.clone();
        if !self.options.prefer_foreign {
            public.urls = Vec::new();
        }
        if let Some(mut kind) = media::LayerType::parse(&layer.media_type) {
            kind.docker = !self.options.oci_types;
            // Only what says where else it can be had may be left out of a registry.
            kind.foreign = !public.urls.is_empty();
            public.media_type = kind.name().into();
        }
        if self.options.oci_types {
            public.annotations.retain(|key, _| !is_internal(key));
        } else {
            public.annotations.clear();
        }
        public
    }
}

fn is_internal(key: &str) -> bool {
    key == UNCOMPRESSED || key == CREATED_AT || key.starts_with(registry::SOURCE_ANNOTATION)
}

fn with_sources(public: &Descriptor, packed: &Descriptor) -> Descriptor {
    let mut blob = public.clone();
    let sources = packed.annotations.iter().filter(|(key, _)| key.starts_with(registry::SOURCE_ANNOTATION));
    blob.annotations.extend(sources.map(|(k, v)| (k.clone(), v.clone())));
    blob
}

/// For clients that know attestations only as images without a platform.
fn attestation_config(layers: &[Descriptor]) -> Vec<u8> {
    let diff_ids: Vec<&Digest> = layers.iter().map(|l| &l.digest).collect();
    gojson::to_vec(&serde_json::json!({
        "architecture": "unknown",
        "os": "unknown",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": if diff_ids.is_empty() { None } else { Some(diff_ids) }},
    }))
}

#[cfg(test)]
pub mod tests {
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
        let part =
            |id: &&str| Part { id: (*id).into(), platform: id.parse().unwrap(), layers: vec![layer(store, id), layer(store, "top")] };
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

    fn statement(inline_only: bool) -> Statement {
        Statement {
            predicate_type: "https://slsa.dev/provenance/v1".into(),
            predicate: "{}".into(),
            path: "provenance.json".into(),
            inline_only,
        }
    }

    fn built(store: &Store, draft: &Draft, pairs: &[(&str, &str)]) -> Result<Image> {
        assemble(draft, &options(pairs, draft)?, store, &Reporter::silent())
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
        assert_eq!(
            (&manifest["mediaType"], &manifest["config"]["mediaType"]),
            (&json!(media::DOCKER_MANIFEST), &json!(media::DOCKER_CONFIG))
        );
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
        let image = built(
            &store,
            &draft,
            &[("annotation-index.i", "1"), ("annotation-index-descriptor.d", "2"), ("annotation[linux/arm64].m", "3")],
        );
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
        let want =
            format!(r#"{{"architecture":"unknown","os":"unknown","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{layer}"]}}}}"#);
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
}
