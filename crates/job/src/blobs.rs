//! The content store as clients may read it.
use async_trait::async_trait;
use bytes::Bytes;
use content::{Reader, Store};
use fault::{Fault, Kind, Result};
use oci::Digest;
use session::Download;

use crate::api::{Blob, Blobs};

/// Bytes of one message; well below the limit of a gRPC message.
const CHUNK: usize = 1 << 20;

pub struct ContentBlobs(Store);

impl ContentBlobs {
    pub fn new(store: Store) -> Self {
        Self(store)
    }

    fn describe(store: &Store, blob: content::Blob) -> Result<Blob> {
        let labels = store.labels(&blob.digest)?.into_iter().collect();
        Ok(Blob { digest: blob.digest, size: blob.size, created_at: blob.created, labels })
    }
}

#[async_trait]
impl Blobs for ContentBlobs {
    async fn find(&self, digest: &Digest) -> Result<Option<Blob>> {
        let (store, digest) = (self.0.clone(), digest.clone());
        task::blocking(move || match store.has(&digest)? {
            Some(size) => {
                let created = std::fs::metadata(store.path(&digest))?.modified()?;
                Ok(Some(Self::describe(&store, content::Blob { digest, size, created })?))
            }
            None => Ok(None),
        })
        .await
    }

    async fn list(&self) -> Result<Vec<Blob>> {
        let store = self.0.clone();
        task::blocking(move || store.list()?.into_iter().map(|blob| Self::describe(&store, blob)).collect()).await
    }

    async fn read(&self, digest: &Digest, offset: u64, length: Option<u64>) -> Result<Box<dyn Download>> {
        let (store, digest) = (self.0.clone(), digest.clone());
        task::blocking(move || download(&store, &digest, offset, length)).await
    }
}

/// Part of a blob, from `offset` on.
pub fn download(store: &Store, digest: &Digest, offset: u64, length: Option<u64>) -> Result<Box<dyn Download>> {
    let reader = store.open_blob(digest)?;
    if offset > reader.size() {
        return Err(Fault::new(Kind::OutOfRange, format!("{digest}: offset {offset} is past the end at {}", reader.size())));
    }
    let end = length.map_or(reader.size(), |length| reader.size().min(offset.saturating_add(length)));
    Ok(Box::new(BlobDownload { reader: std::sync::Arc::new(reader), at: offset, end }))
}

struct BlobDownload {
    reader: std::sync::Arc<Reader>,
    at: u64,
    end: u64,
}

#[async_trait]
impl Download for BlobDownload {
    async fn read(&mut self) -> Result<Option<Bytes>> {
        if self.at == self.end {
            return Ok(None);
        }
        let (reader, at) = (self.reader.clone(), self.at);
        let length = CHUNK.min(usize::try_from(self.end - self.at).unwrap_or(CHUNK));
        let data = task::blocking(move || {
            let mut data = vec![0; length];
            let read = reader.read_at(&mut data, at)?;
            data.truncate(read);
            Ok(data)
        })
        .await?;
        if data.is_empty() {
            return Err(Fault::new(Kind::Internal, "a blob is shorter than its record"));
        }
        self.at += data.len() as u64;
        Ok(Some(data.into()))
    }
}
