//! Blobs of caches at places that more than one kind of cache uses: a repository, a client's content store.
use std::sync::Arc;

use async_trait::async_trait;
use fault::Result;
use futures_util::stream::try_unfold;
use layers::ByteStream;
use oci::Descriptor;
use registry::{RegistryError, Repository};
use session::ContentStore;

use super::import::Depot;

pub struct RepositoryDepot(pub Repository);

#[async_trait]
impl Depot for RepositoryDepot {
    async fn exists(&self, blob: &Descriptor) -> Result<bool> {
        match self.0.blob_size(&blob.digest).await {
            Ok(_) => Ok(true),
            Err(RegistryError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn fetch(&self, blob: &Descriptor, offset: u64) -> Result<ByteStream> {
        let stream = self.0.blob(blob, offset).await?;
        Ok(Box::pin(try_unfold(stream, |mut stream| async move { Ok(stream.next().await?.map(|chunk| (chunk, stream))) })))
    }
}

pub struct ClientDepot(pub Arc<dyn ContentStore>);

#[async_trait]
impl Depot for ClientDepot {
    async fn exists(&self, blob: &Descriptor) -> Result<bool> {
        Ok(self.0.size(&blob.digest).await?.is_some())
    }

    async fn fetch(&self, blob: &Descriptor, offset: u64) -> Result<ByteStream> {
        let download = self.0.read(&blob.digest, offset).await?;
        Ok(Box::pin(try_unfold(download, |mut download| async move { Ok(download.read().await?.map(|chunk| (chunk, download))) })))
    }
}
