//! `local`: a cache in an OCI layout at the client.
use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use fault::{Context as _, Fault, Kind, Result};
use futures_util::stream::{StreamExt as _, TryStreamExt as _, iter};
use layers::{Layer, Layers};
use oci::{Descriptor, Digest, gojson, media};
use session::ContentStore;

use super::attrs::Attrs;
use super::chains::Piece;
use super::depot::ClientDepot;
use super::exporter::{Context, Exporter, Found, Importer, Outgoing, Target};
use super::import::{Depot as _, RemoteCache, read_all};
use super::inline::{self, Documents};
use super::manifest::{self, Contents, Form};

/// No manifest or config is larger than this many bytes.
const MAX_DOCUMENT: u64 = 16 << 20;
/// Blobs on their way at a time.
const STREAMS: usize = 4;
/// Bytes of one message.
const CHUNK: usize = 512 << 10;

fn store(context: &Context, name: &str) -> Result<Arc<dyn ContentStore>> {
    if !name.bytes().all(|b| matches!(b, b' '..=b'~')) {
        let why = format!("the directory of a local cache contains value with non-printable ASCII characters: {name:?}");
        return Err(Fault::invalid(why));
    }
    let session = context.session.as_ref();
    let session = session.ok_or_else(|| Fault::new(Kind::NotFound, "local cache exporter/importer requires session"))?;
    Ok(session.content(&format!("local:{name}")))
}

pub fn exporter(attrs: &Attrs, layers: &Layers) -> Result<Exporter> {
    let dest = attrs.text("dest").filter(|d| !d.is_empty()).ok_or_else(|| Fault::invalid("local cache exporter requires dest"))?;
    let target = LocalTarget { dest: dest.to_owned(), form: Form::take(attrs)?, layers: layers.clone() };
    Ok(Exporter {
        name: "exporting cache to client directory",
        mode: attrs.mode(),
        compression: manifest::compression(attrs)?,
        on_error: attrs.on_error(),
        layers: layers.clone(),
        target: Box::new(target),
    })
}

struct LocalTarget {
    dest: String,
    form: Form,
    layers: Layers,
}

#[async_trait]
impl Target for LocalTarget {
    async fn send(&self, cache: Outgoing, context: &Context) -> Result<BTreeMap<String, String>> {
        let store = store(context, &self.dest)?;
        let writes = cache.distinct().into_iter().map(|piece| {
            let store = store.clone();
            async move { self.layer(&*store, &piece, context).await.context("error writing layer blob") }
        });
        iter(writes.collect::<Vec<_>>()).buffer_unordered(STREAMS).try_collect::<Vec<()>>().await?;
        let config = Bytes::from(cache.config.to_bytes());
        let described = Descriptor::of(media::BUILDKIT_CACHE_CONFIG, &config);
        {
            let _row = context.reporter.row(format!("writing config {}", described.digest), "", 0);
            put(&*store, &described, config).await.context("error writing config blob")?;
        }
        let (descriptor, document) = manifest::write(self.form, &described, &cache.descriptors());
        let _row = context.reporter.row(format!("writing {} {}", self.form.name(), descriptor.digest), "", 0);
        put(&*store, &descriptor, document.into()).await.context("error writing manifest blob")?;
        Ok(BTreeMap::from([("cache.manifest".to_owned(), gojson::to_string(&descriptor))]))
    }
}

impl LocalTarget {
    async fn layer(&self, store: &dyn ContentStore, piece: &Piece<Layer>, context: &Context) -> Result<()> {
        let Descriptor { digest, size, .. } = &piece.descriptor;
        let mut row = context.reporter.row(format!("writing layer {digest}"), "", *size);
        if store.size(digest).await?.is_some() {
            return Ok(());
        }
        let _hold = piece.layer.fetch_blob(digest, &context.cancel, &context.reporter).await?;
        let Some(mut upload) = store.write(digest, *size).await? else { return Ok(()) };
        let reader = Arc::new(self.layers.content().open_blob(digest)?);
        let mut offset = 0;
        while offset < *size {
            let (reader, length) = (reader.clone(), CHUNK.min(usize::try_from(*size - offset).unwrap_or(CHUNK)));
            let chunk = task::blocking(move || {
                let mut chunk = vec![0; length];
                let read = reader.read_at(&mut chunk, offset)?;
                chunk.truncate(read);
                Ok(chunk)
            });
            let chunk = chunk.await?;
            if chunk.is_empty() {
                return Err(Fault::internal(format!("{digest} is shorter than its record")));
            }
            offset += chunk.len() as u64;
            upload.write(chunk.into()).await?;
            row.set(offset);
        }
        upload.finish().await
    }
}

async fn put(store: &dyn ContentStore, descriptor: &Descriptor, bytes: Bytes) -> Result<()> {
    if let Some(mut upload) = store.write(&descriptor.digest, descriptor.size).await? {
        upload.write(bytes).await?;
        upload.finish().await?;
    }
    Ok(())
}

pub fn importer(attrs: &Attrs, layers: &Layers) -> Result<LocalImporter> {
    let digest = attrs.text("digest").filter(|d| !d.is_empty());
    let digest = digest.ok_or_else(|| Fault::invalid("local cache importer requires explicit digest"))?;
    let src = attrs.text("src").filter(|s| !s.is_empty()).ok_or_else(|| Fault::invalid("local cache importer requires src"))?;
    let digest: Digest = digest.parse().map_err(|e| Fault::of(Kind::Invalid, e))?;
    Ok(LocalImporter { src: src.to_owned(), digest, layers: layers.clone() })
}

pub struct LocalImporter {
    src: String,
    digest: Digest,
    layers: Layers,
}

#[async_trait]
impl Importer for LocalImporter {
    async fn import(&self, context: &Context) -> Result<Found> {
        let depot = Arc::new(ClientDepot(store(context, &self.src)?));
        let documents = Layout(depot.clone());
        let contents = manifest::read("", &documents.read(&self.digest).await?)?;
        let caches = match contents {
            Contents::Cache { config, layers } => vec![(manifest::parse(&documents.read(&config.digest).await?)?, layers)],
            Contents::Image(document) => inline::read(document, &documents).await?,
        };
        let cache = |(config, blobs)| {
            let cache = RemoteCache::new(&config, blobs, self.layers.clone(), depot.clone());
            Ok(Arc::new(cache.map_err(|e| Fault::of(Kind::Invalid, e))?))
        };
        caches.into_iter().map(cache).collect()
    }
}

struct Layout(Arc<ClientDepot>);

impl Layout {
    async fn read(&self, digest: &Digest) -> Result<Bytes> {
        let wanted = Descriptor::new("", digest.clone(), 0);
        read_all(self.0.fetch(&wanted, 0).await?, Some(digest), MAX_DOCUMENT).await
    }
}

#[async_trait]
impl Documents for Layout {
    async fn manifest(&self, descriptor: &Descriptor) -> Result<Bytes> {
        self.read(&descriptor.digest).await
    }
    async fn config(&self, descriptor: &Descriptor) -> Result<Bytes> {
        self.read(&descriptor.digest).await
    }
}
