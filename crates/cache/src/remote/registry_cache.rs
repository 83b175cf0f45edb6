//! `registry`: a cache as a manifest under a name.
use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use fault::{Context as _, Fault, Result};
use futures_util::future::try_join_all;
use layers::{Layer, Layers};
use oci::{Descriptor, Reference, gojson, media};
use progress::Reporter;
use registry::{Access, Client, Payload, Repository, SOURCE_ANNOTATION};

use super::attrs::Attrs;
use super::chains::Piece;
use super::depot::RepositoryDepot;
use super::exporter::{Context, Exporter, Found, Importer, Outgoing, Target};
use super::import::RemoteCache;
use super::inline::{self, Documents};
use super::manifest::{self, Contents, Form};

/// No config is larger than this many bytes. BuildKit itself reads at most 1 MiB.
const MAX_CONFIG: u64 = 16 << 20;

/// The name that attributes give, and how to reach it.
#[derive(Clone)]
struct Place {
    client: Client,
    reference: Reference,
    insecure: bool,
}

impl Place {
    fn take(attrs: &Attrs, client: &Client) -> Result<Self> {
        let text = attrs.text("ref").filter(|r| !r.is_empty()).ok_or_else(|| Fault::invalid("missing ref"))?;
        let reference: Reference = text.parse().map_err(|e: oci::ReferenceError| Fault::invalid(e.to_string()))?;
        let insecure = attrs.flag("registry.insecure")?.unwrap_or(false);
        Ok(Self { client: client.clone(), reference: reference.or_latest(), insecure })
    }

    fn repository(&self, context: &Context, reporter: Reporter) -> Repository {
        let access = Access { credentials: Arc::new(context.sessions.clone()), reporter };
        self.client.repository(&self.reference, access).insecure(self.insecure)
    }

    /// Where blobs of this repository can be mounted from: annotation and value.
    fn source_label(&self) -> (String, String) {
        let domain = self.reference.domain();
        let port = |port: &str| port.bytes().all(|b| b.is_ascii_digit());
        let host = domain.rsplit_once(':').filter(|(_, p)| port(p)).map_or(domain, |(host, _)| host);
        (format!("{SOURCE_ANNOTATION}{host}"), self.reference.path().to_owned())
    }
}

pub fn exporter(attrs: &Attrs, layers: &Layers, client: &Client) -> Result<Exporter> {
    let compression = manifest::compression(attrs)?;
    let place = Place::take(attrs, client)?;
    let target = RegistryTarget { place, form: Form::take(attrs)?, layers: layers.clone() };
    Ok(Exporter {
        name: "exporting cache to registry",
        mode: attrs.mode(),
        compression,
        on_error: attrs.on_error(),
        layers: layers.clone(),
        target: Box::new(target),
    })
}

struct RegistryTarget {
    place: Place,
    form: Form,
    layers: Layers,
}

#[async_trait]
impl Target for RegistryTarget {
    async fn send(&self, cache: Outgoing, context: &Context) -> Result<BTreeMap<String, String>> {
        let repository = self.place.repository(context, context.reporter.clone());
        let bytes = cache.config.to_bytes();
        let config = Descriptor::of(media::BUILDKIT_CACHE_CONFIG, &bytes);
        let (descriptor, document) = manifest::write(self.form, &config, &cache.descriptors());
        let response = BTreeMap::from([("cache.manifest".to_owned(), gojson::to_string(&descriptor))]);
        if self.is_there(&repository, &descriptor).await {
            return Ok(response);
        }
        try_join_all(cache.distinct().iter().map(|piece| self.layer(&repository, piece, context))).await?;
        let reporter = &context.reporter;
        {
            let _row = reporter.row(format!("writing config {}", config.digest), "", 0);
            let pushed = repository.push_blob(&config, Payload::Bytes(bytes.into()), None).await;
            pushed.map_err(Fault::from).context("error writing config blob")?;
        }
        let _row = reporter.row(format!("writing {} {}", self.form.name(), descriptor.digest), "", 0);
        let tag = self.place.reference.tag();
        let pushed = repository.push_manifest(&descriptor, Bytes::from(document), tag).await;
        pushed.map_err(Fault::from).context("error writing manifest blob")?;
        Ok(response)
    }
}

impl RegistryTarget {
    /// Whether the name stands for this very cache already.
    async fn is_there(&self, repository: &Repository, manifest: &Descriptor) -> bool {
        repository.resolve(&self.place.reference).await.is_ok_and(|found| found.digest == manifest.digest)
    }

    async fn layer(&self, repository: &Repository, piece: &Piece<Layer>, context: &Context) -> Result<()> {
        let digest = &piece.descriptor.digest;
        let _row = context.reporter.row(format!("writing layer {digest}"), "", 0);
        self.push(repository, piece, context).await.context("error writing layer blob")
    }

