//! Blob downloads that survive broken connections.
use bytes::Bytes;
use http::header::{CONTENT_RANGE, RANGE};
use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use oci::Descriptor;

use crate::client::{Backoff, Repository, Slot, accepting};
use crate::endpoint::Endpoint;
use crate::error::{RegistryError, Result, TransportError};
use crate::resolve::denied;
use crate::transport::{Answer, Call, lost};

/// A download under way. It holds one of the registry's transfer slots until dropped.
///
/// Exactly the bytes from the requested offset to the descriptor's size come out; their digest is the receiver's to check, who hashes them anyway.
pub struct BlobStream {
    repository: Repository,
    descriptor: Descriptor,
    offset: u64,
    current: Option<Answer>,
    /// Whether bytes came since the last failure.
    progress: bool,
    failures: u32,
    backoff: Backoff,
    _slot: Slot,
}

/// A connection that breaks this often is not worth more, whatever its progress.
const MAX_FAILURES: u32 = 50;

impl Repository {
    /// Downloads a blob from `offset` to its end. Connects at once, so that a missing blob or a missing permission shows here.
    pub async fn blob(&self, descriptor: &Descriptor, offset: u64) -> Result<BlobStream> {
        let slot = self.slot(&descriptor.media_type).await;
        let current = if offset < descriptor.size { Some(self.open(descriptor, offset).await?) } else { None };
        Ok(BlobStream {
            repository: self.clone(),
            descriptor: descriptor.clone(),
            offset,
            current,
            progress: false,
            failures: 0,
            backoff: self.backoff(),
            _slot: slot,
        })
    }

    async fn open(&self, descriptor: &Descriptor, offset: u64) -> Result<Answer> {
        let descriptor = std::sync::Arc::new(descriptor.clone());
        self.pull(|endpoint| {
            let descriptor = descriptor.clone();
            Box::pin(async move { self.open_at(&endpoint, &descriptor, offset).await })
        })
        .await
    }

    async fn open_at(&self, endpoint: &Endpoint, descriptor: &Descriptor, offset: u64) -> Result<Answer> {
        let uri = self.url(endpoint, &format!("blobs/{}", descriptor.digest), &[])?;
        let mut call = accepting(Call::new(Method::GET, uri), &descriptor.media_type);
        if offset > 0 {
            call = call.header(RANGE, &format!("bytes={offset}-"));
        }
        let mut answer = self.send(endpoint, &self.scopes(false), false, call).await.map_err(denied)?;
        match answer.status() {
            StatusCode::PARTIAL_CONTENT if offset > 0 => {
                let range = answer.header(CONTENT_RANGE.as_str()).unwrap_or_default();
                if range.starts_with(&format!("bytes {offset}-")) {
                    return Ok(answer);
                }
                let problem = format!("a content range that was not asked for: {range:?}");
                Err(RegistryError::Answer { url: answer.url(), problem })
            }
            StatusCode::OK => {
                // The range was ignored: what we have already is read again and dropped.
                self.skip(&mut answer, offset).await?;
                Ok(answer)
            }
            StatusCode::NOT_FOUND => Err(RegistryError::NotFound { what: self.name().with_digest(descriptor.digest.clone()).to_string() }),
            StatusCode::UNAUTHORIZED => Err(RegistryError::PullDenied { source: Box::new(answer.unexpected().await) }),
            _ => Err(answer.unexpected().await),
        }
    }

    async fn skip(&self, answer: &mut Answer, bytes: u64) -> Result<()> {
        let mut left = bytes;
        while left > 0 {
            match next_chunk(answer, self).await? {
                Some(chunk) if chunk.len() as u64 <= left => left -= chunk.len() as u64,
                // A chunk that reaches beyond: too rare to be worth keeping, the download starts over.
                Some(_) | None => {
                    let source = TransportError::Lost { detail: "cannot resume: the registry ignores ranges".into() };
                    return Err(RegistryError::Request { method: Method::GET.to_string(), url: answer.url(), source });
                }
            }
        }
        Ok(())
    }
}

impl BlobStream {
    /// How much of the blob has been read, from its start.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    pub fn size(&self) -> u64 {
        self.descriptor.size
    }

    /// The next bytes; `None` at the end. A broken connection is replaced by another that continues where it broke.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let left = self.descriptor.size.saturating_sub(self.offset);
            if left == 0 {
                return Ok(None);
            }
            let error = match &mut self.current {
                Some(answer) => match next_chunk(answer, &self.repository).await {
                    Ok(Some(chunk)) if chunk.len() as u64 > left => return Err(self.oversized()),
                    Ok(Some(chunk)) => {
                        self.offset += chunk.len() as u64;
                        self.progress = true;
                        return Ok(Some(chunk));
                    }
                    Ok(None) => self.short(),
                    Err(error) => error,
                },
                None => self.short(),
            };
            self.current = None;
            self.reconnect(error).await?;
        }
    }

    async fn reconnect(&mut self, error: RegistryError) -> Result<()> {
        self.failures += 1;
        if std::mem::take(&mut self.progress) {
            self.backoff.reset();
        }
        let pause = if self.failures < MAX_FAILURES { self.backoff.wait(&error) } else { None };
        let Some(pause) = pause else {
            let (url, digest) = (self.repository.name().to_string(), self.descriptor.digest.clone());
            return Err(RegistryError::Broken { url, digest, offset: self.offset, source: Box::new(error) });
        };
        tokio::time::sleep(pause).await;
        self.current = Some(self.repository.open(&self.descriptor, self.offset).await?);
        Ok(())
    }

    fn short(&self) -> RegistryError {
        let detail = format!("{} of {} bytes came", self.offset, self.descriptor.size);
        RegistryError::Request {
            method: Method::GET.to_string(),
            url: self.repository.name().to_string(),
            source: TransportError::Lost { detail },
        }
    }

    fn oversized(&self) -> RegistryError {
        RegistryError::TooLarge {
            url: self.repository.name().with_digest(self.descriptor.digest.clone()).to_string(),
            limit: self.descriptor.size,
        }
    }
}

/// The next data of a body; connection errors and stalls become transient errors.
async fn next_chunk(answer: &mut Answer, repository: &Repository) -> Result<Option<Bytes>> {
    let (url, stall) = (answer.url(), repository.stall());
    let fail = |source| RegistryError::Request { method: Method::GET.to_string(), url: url.clone(), source };
    loop {
        let frame = tokio::time::timeout(stall, answer.response.frame()).await.map_err(|_| fail(TransportError::Timeout))?;
        match frame {
            None => return Ok(None),
            Some(Err(error)) => return Err(fail(lost(&error))),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if !data.is_empty() => return Ok(Some(data)),
                _ => continue,
            },
        }
    }
}
