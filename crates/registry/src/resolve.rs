//! Names to descriptors, descriptors to documents.
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE};
use http::{Method, StatusCode};
use oci::{Descriptor, Digest, Document, Reference, media};

use crate::client::{Repository, accepting};
use crate::endpoint::Endpoint;
use crate::error::{RegistryError, Result};
use crate::transport::{Answer, Call};

/// No manifest is larger than this many bytes.
pub const MAX_MANIFEST: u64 = 4 << 20;

const MANIFESTS: &str = concat!(
    "application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json, ",
    "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, */*"
);

impl Repository {
    /// What the tag or digest of `reference` stands for now.
    pub async fn resolve(&self, reference: &Reference) -> Result<Descriptor> {
        let reference = Arc::new(reference.clone());
        self.pull(|endpoint| {
            let reference = reference.clone();
            Box::pin(async move { self.resolve_at(&endpoint, &reference).await })
        })
        .await
    }

    async fn resolve_at(&self, endpoint: &Endpoint, reference: &Reference) -> Result<Descriptor> {
        let suffix = format!("manifests/{}", reference.identifier());
        let call = |method| Ok::<_, RegistryError>(Call::new(method, self.url(endpoint, &suffix, &[])?).header(ACCEPT, MANIFESTS));
        let answer = self.ask(endpoint, call(Method::HEAD)?).await?;
        if answer.status() != StatusCode::METHOD_NOT_ALLOWED {
            let answer = self.accepted(endpoint, reference, answer, call(Method::GET)?).await?;
            if let Some(described) = from_headers(&answer, reference.digest())? {
                return Ok(described);
            }
        }
        // No digest, no length or no type that could be one of a manifest: the document itself must tell.
        let answer = self.ask(endpoint, call(Method::GET)?).await?;
        let answer = self.accepted(endpoint, reference, answer, call(Method::GET)?).await?;
        let (url, named) = (answer.url(), media_type(&answer));
        let bytes = answer.bytes(MAX_MANIFEST, self.stall()).await?;
        let digest = verify(&url, &bytes, reference.digest())?;
        let document = Document::parse(&named, &bytes).map_err(|source| RegistryError::Manifest { url, source })?;
        let named = if media::is_index(&named) || media::is_manifest(&named) { named } else { document.media_type().to_owned() };
        Ok(Descriptor::new(named, digest, bytes.len() as u64))
    }

    async fn ask(&self, endpoint: &Endpoint, call: Call) -> Result<Answer> {
        self.send(endpoint, &self.scopes(false), false, call).await.map_err(denied)
    }

    /// Turns every status but success into an error. A refused HEAD has no body to say why, so `explain` asks again.
    async fn accepted(&self, endpoint: &Endpoint, reference: &Reference, answer: Answer, explain: Call) -> Result<Answer> {
        match answer.status() {
            status if status.is_success() => Ok(answer),
            StatusCode::NOT_FOUND => Err(RegistryError::NotFound { what: reference.to_string() }),
            StatusCode::UNAUTHORIZED => Err(RegistryError::PullDenied { source: Box::new(answer.unexpected().await) }),
            StatusCode::FORBIDDEN if answer.method == Method::HEAD => {
                let again = self.send(endpoint, &self.scopes(false), false, explain).await?;
                Err(if again.status() == StatusCode::FORBIDDEN { again } else { answer }.unexpected().await)
            }
            _ => Err(answer.unexpected().await),
        }
    }

    /// The bytes of a manifest or index, verified against the descriptor.
    pub async fn manifest(&self, descriptor: &Descriptor) -> Result<Bytes> {
        self.document(descriptor, "manifests", MAX_MANIFEST).await
    }

    /// A small blob (an image config, say) of at most `limit` bytes, verified against the descriptor.
    pub async fn small_blob(&self, descriptor: &Descriptor, limit: u64) -> Result<Bytes> {
        self.document(descriptor, "blobs", limit).await
    }

    /// The size of a blob that only its digest is known of.
    pub async fn blob_size(&self, digest: &Digest) -> Result<u64> {
        let digest = Arc::new(digest.clone());
        self.pull(|endpoint| {
            let digest = digest.clone();
            Box::pin(async move { self.blob_size_at(&endpoint, &digest).await })
        })
        .await
    }

