//! `inline`: keys inside an image's config, about the image's own layers.
use std::collections::BTreeMap;

use async_trait::async_trait;
use base64::Engine as _;
use bytes::Bytes;
use fault::{Fault, Result};
use layers::{Compression, Layers, UNCOMPRESSED};
use oci::{Descriptor, Digest, Document, Manifest, Timestamp, gojson};
use serde::Deserialize;

use super::collect::Mode;
use super::document::{CacheConfig, ChainEntry, LayerEntry, RecordEntry};
use super::exporter::{Context, Subject, gather};
use super::import::{CREATED_AT, DESCRIPTION};

/// Makes the caches that images carry inside.
#[derive(Clone)]
pub struct InlineCache {
    pub(super) layers: Layers,
}

impl InlineCache {
    /// What goes into the config of an image whose layers have these diff ids, lowest first. `None`: nothing of it can be used again.
    pub async fn of(&self, subject: &Subject<'_>, image: &[Digest], compression: Compression, context: &Context) -> Result<Option<Bytes>> {
        let chains = gather(subject, &self.layers, compression, Mode::Min, context).await?;
        let marshaled = chains.marshal();
        let diff_ids = marshaled.blobs.iter().filter_map(|(blob, piece)| {
            let diff_id = piece.descriptor.annotations.get(UNCOMPRESSED)?.parse().ok()?;
            Some((blob.clone(), diff_id))
        });
        let diff_ids: BTreeMap<Digest, Digest> = diff_ids.collect();
        let records = about(marshaled.config, &diff_ids, image);
        let is_useful = records.iter().any(|r| !(r.results.is_empty() && r.chains.is_empty()));
        Ok(is_useful.then(|| gojson::to_vec(&records).into()))
    }
}

/// The records, with results told in terms of the image's layers; those that have others are left out.
fn about(config: CacheConfig, diff_ids: &BTreeMap<Digest, Digest>, image: &[Digest]) -> Vec<RecordEntry> {
    let mut records = config.records;
    for record in &mut records {
        let mut chains = Vec::new();
        record.results.retain_mut(|result| {
            let stack = stack(&config.layers, result.layer);
            let diff_ids: Option<Vec<&Digest>> = stack.iter().map(|blob| diff_ids.get(*blob)).collect();
            let Some(diff_ids) = diff_ids else { return false };
            if diff_ids.len() <= image.len() && diff_ids.iter().zip(image).all(|(a, b)| *a == b) {
                result.layer = diff_ids.len() as i64 - 1;
                return true;
            }
            let place = |d: &&Digest| image.iter().position(|i| i == *d).map(|n| n as i64);
            if let Some(layers) = diff_ids.iter().map(place).collect() {
                chains.push(ChainEntry { layers, created_at: result.created_at });
            }
            false
        });
        record.chains = chains;
    }
    records
}

/// The blobs from the lowest to `top`.
fn stack(layers: &[LayerEntry], top: i64) -> Vec<&Digest> {
    let mut stack = Vec::new();
    let mut at = top;
    while let Ok(n) = usize::try_from(at) {
        stack.push(&layers[n].blob);
        at = layers[n].parent;
    }
    stack.reverse();
    stack
}

#[derive(Deserialize)]
struct Image {
    #[serde(default)]
    rootfs: RootFs,
    #[serde(rename = "moby.buildkit.cache.v0")]
    cache: Option<String>,
    #[serde(default)]
    history: Option<Vec<Step>>,
}

#[derive(Default, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

#[derive(Default, Deserialize)]
struct Step {
    #[serde(default)]
    created: Option<Timestamp>,
    #[serde(default)]
    created_by: String,
    #[serde(default)]
    empty_layer: bool,
}

/// How deep indexes may lie in indexes.
const DEEPEST: usize = 4;

type Cache = (CacheConfig, BTreeMap<Digest, Descriptor>);

/// Where the documents of an image are. What is given is verified.
#[async_trait]
pub trait Documents: Send + Sync {
    async fn manifest(&self, descriptor: &Descriptor) -> Result<Bytes>;
    async fn config(&self, descriptor: &Descriptor) -> Result<Bytes>;
}

/// The caches inside an image, or inside those of an index.
pub async fn read(document: Document, documents: &dyn Documents) -> Result<Vec<Cache>> {
    let mut caches = Vec::new();
    let mut pending = vec![(document, 0)];
    while let Some((document, depth)) = pending.pop() {
        match document {
            Document::Index(index) if depth < DEEPEST => {
                for entry in index.manifests.iter().filter(|d| !d.is_attestation()) {
                    let bytes = documents.manifest(entry).await?;
                    let document = Document::parse(&entry.media_type, &bytes).map_err(|e| Fault::of(fault::Kind::Invalid, e))?;
                    pending.push((document, depth + 1));
                }
            }
            Document::Index(_) => return Err(Fault::invalid("an image index lies too deep in others")),
            Document::Manifest(manifest) if manifest.layers.is_empty() => {}
            Document::Manifest(manifest) => {
                let config = documents.config(&manifest.config).await?;
                caches.extend(cache_of(&manifest, &config)?);
            }
        }
    }
    Ok(caches)
}

