//! Where manifests and blobs are read: a registry, or an OCI layout at a client.
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use fault::Result;
use layers::{BlobSource, ByteStream};
use oci::{Descriptor, Digest, Document, Reference};
use progress::Reporter;
use registry::{Access, Repository};
use session::{ContentStore, Download, Group};

use super::request::{Place, Request};
use crate::error::SourceError;
use crate::store::{Context, Shared};

/// No image config is larger than this many bytes.
const MAX_CONFIG: u64 = 16 << 20;

#[derive(Clone)]
pub(crate) enum Origin {
    Registry(Repository),
    Layout { sessions: Group, session: String, store: String },
}

/// What a document is, which a registry serves at different places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Manifest,
    Config,
}

impl Origin {
    pub fn new(shared: &Shared, request: &Request, context: &Context) -> Self {
        match &request.place {
            Place::Registry => {
                let access = Access { credentials: Arc::new(context.sessions.clone()), reporter: context.reporter.clone() };
                Self::Registry(shared.registry.repository(&request.reference, access))
            }
            Place::Layout { session, store } => {
                Self::Layout { sessions: context.sessions.clone(), session: session.clone(), store: store.clone() }
            }
        }
    }

    /// What the name stands for.
    pub async fn resolve(&self, reference: &Reference) -> Result<Descriptor> {
        match self {
            Self::Registry(repository) => Ok(repository.resolve(reference).await?),
            Self::Layout { .. } => {
                let digest = reference.digest().ok_or_else(|| SourceError::NoDigest { text: reference.to_string() })?;
                let bytes = self.read_all(digest, registry::MAX_MANIFEST).await?;
                let document = Document::parse("", &bytes).map_err(|source| SourceError::Manifest { digest: digest.clone(), source })?;
                Ok(Descriptor::new(document.media_type(), digest.clone(), bytes.len() as u64))
            }
        }
    }

    /// A manifest, index or config, verified.
    pub async fn document(&self, descriptor: &Descriptor, kind: Kind) -> Result<Bytes> {
        match (self, kind) {
            (Self::Registry(repository), Kind::Manifest) => Ok(repository.manifest(descriptor).await?),
            (Self::Registry(repository), Kind::Config) => Ok(repository.small_blob(descriptor, MAX_CONFIG).await?),
            (Self::Layout { .. }, Kind::Manifest) => self.read_all(&descriptor.digest, registry::MAX_MANIFEST).await,
            (Self::Layout { .. }, Kind::Config) => self.read_all(&descriptor.digest, MAX_CONFIG).await,
        }
    }

    /// A blob from `offset` on, not verified.
    pub async fn blob(&self, descriptor: &Descriptor, offset: u64) -> Result<ByteStream> {
        match self {
            Self::Registry(repository) => {
                let stream = repository.blob(descriptor, offset).await?;
                Ok(Box::pin(futures_util::stream::try_unfold(stream, |mut stream| async move {
                    Ok(stream.next().await?.map(|chunk| (chunk, stream)))
                })))
            }
            Self::Layout { .. } => {
                let download = self.open(&descriptor.digest, offset).await?;
                Ok(Box::pin(futures_util::stream::try_unfold(download, |mut download| async move {
                    Ok(download.read().await?.map(|chunk| (chunk, download)))
                })))
            }
        }
    }

    /// The size of a blob that only its digest is known of.
    pub async fn size(&self, digest: &Digest) -> Result<u64> {
        match self {
            Self::Registry(repository) => Ok(repository.blob_size(digest).await?),
            Self::Layout { .. } => {
                let mut last = fault::Fault::from(SourceError::Missing { digest: digest.clone() });
                for store in self.stores() {
                    match store.size(digest).await {
                        Ok(Some(size)) => return Ok(size),
                        Ok(None) => {}
                        Err(fault) => last = fault,
                    }
                }
                Err(last)
            }
        }
    }

    /// The manifests that name `subject` as theirs. A layout keeps no such list.
    pub async fn referrers(&self, subject: &Digest, artifact_type: Option<&str>) -> Result<Vec<Descriptor>> {
        match self {
            Self::Registry(repository) => Ok(repository.referrers(subject, artifact_type).await?),
            Self::Layout { .. } => Ok(Vec::new()),
        }
    }

    /// The host and repository that content comes from, which may later serve a mount.
    pub fn source_label(&self) -> Option<(String, String)> {
        match self {
            Self::Registry(repository) => {
                let name = repository.name();
                let domain = name.domain();
                let host =
                    domain.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())).map_or(domain, |(host, _)| host);
                Some((format!("{}{host}", registry::SOURCE_ANNOTATION), name.path().to_owned()))
            }
            Self::Layout { .. } => None,
        }
    }

    async fn read_all(&self, digest: &Digest, limit: u64) -> Result<Bytes> {
        let mut download = self.open(digest, 0).await?;
        let mut all = Vec::new();
        while let Some(chunk) = download.read().await? {
            if (all.len() + chunk.len()) as u64 > limit {
                return Err(SourceError::Missing { digest: digest.clone() }.into());
            }
            all.extend_from_slice(&chunk);
        }
        let actual = Digest::of(&all);
        if actual != *digest {
            return Err(SourceError::Content { actual, expected: digest.clone() }.into());
        }
        Ok(all.into())
    }

    /// Opens content of the layout at the first client that has it.
    async fn open(&self, digest: &Digest, offset: u64) -> Result<Box<dyn Download>> {
        let mut last = fault::Fault::from(SourceError::NoSession);
        for store in self.stores() {
            match store.read(digest, offset).await {
                Ok(download) => return Ok(download),
                Err(fault) => last = fault,
            }
        }
        Err(last)
    }

    fn stores(&self) -> Vec<Arc<dyn ContentStore>> {
        let Self::Layout { sessions, session, store } = self else { return Vec::new() };
        let sessions = match session.as_str() {
            "" => sessions.all(),
            id => sessions.find(id).into_iter().collect(),
        };
        sessions.iter().map(|session| session.content(&format!("oci:{store}"))).collect()
    }
}

/// The blobs of one image's lazy layers.
pub(crate) struct Blobs {
    origin: Origin,
    reporter: Reporter,
}

impl Blobs {
    pub fn new(origin: Origin, reporter: Reporter) -> Self {
        Self { origin, reporter }
    }
}

#[async_trait]
impl BlobSource for Blobs {
    async fn fetch(&self, blob: &Descriptor, offset: u64) -> Result<ByteStream> {
        self.origin.blob(blob, offset).await
    }

    fn reporter(&self) -> Option<Reporter> {
        Some(self.reporter.clone())
    }
}
