//! From packed layers to manifests, configs and an index in the content store.
use std::collections::BTreeMap;

use bytes::Bytes;
use content::{Hold, Store};
use fault::{Fault, Result};
use oci::{Annotations, Descriptor, Digest, Index, Manifest, Platform, REFERENCE_DIGEST, REFERENCE_TYPE, gojson, media};
use progress::Reporter;

use crate::annotations;
use crate::attestation::{Written, image_targets};
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
    pub attestations: BTreeMap<String, Vec<Written>>,
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

/// What does not go together, as far as it can be told before any layer is packed. Of each statement about the results it needs to know whether it is
/// for inline use only.
pub fn check(is_map: bool, platforms: &[&str], statements: &[bool], options: &Settled) -> Result<()> {
    let known = |id: &str| !is_map || platforms.len() == 1 || platforms.contains(&id);
    options.annotations.check(options.oci_types, known)?;
    let is_index = is_map || statements.iter().any(|inline_only| counts(*inline_only, options));
    if is_index && !options.oci_types && !statements.is_empty() {
        return Err(Fault::invalid("cannot export attestations with \"oci-mediatypes=false\""));
    }
    Ok(())
}

/// Whether a statement is kept here.
fn counts(inline_only: bool, options: &Settled) -> bool {
    options.inline_attestations || !inline_only
}

/// Plain disk work, after [`check`]. Every document has a row in the progress.
pub fn assemble(draft: &Draft, options: &Settled, store: &Store, reporter: &Reporter) -> Result<Image> {
    let writer = Writer { options, store, reporter, holds: Vec::new() };
    if draft.is_map || needs_index(draft, options) { writer.index(draft) } else { writer.single(draft) }
}

/// A single result becomes an index to hold statements, unless these are all to be left out here.
fn needs_index(draft: &Draft, options: &Settled) -> bool {
    let any = |all: &Vec<Written>| all.iter().any(|statement| counts(statement.inline_only, options));
    draft.parts.iter().any(|part| draft.attestations.get(&part.id).is_some_and(any))
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

    fn attestation(&mut self, draft: &Draft, part: &Part, statements: &[Written], image: &Descriptor) -> Result<Document> {
        let targets = image_targets(&draft.names, &part.platform, &image.digest)?;
        let mut layers = Vec::new();
        for statement in statements {
            let json = statement.render(&targets)?;
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

/// A layer's descriptor as documents in OCI's format show it.
pub fn without_internals(layer: &Descriptor) -> Descriptor {
    let mut shown = layer.clone();
    shown.annotations.retain(|key, _| !is_internal(key));
    shown
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
pub mod tests;