fn cache_of(manifest: &Manifest, config: &[u8]) -> Result<Option<Cache>> {
    let wrong = |e: &dyn std::fmt::Display| Fault::invalid(format!("failed to parse the cache inside an image: {e}"));
    // What is no image's config has no cache either.
    let Ok(image) = serde_json::from_slice::<Image>(config) else { return Ok(None) };
    let diff_ids = image.rootfs.diff_ids.unwrap_or_default();
    let Some(cache) = image.cache.filter(|_| diff_ids.len() == manifest.layers.len()) else { return Ok(None) };
    let records = base64::engine::general_purpose::STANDARD.decode(cache).map_err(|e| wrong(&e))?;
    let records: Option<Vec<RecordEntry>> = serde_json::from_slice(&records).map_err(|e| wrong(&e))?;
    let mut steps = image.history.unwrap_or_default().into_iter().filter(|h| !h.empty_layer);
    let mut out = CacheConfig { layers: Vec::new(), records: records.unwrap_or_default() };
    let mut blobs = BTreeMap::new();
    for (n, (layer, diff_id)) in manifest.layers.iter().zip(diff_ids).enumerate() {
        let step = steps.next().unwrap_or_default();
        let mut layer = layer.clone();
        layer.annotations.insert(UNCOMPRESSED.to_owned(), diff_id.to_string());
        if let Some(created) = step.created {
            layer.annotations.insert(CREATED_AT.to_owned(), created.to_string());
        }
        if !step.created_by.is_empty() {
            layer.annotations.insert(DESCRIPTION.to_owned(), step.created_by);
        }
        out.layers.push(LayerEntry { blob: layer.digest.clone(), parent: n as i64 - 1, annotations: None });
        blobs.insert(layer.digest.clone(), layer);
    }
    Ok(Some((out, blobs)))
}

#[cfg(test)]
mod tests {
    use oci::media;

    use super::super::document::{ResultEntry, never};
    use super::*;

    fn d(name: &str) -> Digest {
        Digest::of(name)
    }

    fn config(stacks: &[(&str, i64)], results: &[i64]) -> CacheConfig {
        let layers = stacks.iter().map(|(blob, parent)| LayerEntry { blob: d(blob), parent: *parent, annotations: None }).collect();
        let record = |(n, layer): (usize, &i64)| RecordEntry {
            results: vec![ResultEntry { layer: *layer, created_at: never() }],
            chains: Vec::new(),
            digest: d(&format!("record {n}")),
            inputs: Vec::new(),
        };
        CacheConfig { layers, records: results.iter().enumerate().map(record).collect() }
    }

    #[test]
    fn results_are_told_by_the_images_layers() {
        // Blobs are named after their diff ids, in upper case.
        let config = config(&[("A", -1), ("B", 0), ("C", -1), ("X", 1)], &[0, 1, 2, 3]);
        let diff_ids = ["A", "B", "C", "X"].iter().map(|b| (d(b), d(&b.to_lowercase()))).collect();
        let records = about(config, &diff_ids, &[d("a"), d("b"), d("c")]);
        assert_eq!(records[0].results[0].layer, 0);
        assert_eq!(records[1].results[0].layer, 1);
        assert_eq!((records[2].results.len(), &records[2].chains[0].layers), (0, &vec![2]), "not at the bottom");
        assert!(records[3].results.is_empty() && records[3].chains.is_empty(), "not in the image");
    }

    struct Fixed {
        manifest: Bytes,
        config: Bytes,
    }

    #[async_trait]
    impl Documents for Fixed {
        async fn manifest(&self, _: &Descriptor) -> Result<Bytes> {
            Ok(self.manifest.clone())
        }
        async fn config(&self, _: &Descriptor) -> Result<Bytes> {
            Ok(self.config.clone())
        }
    }

    #[tokio::test]
    async fn a_cache_is_read_out_of_an_index() {
        let records = format!(r#"[{{"layers":[{{"layer":1,"createdAt":"2024-01-01T00:00:00Z"}}],"digest":"{}"}}]"#, d("r"));
        let image = serde_json::json!({
            "rootfs": {"diff_ids": [d("a"), d("b")]},
            "history": [{"created": "2024-01-02T00:00:00Z", "created_by": "one"}, {"empty_layer": true}, {"created_by": "two"}],
            "moby.buildkit.cache.v0": base64::engine::general_purpose::STANDARD.encode(records),
        });
        let image = serde_json::to_vec(&image).unwrap();
        let layers = vec![Descriptor::of(media::OCI_LAYER_GZIP, b"A"), Descriptor::of(media::OCI_LAYER_GZIP, b"B")];
        let manifest = Manifest {
            schema_version: 2,
            media_type: media::OCI_MANIFEST.into(),
            artifact_type: String::new(),
            config: Descriptor::of(media::OCI_CONFIG, &image),
            layers,
            subject: None,
            annotations: Default::default(),
        };
        let bytes = manifest.to_bytes();
        let entry = Descriptor::of(media::OCI_MANIFEST, &bytes);
        let index = oci::Index {
            schema_version: 2,
            media_type: media::OCI_INDEX.into(),
            artifact_type: String::new(),
            manifests: vec![entry],
            subject: None,
            annotations: Default::default(),
        };
        let caches = read(Document::Index(index), &Fixed { manifest: bytes.into(), config: image.into() }).await.unwrap();
        let [(config, blobs)] = caches.as_slice() else { panic!("one cache") };
        assert_eq!(config.layers.iter().map(|l| l.parent).collect::<Vec<_>>(), [-1, 0]);
        let second = &blobs[&Digest::of(b"B")].annotations;
        assert_eq!(second[DESCRIPTION], "two");
        assert_eq!(second[UNCOMPRESSED], d("b").to_string());
        assert!(!second.contains_key(CREATED_AT));
        assert_eq!(super::super::keys::Keys::new(config, blobs.clone()).unwrap().len(), 1);
    }
}
