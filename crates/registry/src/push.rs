//! Uploads.
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, LOCATION};
use http::{Method, StatusCode, Uri};
use oci::{Descriptor, Digest, Reference, media};

use crate::auth::{Scopes, escape};
use crate::client::{Repository, accepting};
use crate::endpoint::Endpoint;
use crate::error::{RegistryError, Result};
use crate::payload::{Payload, Progress};
use crate::transport::{Answer, Call, origin, resolve_location};

/// How a blob came to be in the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Existed,
    /// Taken over from another repository of the registry.
    Mounted,
    Uploaded,
}

pub(crate) enum Start {
    Done(Pushed),
    UploadTo(Uri),
}

impl Repository {
    /// Whether the repository has this blob or manifest, as far as the credentials can tell.
    pub async fn exists(&self, descriptor: &Descriptor) -> Result<bool> {
        let endpoint = self.push_endpoint()?;
        let kind = if is_manifest(descriptor) { "manifests" } else { "blobs" };
        self.head(&endpoint, &format!("{kind}/{}", descriptor.digest), &descriptor.media_type).await.map(|answer| answer.is_some())
    }

    /// Makes the repository have the blob without sending it: because it has it, or by mounting it from `from`, another repository of the same
    /// registry which the same credentials can read. `None`: it has to be uploaded.
    pub async fn take(&self, descriptor: &Descriptor, from: Option<&str>) -> Result<Option<Pushed>> {
        let (descriptor, from) = (Arc::new(descriptor.clone()), from.map(str::to_owned));
        self.retrying(|| {
            let (descriptor, from) = (descriptor.clone(), from.clone());
            Box::pin(async move {
                let endpoint = self.push_endpoint()?;
                if self.head(&endpoint, &format!("blobs/{}", descriptor.digest), &descriptor.media_type).await?.is_some() {
                    return Ok(Some(Pushed::Existed));
                }
                match &from {
                    Some(from) => Ok(self.mount(&endpoint, &descriptor, from).await?.then_some(Pushed::Mounted)),
                    None => Ok(None),
                }
            })
        })
        .await
    }

    /// Uploads a blob unless the repository has it, or another of the registry gets it at this moment. `progress` hears of the bytes sent.
    pub async fn push_blob(&self, descriptor: &Descriptor, payload: Payload, progress: Option<Progress>) -> Result<Pushed> {
        let turn = self.turn(&descriptor.digest).await;
        let _slot = self.slot(&descriptor.media_type).await;
        let landed = turn.landed().filter(|repository| repository != self.name().path());
        let (descriptor, landed) = (Arc::new(descriptor.clone()), Arc::new(landed));
        let pushed = self
            .retrying(|| {
                let (descriptor, landed) = (descriptor.clone(), landed.clone());
                let (payload, progress) = (payload.clone(), progress.clone());
                Box::pin(async move { self.push_blob_once(&descriptor, landed.as_deref(), payload, progress).await })
            })
            .await?;
        turn.has_landed(self.name().path());
        Ok(pushed)
    }

    /// `landed` is another repository of the registry that has just got the blob from us.
    async fn push_blob_once(
        &self,
        descriptor: &Descriptor,
        landed: Option<&str>,
        payload: Payload,
        progress: Option<Progress>,
    ) -> Result<Pushed> {
        let endpoint = self.push_endpoint()?;
        if self.head(&endpoint, &format!("blobs/{}", descriptor.digest), &descriptor.media_type).await?.is_some() {
            return Ok(Pushed::Existed);
        }
        if let Some(from) = landed
            && self.mount(&endpoint, descriptor, from).await?
        {
            return Ok(Pushed::Mounted);
        }
        let target = match self.start_upload(&endpoint, &[], &self.scopes(true)).await? {
            Start::Done(pushed) => return Ok(pushed),
            Start::UploadTo(target) => target,
        };
        self.complete(&endpoint, &target, &descriptor.digest, payload, progress).await
    }

