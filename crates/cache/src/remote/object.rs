//! Caches in stores that know names and bytes only: the config is the manifest, and says of each layer what a manifest would.
mod aws;
mod azblob;
mod azure;
mod environment;
mod gha;
mod gha_token;
mod request;
mod s3;
mod s3_client;
mod sigv4;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use fault::{Context as _, Fault, Kind, Result};
use futures_util::stream::{StreamExt as _, TryStreamExt as _, iter};
use layers::{ByteStream, Compression, Layer, Layers, UNCOMPRESSED};
use oci::{Descriptor, Digest};
use session::Group;

use super::attrs::Attrs;
use super::chains::Piece;
use super::document::{CacheConfig, LayerFacts, never};
use super::exporter::{Context, Exporter, Found, Importer, Outgoing, Target};
use super::import::{CREATED_AT, Depot, RemoteCache};
use super::manifest;

pub use environment::Environment;

/// No config is larger than this many bytes.
pub(super) const MAX_CONFIG: u64 = 64 << 20;

/// A store of blobs by digest and configs by name.
#[async_trait]
pub(super) trait Store: Send + Sync + 'static {
    /// Whether the blob is there. With `keep`, it is also saved from expiring soon.
    async fn has(&self, blob: &Digest, keep: bool) -> Result<bool>;

    /// Stores a blob; one that came meanwhile is as good.
    async fn put(&self, blob: &Digest, file: Arc<std::fs::File>, size: u64) -> Result<()>;

    /// The blob from `offset` on.
    async fn get(&self, blob: &Digest, offset: u64) -> Result<ByteStream>;

    /// Stores the config under all names that it is to have.
    async fn put_config(&self, config: Bytes) -> Result<()>;

    /// The configs that are there of those that were asked for.
    async fn configs(&self) -> Result<Vec<Bytes>>;
}

pub(super) fn exporter(name: &'static str, attrs: &Attrs, layers: &Layers, parallel: usize, store: Arc<dyn Store>) -> Exporter {
    Exporter {
        name,
        mode: attrs.mode(),
        compression: Compression::default(),
        on_error: attrs.on_error(),
        layers: layers.clone(),
        target: Box::new(ObjectTarget { store, layers: layers.clone(), parallel }),
    }
}

struct ObjectTarget {
    store: Arc<dyn Store>,
    layers: Layers,
    /// Blobs under way at a time.
    parallel: usize,
}

#[async_trait]
impl Target for ObjectTarget {
    async fn send(&self, mut cache: Outgoing, context: &Context) -> Result<BTreeMap<String, String>> {
        let writes: Vec<_> = cache.distinct().into_iter().map(|piece| self.blob(piece, context)).collect();
        iter(writes).buffer_unordered(self.parallel).try_collect::<Vec<()>>().await?;
        for layer in &mut cache.config.layers {
            let piece = cache.blobs.get(&layer.blob).ok_or_else(|| Fault::internal(format!("missing blob {}", layer.blob)))?;
            layer.annotations = Some(facts(&piece.descriptor));
        }
        let bytes = Bytes::from(cache.config.to_bytes());
        let _row = context.reporter.row(format!("writing config {}", Digest::of(&bytes)), "", 0);
        self.store.put_config(bytes).await?;
        Ok(BTreeMap::new())
    }
}

impl ObjectTarget {
    async fn blob(&self, piece: Piece<Layer>, context: &Context) -> Result<()> {
        let digest = &piece.descriptor.digest;
        if self.store.has(digest, true).await.context("failed to check file presence in cache")? {
            return Ok(());
        }
        let _row = context.reporter.row(format!("writing layer {digest}"), "", 0);
        let _hold = piece.layer.fetch_blob(digest, &context.cancel, &context.reporter).await?;
        let reader = self.layers.content().open_blob(digest)?;
        let file = Arc::new(reader.file().try_clone()?);
        self.store.put(digest, file, reader.size()).await.context("error writing layer blob")
    }
}

