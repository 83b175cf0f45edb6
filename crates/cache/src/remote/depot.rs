//! Blobs of caches at places that more than one kind of cache uses: a repository, a client's content store.
use std::sync::Arc;

use async_trait::async_trait;
use fault::Result;
use futures_util::stream::try_unfold;
use layers::ByteStream;
use oci::{Descriptor, Reference};
use progress::Reporter;
use registry::{Access, Client, RegistryError, Repository};
use session::{ContentStore, Group};

use super::import::Depot;

/// A repository, whoever asks.
pub struct RepositoryDepot {
    pub client: Client,
    pub reference: Reference,
    pub insecure: bool,
    pub sessions: Group,
}

impl RepositoryDepot {
    /// Outlives the vertex that found it, so it reports to nobody.
    fn repository(&self) -> Repository {
        let access = Access { credentials: Arc::new(self.sessions.clone()), reporter: Reporter::silent() };
        self.client.repository(&self.reference, access).insecure(self.insecure)
    }
}

#[async_trait]
impl Depot for RepositoryDepot {
    async fn exists(&self, blob: &Descriptor) -> Result<bool> {
        match self.repository().blob_size(&blob.digest).await {
            Ok(_) => Ok(true),
            Err(RegistryError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn for_sessions(self: Arc<Self>, sessions: &Group) -> Arc<dyn Depot> {
        let Self { client, reference, insecure, .. } = &*self;
        Arc::new(Self { client: client.clone(), reference: reference.clone(), insecure: *insecure, sessions: sessions.clone() })
    }

    async fn fetch(&self, blob: &Descriptor, offset: u64) -> Result<ByteStream> {
        let stream = self.repository().blob(blob, offset).await?;
        Ok(Box::pin(try_unfold(stream, |mut stream| async move { Ok(stream.next().await?.map(|chunk| (chunk, stream))) })))
    }
}

pub struct ClientDepot(pub Arc<dyn ContentStore>);

#[async_trait]
impl Depot for ClientDepot {
    async fn exists(&self, blob: &Descriptor) -> Result<bool> {
        Ok(self.0.size(&blob.digest).await?.is_some())
    }

    /// A directory is one client's.
    fn for_sessions(self: Arc<Self>, _: &Group) -> Arc<dyn Depot> {
        self
    }

    async fn fetch(&self, blob: &Descriptor, offset: u64) -> Result<ByteStream> {
        let download = self.0.read(&blob.digest, offset).await?;
        Ok(Box::pin(try_unfold(download, |mut download| async move { Ok(download.read().await?.map(|chunk| (chunk, download))) })))
    }
}