    /// Sends what is left of a blob, or all of it, and ends its upload.
    pub(crate) async fn complete(
        &self,
        endpoint: &Endpoint,
        target: &Uri,
        digest: &Digest,
        payload: Payload,
        progress: Option<Progress>,
    ) -> Result<Pushed> {
        let separator = if target.query().is_some() { '&' } else { '?' };
        let text = format!("{target}{separator}digest={}", escape(digest.as_str()));
        let uri =
            text.parse().map_err(|_| RegistryError::Answer { url: endpoint.host.clone(), problem: "an unusable upload address".into() })?;
        let mut call = Call::new(Method::PUT, uri).payload("application/octet-stream", payload);
        call.progress = progress;
        let answer = self.send_to(endpoint, target, call).await?;
        match answer.status() {
            StatusCode::OK | StatusCode::CREATED | StatusCode::NO_CONTENT => Ok(Pushed::Uploaded),
            _ => Err(refused(answer).await),
        }
    }

    /// Sends to the address of an upload. One that is elsewhere carries its own authority; ours stays here.
    pub(crate) async fn send_to(&self, endpoint: &Endpoint, target: &Uri, call: Call) -> Result<Answer> {
        let foreign = origin(target) != origin(&self.url(endpoint, "", &[])?);
        if foreign { self.endpoints().send(endpoint, call).await } else { self.send_push(endpoint, call).await }
    }

    /// Puts a manifest or index under its digest, and under `tag` if one is given.
    pub async fn push_manifest(&self, descriptor: &Descriptor, bytes: Bytes, tag: Option<&str>) -> Result<Pushed> {
        let _slot = self.slot("+json").await;
        let descriptor = Arc::new(descriptor.clone());
        let tag = tag.map(str::to_owned);
        self.retrying(|| {
            let (descriptor, bytes, tag) = (descriptor.clone(), bytes.clone(), tag.clone());
            Box::pin(async move { self.push_manifest_once(&descriptor, bytes, tag.as_deref()).await })
        })
        .await
    }

    async fn push_manifest_once(&self, descriptor: &Descriptor, bytes: Bytes, tag: Option<&str>) -> Result<Pushed> {
        let endpoint = self.push_endpoint()?;
        let suffix = format!("manifests/{}", tag.unwrap_or(descriptor.digest.as_str()));
        if let Some(answer) = self.head(&endpoint, &suffix, &descriptor.media_type).await? {
            let same = answer.header("docker-content-digest") == Some(descriptor.digest.as_str());
            if tag.is_none() || same {
                return Ok(Pushed::Existed);
            }
        }
        let uri = self.url(&endpoint, &suffix, &[])?;
        let call = Call::new(Method::PUT, uri).payload(&descriptor.media_type, Payload::Bytes(bytes));
        let answer = self.send_push(&endpoint, call).await?;
        match answer.status() {
            StatusCode::OK | StatusCode::CREATED | StatusCode::NO_CONTENT | StatusCode::ACCEPTED => Ok(Pushed::Uploaded),
            _ => Err(refused(answer).await),
        }
    }

    /// `None` for what is not there, or not ours to see: the upload that follows will tell.
    pub(crate) async fn head(&self, endpoint: &Endpoint, suffix: &str, media_type: &str) -> Result<Option<Answer>> {
        let call = accepting(Call::new(Method::HEAD, self.url(endpoint, suffix, &[])?), media_type);
        let answer = match self.send(endpoint, &self.scopes(true), true, call).await {
            Err(RegistryError::Unauthorized { .. }) => return Ok(None),
            other => other?,
        };
        match answer.status() {
            StatusCode::OK => Ok(Some(answer)),
            StatusCode::NOT_FOUND | StatusCode::UNAUTHORIZED | StatusCode::METHOD_NOT_ALLOWED => Ok(None),
            _ => Err(answer.unexpected().await),
        }
    }

