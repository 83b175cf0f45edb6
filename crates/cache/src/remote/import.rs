//! An imported cache: its keys in memory, its blobs where they are until somebody needs them.
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use fault::Result;
use futures_util::stream::{StreamExt as _, iter};
use layers::{BlobSource, ByteStream, ImageLayer, Layer, Layers, Properties, UNCOMPRESSED};
use oci::{Descriptor, Digest, Timestamp};
use session::Group;
use solver::{KeyId, Link};
use task::Cancel;

use super::document::CacheConfig;
use super::keys::{Keys, KeysError};
use crate::{Entry, Import, KeyStore, Origin};

/// The annotation that says when a layer was made.
pub const CREATED_AT: &str = "buildkit/createdat";
/// What an image's history says of a layer; only ever in memory.
pub const DESCRIPTION: &str = "buildkit/description";

/// How many blobs are asked for at a time.
const QUESTIONS: usize = 8;

/// Where the blobs of a cache are.
#[async_trait]
pub trait Depot: Send + Sync + 'static {
    /// Whether the blob is still there.
    async fn exists(&self, blob: &Descriptor) -> Result<bool>;

    /// The same place with the credentials of these sessions.
    fn for_sessions(self: Arc<Self>, sessions: &Group) -> Arc<dyn Depot>;

    /// The bytes of the blob from `offset` on; see [`BlobSource::fetch`].
    async fn fetch(&self, blob: &Descriptor, offset: u64) -> Result<ByteStream>;
}

/// One cache config with the blobs that go with it.
pub struct RemoteCache {
    keys: Keys,
    layers: Layers,
    depot: Arc<dyn Depot>,
    /// What is known of blobs that are not here.
    seen: Mutex<HashMap<Digest, bool>>,
}

impl RemoteCache {
    /// `descriptors` carry the annotations [`UNCOMPRESSED`] and, at will, [`CREATED_AT`] and [`DESCRIPTION`].
    pub fn new(
        config: &CacheConfig,
        descriptors: BTreeMap<Digest, Descriptor>,
        layers: Layers,
        depot: Arc<dyn Depot>,
    ) -> Result<Self, KeysError> {
        let usable = descriptors.into_iter().filter(|(_, d)| diff_id(d).is_some()).collect();
        Ok(Self { keys: Keys::new(config, usable)?, layers, depot, seen: Mutex::default() })
    }

    /// How many results it has.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether all blobs that are not here can be had.
    async fn is_whole(&self, blobs: &[&Descriptor], depot: &dyn Depot, cancel: &Cancel) -> Result<bool> {
        let mut open = Vec::new();
        for blob in blobs {
            let known = self.seen.lock().expect("no holder of this lock panics").get(&blob.digest).copied();
            match known {
                Some(true) => {}
                Some(false) => return Ok(false),
                None if self.layers.content().has(&blob.digest)?.is_some() => {}
                None => open.push(*blob),
            }
        }
        let ask = |blob: &Descriptor| {
            let blob = blob.clone();
            async move { (depot.exists(&blob).await, blob.digest) }
        };
        let questions: Vec<_> = open.into_iter().map(ask).collect();
        let asking = async {
            let answers: Vec<_> = iter(questions).buffer_unordered(QUESTIONS).collect().await;
            Ok::<_, fault::Fault>(answers)
        };
        let mut all = true;
        for (answer, digest) in cancel.run(asking).await? {
            // A store that cannot be asked can hardly be read.
            let there = answer.unwrap_or_else(|fault| {
                tracing::warn!(blob = %digest, %fault, "a blob of an imported cache cannot be asked for; its step runs instead");
                false
            });
            self.seen.lock().expect("no holder of this lock panics").insert(digest, there);
            all &= there;
        }
        Ok(all)
    }
}

impl KeyStore for RemoteCache {
    fn links(&self, from: &KeyId, link: &Link) -> Vec<KeyId> {
        self.keys.links(from, link)
    }

    fn results(&self, key: &KeyId) -> Vec<Entry> {
        self.keys.results(key)
    }

    fn origins(&self, key: &KeyId) -> Vec<Origin> {
        self.keys.origins(key)
    }
}

#[async_trait]
impl Import for RemoteCache {
    fn has_recorded(&self, records: &[Digest]) -> bool {
        self.keys.has_recorded(records)
    }

    async fn load(&self, result: &str, sessions: &Group, cancel: &Cancel) -> Result<Option<Layer>> {
        let Some(blobs) = self.keys.stack(result) else { return Ok(None) };
        let depot = self.depot.clone().for_sessions(sessions);
        if !self.is_whole(&blobs, &*depot, cancel).await? {
            tracing::debug!(result, "blobs of an imported result are gone");
            return Ok(None);
        }
        let layers: Option<Vec<ImageLayer>> = blobs.into_iter().map(image_layer).collect();
        let Some(layers) = layers else { return Ok(None) };
        let (home, source) = (self.layers.clone(), Arc::new(Source(depot)));
        task::blocking(move || Ok(home.from_image(layers, source)?)).await
    }
}

struct Source(Arc<dyn Depot>);

#[async_trait]
impl BlobSource for Source {
    async fn fetch(&self, blob: &Descriptor, offset: u64) -> Result<ByteStream> {
        self.0.fetch(blob, offset).await
    }
}

fn diff_id(descriptor: &Descriptor) -> Option<Digest> {
    descriptor.annotations.get(UNCOMPRESSED)?.parse().ok()
}

fn image_layer(descriptor: &Descriptor) -> Option<ImageLayer> {
    let mut descriptor = descriptor.clone();
    let diff_id = diff_id(&descriptor)?;
    let created: Option<Timestamp> = descriptor.annotations.remove(CREATED_AT).and_then(|text| text.parse().ok());
    let described = descriptor.annotations.remove(DESCRIPTION);
    let description = described.unwrap_or_else(|| format!("imported {}", descriptor.digest));
    descriptor.annotations.remove(UNCOMPRESSED);
    Some(ImageLayer { descriptor, diff_id, created, properties: Properties::new(&description) })
}

/// Reads a document of at most `limit` bytes to its end and checks its digest, if one is given.
pub async fn read_all(mut stream: ByteStream, expected: Option<&Digest>, limit: u64) -> Result<Bytes> {
    let mut all = Vec::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk?;
        let size = (all.len() + chunk.len()) as u64;
        if size > limit {
            let name = expected.map_or("document", Digest::as_str);
            return Err(fault::Fault::invalid(format!("blob {name} is too large ({size} > {limit})")));
        }
        all.extend_from_slice(&chunk);
    }
    match expected {
        Some(expected) if Digest::of(&all) != *expected => {
            let actual = Digest::of(&all);
            Err(fault::Fault::invalid(format!("blob {expected} has the content of {actual}")))
        }
        _ => Ok(all.into()),
    }
}