fn facts(descriptor: &Descriptor) -> LayerFacts {
    let annotation = |key| descriptor.annotations.get(key).cloned();
    LayerFacts {
        media_type: manifest::public(descriptor, true).media_type,
        diff_id: annotation(UNCOMPRESSED).unwrap_or_default(),
        size: descriptor.size,
        created_at: annotation(CREATED_AT).and_then(|text| text.parse().ok()).unwrap_or_else(never),
    }
}

pub(super) struct ObjectImporter {
    pub store: Arc<dyn Store>,
    pub layers: Layers,
}

#[async_trait]
impl Importer for ObjectImporter {
    async fn import(&self, context: &Context) -> Result<Found> {
        let mut found = Found::new();
        for bytes in self.store.configs().await? {
            let config = manifest::parse(&bytes)?;
            let blobs = descriptors(&config)?;
            drop(context.reporter.row(format!("found {} layers in cache", blobs.len()), "", 0));
            let depot = Arc::new(StoreDepot(self.store.clone()));
            let cache = RemoteCache::new(&config, blobs, self.layers.clone(), depot);
            found.push(Arc::new(cache.map_err(|e| Fault::of(Kind::Invalid, e))?));
        }
        Ok(found)
    }
}

fn descriptors(config: &CacheConfig) -> Result<BTreeMap<Digest, Descriptor>> {
    let mut blobs = BTreeMap::new();
    for layer in &config.layers {
        let facts = layer.annotations.as_ref().ok_or_else(|| Fault::invalid("cache layer with missing annotations"))?;
        if facts.diff_id.is_empty() {
            return Err(Fault::invalid("cache layer with missing diffid"));
        }
        let mut descriptor = Descriptor::new(facts.media_type.clone(), layer.blob.clone(), facts.size);
        descriptor.annotations.insert(UNCOMPRESSED.to_owned(), facts.diff_id.clone());
        if facts.created_at != never() {
            descriptor.annotations.insert(CREATED_AT.to_owned(), facts.created_at.to_string());
        }
        blobs.insert(layer.blob.clone(), descriptor);
    }
    Ok(blobs)
}

struct StoreDepot(Arc<dyn Store>);

#[async_trait]
impl Depot for StoreDepot {
    async fn exists(&self, blob: &Descriptor) -> Result<bool> {
        self.0.has(&blob.digest, false).await
    }

    /// The credentials are the attributes' or the daemon's.
    fn for_sessions(self: Arc<Self>, _: &Group) -> Arc<dyn Depot> {
        self
    }

    async fn fetch(&self, blob: &Descriptor, offset: u64) -> Result<ByteStream> {
        self.0.get(&blob.digest, offset).await
    }
}

/// The kinds of stores.
#[derive(Clone)]
pub(super) struct Stores {
    pub layers: Layers,
    pub client: registry::Client,
    pub environment: Arc<Environment>,
}

impl Stores {
    /// `None`: no kind of store.
    pub fn exporter(&self, kind: &str, attrs: &Attrs) -> Result<Option<Exporter>> {
        let (name, parallel, store) = match kind {
            "s3" => {
                let store = s3::open(attrs, self)?;
                ("exporting cache to Amazon S3", store.parallel(), Arc::new(store) as Arc<dyn Store>)
            }
            "azblob" => ("exporting cache to Azure Blob Storage", 4, Arc::new(azblob::open(attrs, self)?) as Arc<dyn Store>),
            "gha" => ("exporting to GitHub Actions Cache", 4, Arc::new(gha::open(attrs, self)?) as Arc<dyn Store>),
            _ => return Ok(None),
        };
        Ok(Some(exporter(name, attrs, &self.layers, parallel, store)))
    }

    pub fn importer(&self, kind: &str, attrs: &Attrs) -> Result<Option<ObjectImporter>> {
        let store: Arc<dyn Store> = match kind {
            "s3" => Arc::new(s3::open(attrs, self)?),
            "azblob" => Arc::new(azblob::open(attrs, self)?),
            "gha" => Arc::new(gha::open(attrs, self)?),
            _ => return Ok(None),
        };
        Ok(Some(ObjectImporter { store, layers: self.layers.clone() }))
    }
}