    async fn mount(&self, endpoint: &Endpoint, descriptor: &Descriptor, from: &str) -> Result<bool> {
        let mut scopes = self.scopes(true);
        scopes.merge(&Scopes::repository(from, false));
        let query = [format!("mount={}", escape(descriptor.digest.as_str())), format!("from={}", escape(from))];
        match self.start_upload(endpoint, &query, &scopes).await {
            Ok(Start::Done(_)) => Ok(true),
            // An upload was opened instead; it is left to the registry's cleaner.
            Ok(Start::UploadTo(_)) => Ok(false),
            Err(error) if error.is_transient() => Err(error),
            Err(error) => {
                tracing::debug!(from, error = %fault::chain(&error), "mount refused");
                Ok(false)
            }
        }
    }

    pub(crate) async fn start_upload(&self, endpoint: &Endpoint, query: &[String], scopes: &Scopes) -> Result<Start> {
        let uri = self.url(endpoint, "blobs/uploads/", query)?;
        let call = Call::new(Method::POST, uri).header(ACCEPT, "*/*");
        let answer = self.send(endpoint, scopes, true, call).await.map_err(push_denied)?;
        match answer.status() {
            StatusCode::CREATED => Ok(Start::Done(Pushed::Mounted)),
            StatusCode::OK | StatusCode::ACCEPTED | StatusCode::NO_CONTENT => {
                let location = answer.header(LOCATION.as_str()).and_then(|l| resolve_location(&answer.uri, l));
                let problem = "no usable location for the upload".to_owned();
                location.map(Start::UploadTo).ok_or_else(|| RegistryError::Answer { url: answer.url(), problem })
            }
            _ => Err(refused(answer).await),
        }
    }

    async fn send_push(&self, endpoint: &Endpoint, call: Call) -> Result<Answer> {
        self.send(endpoint, &self.scopes(true), true, call).await.map_err(push_denied)
    }
}

/// Which repository of `target`'s registry to mount a blob from: of those it came from (the values of `containerd.io/distribution.source.<host>`
/// annotations) the one with the longest common path.
pub fn mount_candidate<'a>(target: &Reference, annotations: &'a oci::Annotations) -> Option<&'a str> {
    let host = target
        .domain()
        .rsplit_once(':')
        .filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()))
        .map_or(target.domain(), |(host, _)| host);
    let keys = [format!("{SOURCE_ANNOTATION}{}", target.domain()), format!("{SOURCE_ANNOTATION}{host}")];
    let sources = keys.iter().find_map(|key| annotations.get(key))?;
    let common = |repository: &str| repository.split('/').zip(target.path().split('/')).take_while(|(a, b)| a == b).count();
    sources.split(',').filter(|r| !r.is_empty() && *r != target.path()).max_by_key(|r| common(r))
}

/// Prefix of the annotation that says which repositories of a host hold a blob.
pub const SOURCE_ANNOTATION: &str = "containerd.io/distribution.source.";

fn is_manifest(descriptor: &Descriptor) -> bool {
    media::is_manifest(&descriptor.media_type) || media::is_index(&descriptor.media_type)
}

fn push_denied(error: RegistryError) -> RegistryError {
    match error {
        RegistryError::Unauthorized { .. } => RegistryError::PushDenied { source: Box::new(error) },
        other => other,
    }
}

pub(crate) async fn refused(answer: Answer) -> RegistryError {
    let unauthorized = answer.status() == StatusCode::UNAUTHORIZED;
    let error = answer.unexpected().await;
    if unauthorized { RegistryError::PushDenied { source: Box::new(error) } } else { error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_from_the_nearest() {
        let target: Reference = "r.io/team/app/web".parse().unwrap();
        let mut annotations = oci::Annotations::new();
        assert_eq!(mount_candidate(&target, &annotations), None);
        annotations.insert(format!("{SOURCE_ANNOTATION}r.io"), "base,team/app/web,team/app/api,team/x".into());
        assert_eq!(mount_candidate(&target, &annotations), Some("team/app/api"));
    }
}