    async fn blob_size_at(&self, endpoint: &Endpoint, digest: &Digest) -> Result<u64> {
        let call = |method| Ok::<_, RegistryError>(accepting(Call::new(method, self.url(endpoint, &format!("blobs/{digest}"), &[])?), ""));
        let reference = self.name().with_digest(digest.clone());
        let answer = self.ask(endpoint, call(Method::HEAD)?).await?;
        let answer = self.accepted(endpoint, &reference, answer, call(Method::GET)?).await?;
        let size = answer.header(CONTENT_LENGTH.as_str()).and_then(|v| v.parse().ok());
        size.ok_or_else(|| RegistryError::Answer { url: answer.url(), problem: "no length of the blob".into() })
    }

    async fn document(&self, descriptor: &Descriptor, kind: &'static str, limit: u64) -> Result<Bytes> {
        let _slot = self.slot("+json").await;
        let descriptor = Arc::new(descriptor.clone());
        self.pull(|endpoint| {
            let descriptor = descriptor.clone();
            Box::pin(async move { self.document_at(&endpoint, &descriptor, kind, limit).await })
        })
        .await
    }

    async fn document_at(&self, endpoint: &Endpoint, descriptor: &Descriptor, kind: &str, limit: u64) -> Result<Bytes> {
        let uri = self.url(endpoint, &format!("{kind}/{}", descriptor.digest), &[])?;
        let call = accepting(Call::new(Method::GET, uri), &descriptor.media_type);
        let answer = self.send(endpoint, &self.scopes(false), false, call).await.map_err(denied)?;
        let reference = self.name().with_digest(descriptor.digest.clone());
        let answer = match answer.status() {
            status if status.is_success() => answer,
            StatusCode::NOT_FOUND => return Err(RegistryError::NotFound { what: reference.to_string() }),
            StatusCode::UNAUTHORIZED => return Err(RegistryError::PullDenied { source: Box::new(answer.unexpected().await) }),
            _ => return Err(answer.unexpected().await),
        };
        let url = answer.url();
        let bytes = answer.bytes(limit, self.stall()).await?;
        verify(&url, &bytes, Some(&descriptor.digest))?;
        Ok(bytes)
    }
}

/// A refusal by the token server or the registry is one of access.
pub(crate) fn denied(error: RegistryError) -> RegistryError {
    match error {
        RegistryError::Unauthorized { .. } => RegistryError::PullDenied { source: Box::new(error) },
        RegistryError::Authorize { source } if matches!(source.status(), Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)) => {
            RegistryError::PullDenied { source: Box::new(RegistryError::Authorize { source }) }
        }
        other => other,
    }
}

/// The descriptor, if the headers alone give it.
fn from_headers(answer: &Answer, pinned: Option<&Digest>) -> Result<Option<Descriptor>> {
    let named = media_type(answer);
    let known =
        media::is_index(&named) || media::is_manifest(&named) || named.starts_with("application/vnd.docker.distribution.manifest.v1");
    let size = answer.header(CONTENT_LENGTH.as_str()).and_then(|v| v.parse::<u64>().ok()).filter(|size| *size > 0);
    let digest = match (pinned, answer.header("docker-content-digest")) {
        (Some(pinned), _) => Some(pinned.clone()),
        (None, Some(text)) => {
            let problem = || RegistryError::Answer { url: answer.url(), problem: format!("{text:?} in header not a valid digest") };
            Some(text.parse::<Digest>().ok().filter(|d| !d.is_random()).ok_or_else(problem)?)
        }
        (None, None) => None,
    };
    let (Some(digest), Some(size), true) = (digest, size, known) else { return Ok(None) };
    if size > MAX_MANIFEST {
        return Err(RegistryError::TooLarge { url: answer.url(), limit: MAX_MANIFEST });
    }
    Ok(Some(Descriptor::new(named, digest, size)))
}

/// The content type without parameters.
fn media_type(answer: &Answer) -> String {
    answer.header(CONTENT_TYPE.as_str()).and_then(|v| v.split(';').next()).unwrap_or_default().trim().to_owned()
}

fn verify(url: &str, bytes: &[u8], expected: Option<&Digest>) -> Result<Digest> {
    match expected {
        // Digests of other algorithms come from a reference that names them; we cannot check what we cannot compute.
        Some(expected) if expected.algorithm() != "sha256" => Err(RegistryError::Answer {
            url: url.to_owned(),
            problem: format!("content named by {}, an algorithm that is not supported", expected.algorithm()),
        }),
        Some(expected) => match Digest::of(bytes) {
            actual if actual == *expected => Ok(actual),
            actual => Err(RegistryError::Mismatch { url: url.to_owned(), actual, expected: expected.clone() }),
        },
        None => Ok(Digest::of(bytes)),
    }
}
