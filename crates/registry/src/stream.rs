//! Uploads that begin before the blob is whole.
use std::future::Future;
use std::io;

use bytes::Bytes;
use futures_util::Stream;
use http::header::LOCATION;
use http::{Method, StatusCode, Uri};
use oci::{Descriptor, Digest};

use crate::client::{Repository, Turn};
use crate::endpoint::Endpoint;
use crate::error::{RegistryError, Result, TransportError};
use crate::payload::{Once, Payload};
use crate::push::{Pushed, Start, refused};
use crate::transport::{Call, resolve_location, sanitized};

impl Repository {
    /// Uploads a blob while it is being made: `chunks` are its bytes, and `whole` says what they were once there are no more to come (`None`: they were
    /// given up). That is known before all are sent, and if the repository has such a blob already the rest is not sent.
    ///
    /// Tried once, because the chunks come once. After a failure, and where the answer is `None` because somebody else is sending the same blob,
    /// [`Repository::push_blob`] is what to go on with.
    pub async fn push_stream(
        &self,
        media_type: &str,
        chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        whole: impl Future<Output = Option<Descriptor>> + Send,
    ) -> Result<Option<Pushed>> {
        let _slot = self.slot(media_type).await;
        let endpoint = self.push_endpoint()?;
        let target = match self.start_upload(&endpoint, &[], &self.scopes(true)).await? {
            Start::Done(pushed) => return Ok(Some(pushed)),
            Start::UploadTo(target) => target,
        };
        let (known, next) = {
            let sending = self.send_chunks(&endpoint, &target, Once::new(chunks));
            let knowing = self.know(&endpoint, whole);
            tokio::pin!(sending, knowing);
            tokio::select! {
                known = &mut knowing => match known? {
                    known @ Known::Wanted { size, .. } => {
                        let limit = self.endpoints().config.timeouts.for_upload(size);
                        let next = tokio::time::timeout(limit, sending).await;
                        (known, Some(next.unwrap_or_else(|_| Err(self.too_slow(&target)))?))
                    }
                    known => (known, None),
                },
                next = &mut sending => {
                    let next = next?;
                    (knowing.await?, Some(next))
                }
            }
        };
        match (known, next) {
            (Known::Wanted { turn, digest, .. }, Some(next)) => {
                let pushed = self.complete(&endpoint, &next, &digest, Payload::empty(), None).await?;
                turn.has_landed(self.name().path());
                Ok(Some(pushed))
            }
            (known, next) => {
                self.give_up(&endpoint, next.unwrap_or(target)).await;
                Ok(matches!(known, Known::There).then_some(Pushed::Existed))
            }
        }
    }

    /// Sends all that comes; gives the address to go on at.
    async fn send_chunks(&self, endpoint: &Endpoint, target: &Uri, chunks: Once) -> Result<Uri> {
        let call = Call::new(Method::PATCH, target.clone()).stream("application/octet-stream", chunks);
        let answer = self.send_to(endpoint, target, call).await?;
        match answer.status() {
            StatusCode::ACCEPTED | StatusCode::OK | StatusCode::CREATED | StatusCode::NO_CONTENT => {
                let next = answer.header(LOCATION.as_str()).and_then(|location| resolve_location(&answer.uri, location));
                Ok(next.unwrap_or_else(|| target.clone()))
            }
            _ => Err(refused(answer).await),
        }
    }

    /// Waits until the blob is whole and looks whether it is still wanted.
    async fn know(&self, endpoint: &Endpoint, whole: impl Future<Output = Option<Descriptor>> + Send) -> Result<Known> {
        let Some(blob) = whole.await else { return Ok(Known::GivenUp) };
        // Not waited for: who has it may be waiting for the place among the transfers that we have.
        let Some(turn) = self.try_turn(&blob.digest) else { return Ok(Known::Elsewhere) };
        let there = self.head(endpoint, &format!("blobs/{}", blob.digest), &blob.media_type).await?.is_some();
        Ok(if there { Known::There } else { Known::Wanted { turn, digest: blob.digest, size: blob.size } })
    }

    fn too_slow(&self, target: &Uri) -> RegistryError {
        RegistryError::Request { method: Method::PATCH.to_string(), url: sanitized(target), source: TransportError::Timeout }
    }

    /// Tells the registry that no more will come. It finds out by itself, too, some day.
    async fn give_up(&self, endpoint: &Endpoint, target: Uri) {
        let call = Call::new(Method::DELETE, target.clone());
        match self.send_to(endpoint, &target, call).await {
            Ok(answer) => tracing::debug!(status = %answer.status(), "an upload was taken back"),
            Err(error) => tracing::debug!(error = %fault::chain(&error), "an upload could not be taken back"),
        }
    }
}

/// What became of a blob that is being uploaded.
enum Known {
    Wanted {
        turn: Turn,
        digest: Digest,
        size: u64,
    },
    /// The repository has it.
    There,
    /// Somebody else is uploading it.
    Elsewhere,
    GivenUp,
}