    async fn push(&self, repository: &Repository, piece: &Piece<Layer>, context: &Context) -> Result<()> {
        let digest = &piece.descriptor.digest;
        let content = self.layers.content();
        let mut described = piece.descriptor.clone();
        described.annotations.extend(known_sources(piece, content)?);
        let from = registry::mount_candidate(&self.place.reference, &described.annotations);
        if repository.take(&piece.descriptor, from).await?.is_none() {
            let _hold = piece.layer.fetch_blob(digest, &context.cancel, &context.reporter).await?;
            let reader = content.open_blob(digest)?;
            let payload = Payload::File { file: Arc::new(reader.file().try_clone()?), offset: 0, size: reader.size() };
            repository.push_blob(&piece.descriptor, payload, None).await?;
        }
        self.remember(piece, &described, content)
    }

    /// Labels the blob with where it can be mounted from next time.
    fn remember(&self, piece: &Piece<Layer>, described: &Descriptor, content: &content::Store) -> Result<()> {
        let digest = &piece.descriptor.digest;
        if content.has(digest)?.is_some() {
            let (key, path) = self.place.source_label();
            let before = described.annotations.get(&key).map(String::as_str).unwrap_or_default();
            if !before.split(',').any(|known| known == path) {
                let joined = if before.is_empty() { path } else { format!("{before},{path}") };
                content.set_label(digest, &key, &joined);
            }
        }
        Ok(())
    }
}

/// What is known of repositories that have the blob.
fn known_sources(piece: &Piece<Layer>, content: &content::Store) -> Result<Vec<(String, String)>> {
    let own = piece.layer.known_blobs().into_iter().find(|blob| blob.digest == piece.descriptor.digest);
    let own = own.into_iter().flat_map(|blob| blob.annotations);
    let labels = content.labels(&piece.descriptor.digest)?;
    Ok(own.chain(labels).filter(|(key, _)| key.starts_with(SOURCE_ANNOTATION)).collect())
}

pub fn importer(attrs: &Attrs, layers: &Layers, client: &Client) -> Result<RegistryImporter> {
    Ok(RegistryImporter { place: Place::take(attrs, client)?, layers: layers.clone() })
}

pub struct RegistryImporter {
    place: Place,
    layers: Layers,
}

#[async_trait]
impl Importer for RegistryImporter {
    async fn import(&self, context: &Context) -> Result<Found> {
        let repository = self.place.repository(context, context.reporter.clone());
        let descriptor = repository.resolve(&self.place.reference).await?;
        let bytes = repository.manifest(&descriptor).await?;
        let Place { client, reference, insecure } = self.place.clone();
        let depot = Arc::new(RepositoryDepot { client, reference, insecure, sessions: context.sessions.clone() });
        let contents = manifest::read(&descriptor.media_type, &bytes)?;
        drop(context.reporter.row(format!("inferred cache manifest type: {}", descriptor.media_type), "", 0));
        let (config, blobs) = match contents {
            Contents::Cache { config, layers } => (config, layers),
            Contents::Image(document) => {
                let caches = inline::read(document, &Images(repository)).await?;
                let cache = |(config, blobs)| self.cache(&config, blobs, depot.clone());
                return caches.into_iter().map(cache).collect();
            }
        };
        let config = manifest::parse(&repository.small_blob(&config, MAX_CONFIG).await?)?;
        Ok(vec![self.cache(&config, blobs, depot)?])
    }
}

struct Images(Repository);

#[async_trait]
impl Documents for Images {
    async fn manifest(&self, descriptor: &Descriptor) -> Result<Bytes> {
        Ok(self.0.manifest(descriptor).await?)
    }
    async fn config(&self, descriptor: &Descriptor) -> Result<Bytes> {
        Ok(self.0.small_blob(descriptor, MAX_CONFIG).await?)
    }
}

impl RegistryImporter {
    fn cache(
        &self,
        config: &super::document::CacheConfig,
        mut blobs: BTreeMap<oci::Digest, Descriptor>,
        depot: Arc<RepositoryDepot>,
    ) -> Result<Arc<RemoteCache>> {
        self.label(&mut blobs);
        let cache = RemoteCache::new(config, blobs, self.layers.clone(), depot);
        Ok(Arc::new(cache.map_err(|e| Fault::of(fault::Kind::Invalid, e))?))
    }

    /// Says of the blobs where they can be mounted from.
    fn label(&self, blobs: &mut BTreeMap<oci::Digest, Descriptor>) {
        let (key, path) = self.place.source_label();
        for blob in blobs.values_mut() {
            blob.annotations.insert(key.clone(), path.clone());
        }
    }
}
