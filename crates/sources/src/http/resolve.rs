//! Finds out what a URL holds, fetching it unless the server says that nothing changed.
use bytes::Bytes;
use fault::{Context as _, Fault, Result};
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH};
use http::{Method, StatusCode};
use kv::{Batch, Json, Table};
use layers::{Layer, LayerId, Pin, Properties};
use oci::{Digest, Hasher};
use registry::WebAnswer;
use serde::{Deserialize, Serialize};

use super::body::Body;
use super::request::Request;
use crate::error::SourceError;
use crate::store::{Context, Shared};
use registry::date;

/// `<request>/<layer>` to what the server said about that version.
const VERSIONS: Table<str, Json<Version>> = Table::new("sources.http");

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Version {
    etag: String,
    digest: Digest,
    modified: Option<i64>,
}

/// What a URL was found to hold.
#[derive(Debug, Clone)]
pub(crate) struct Resolved {
    /// `None` where the op's checksum made a look at the server unnecessary.
    pub layer: Option<Layer>,
    pub digest: Digest,
    pub filename: String,
    /// Unix seconds.
    pub modified: Option<i64>,
}

/// The host that stands for what a client offers on its own.
const SESSION_HOST: &str = "buildkit-session";

/// Without `content`, an op with a checksum needs no request at all.
pub(crate) async fn resolve(shared: &Shared, request: &Request, context: &Context, content: bool) -> Result<Resolved> {
    if let (Some(digest), false) = (&request.checksum, content) {
        return Ok(Resolved { layer: None, digest: digest.clone(), filename: request.file_name(None), modified: None });
    }
    let resolved = match pinned(request, context)? {
        Some(resolved) => resolved,
        None => {
            let found = match request.host().as_str() {
                SESSION_HOST => pull_from_session(shared, request, context).await?,
                _ => ask(shared, request, context).await?,
            };
            pin(request, context, found)?
        }
    };
    match request.checksum.as_ref().filter(|expected| **expected != resolved.digest) {
        None => Ok(resolved),
        Some(expected) => {
            Err(SourceError::Checksum { url: request.url.clone(), actual: resolved.digest, expected: expected.clone() }.into())
        }
    }
}

/// What is remembered of a URL for as long as a build lasts.
#[derive(Serialize, Deserialize)]
struct Note {
    digest: Digest,
    filename: String,
    modified: Option<i64>,
}

/// What the URL was found to hold earlier in the same build.
fn pinned(request: &Request, context: &Context) -> Result<Option<Resolved>> {
    context.pins.get(&pin_name(request)).map(resolved).transpose()
}

fn pin(request: &Request, context: &Context, found: Resolved) -> Result<Resolved> {
    let Resolved { layer, digest, filename, modified } = found;
    let note = serde_json::to_vec(&Note { digest, filename, modified }).map_err(|e| Fault::of(fault::Kind::Internal, e))?;
    resolved(context.pins.put(&pin_name(request), Pin { layer, note }))
}

fn resolved(pin: Pin) -> Result<Resolved> {
    let Note { digest, filename, modified } = serde_json::from_slice(&pin.note).map_err(|e| Fault::of(fault::Kind::Internal, e))?;
    Ok(Resolved { layer: pin.layer, digest, filename, modified })
}

fn pin_name(request: &Request) -> String {
    format!("http:{}", request.memory())
}

async fn ask(shared: &Shared, request: &Request, context: &Context) -> Result<Resolved> {
    let web = shared.registry.web()?;
    let mut headers = headers(request, context).await?;
    let known = known(shared, request)?;
    if !known.is_empty() {
        let etags: Vec<&str> = known.iter().map(|(_, version)| version.etag.as_str()).collect();
        if let Ok(value) = HeaderValue::from_str(&etags.join(", ")) {
            headers.insert(IF_NONE_MATCH, value);
        }
        // Some servers give tags but do not heed them: first compare by hand, without the body.
        let answer = web.send(Method::HEAD, &request.url, &headers).await;
        if let Some(resolved) = answer.ok().and_then(|answer| unchanged(request, &known, &answer)) {
            return Ok(resolved);
        }
    }
    let mut answer = web.send(Method::GET, &request.url, &headers).await?;
    if answer.status() == StatusCode::NOT_MODIFIED {
        let status = answer.status().as_u16();
        return unchanged(request, &known, &answer).ok_or_else(|| SourceError::Status { status }.into());
    }
    if !answer.status().is_success() {
        return Err(SourceError::Status { status: answer.status().as_u16() }.into());
    }
    let filename = request.file_name(answer.header("content-disposition"));
    let modified = answer.header("last-modified").and_then(date::parse);
    let etag = answer.header("etag").map(etag).filter(|etag| !etag.is_empty());
    let (layer, digest) = save(shared, request, &filename, modified, &mut answer).await?;
    if let Some(etag) = etag {
        let mut batch = Batch::new();
        let version = Version { etag, digest: digest.clone(), modified };
        batch.put(&VERSIONS, format!("{}/{}", request.memory(), layer.id()).as_str(), &Json(version));
        shared.db.submit(batch);
    }
    Ok(Resolved { layer: Some(layer), digest, filename, modified })
}

/// Versions whose layers are still here.
fn known(shared: &Shared, request: &Request) -> Result<Vec<(Layer, Version)>> {
    let prefix = format!("{}/", request.memory());
    let mut known = Vec::new();
    for (key, Json(version)) in shared.db.read()?.prefix(&VERSIONS, prefix.as_bytes())? {
        let id = key[prefix.len()..].parse::<LayerId>().ok();
        match id.map(|id| shared.layers.get(&id)).transpose()?.flatten() {
            Some(layer) => known.push((layer, version)),
            None => {
                let mut batch = Batch::new();
                batch.delete(&VERSIONS, key.as_str());
                shared.db.submit(batch);
            }
        }
    }
    Ok(known)
}

/// The version that the server says it still has.
fn unchanged(request: &Request, known: &[(Layer, Version)], answer: &WebAnswer) -> Option<Resolved> {
    if !matches!(answer.status(), StatusCode::OK | StatusCode::NOT_MODIFIED) {
        return None;
    }
    let tag = answer.header("etag").map(etag).unwrap_or_default();
    let (layer, version) = match known {
        // An answer without a tag to a question about one is about that one.
        [only] if tag.is_empty() && answer.status() == StatusCode::NOT_MODIFIED => only,
        all => all.iter().find(|(_, version)| version.etag == tag)?,
    };
    let filename = request.file_name(answer.header("content-disposition"));
    Some(Resolved { layer: Some(layer.clone()), digest: version.digest.clone(), filename, modified: version.modified })
}

async fn save(
    shared: &Shared,
    request: &Request,
    filename: &str,
    modified: Option<i64>,
    answer: &mut WebAnswer,
) -> Result<(Layer, Digest)> {
    let mut file = request.placement.begin(shared, properties(request), filename.to_owned())?;
    let mut hasher = Hasher::new();
    let mut body = Body::new(answer);
    while let Some(chunk) = body.next().await? {
        hasher.update(&chunk);
        file.write(chunk).await?;
    }
    Ok((file.finish(modified.unwrap_or(0)).await?, hasher.finish()))
}

async fn pull_from_session(shared: &Shared, request: &Request, context: &Context) -> Result<Resolved> {
    let id = request.url.split_once(SESSION_HOST).map_or("", |(_, path)| path);
    let mut last = Fault::from(SourceError::NoSession);
    for session in context.sessions.all() {
        let mut download = match session.pull_upload(id).await {
            Ok(download) => download,
            Err(fault) => {
                last = fault;
                continue;
            }
        };
        let filename = request.file_name(None);
        let mut file = request.placement.begin(shared, properties(request), filename.clone())?;
        let mut hasher = Hasher::new();
        while let Some(chunk) = download.read().await? {
            hasher.update(&chunk);
            file.write(chunk).await?;
        }
        return Ok(Resolved { layer: Some(file.finish(0).await?), digest: hasher.finish(), filename, modified: None });
    }
    Err(last)
}

fn properties(request: &Request) -> Properties {
    Properties::new(format!("http url {}", request.url))
}

/// Without the mark of weak tags.
fn etag(value: &str) -> String {
    value.strip_prefix("W/").unwrap_or(value).to_owned()
}

/// The op's own headers, and what the clients' secrets say for the host.
async fn headers(request: &Request, context: &Context) -> Result<HeaderMap> {
    let mut headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("gzip"))]);
    let invalid = |what| SourceError::Attr { what, value: String::new() };
    for field in &request.headers {
        let name: HeaderName = field.name.parse().map_err(|_| invalid("header"))?;
        headers.insert(name, HeaderValue::from_str(&field.value).map_err(|_| invalid("header"))?);
    }
    let host = request.host();
    let own = request.auth_header_secret.as_str();
    let value = if own.is_empty() {
        let header = secret(context, &format!("HTTP_AUTH_HEADER_{host}")).await.ok().flatten();
        let token = match secret(context, &format!("HTTP_AUTH_TOKEN_{host}")).await {
            Ok(Some(token)) => Some([b"Bearer ", token.as_ref()].concat().into()),
            _ => None,
        };
        token.or(header)
    } else {
        let context_text = || format!("failed to retrieve HTTP auth secret {own}");
        let found = secret(context, own).await.with_context(context_text)?;
        let missing = || Fault::new(fault::Kind::NotFound, format!("secret {own}: not found")).context(context_text());
        Some(found.ok_or_else(missing)?)
    };
    if let Some(value) = value {
        let mut value = HeaderValue::from_maybe_shared(value.clone()).map_err(|_| invalid("auth secret"))?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    Ok(headers)
}

async fn secret(context: &Context, id: &str) -> Result<Option<Bytes>> {
    let mut outcome = Ok(None);
    for session in context.sessions.all() {
        match session.secret(id).await {
            Ok(Some(value)) => return Ok(Some(value)),
            Ok(None) => {}
            Err(fault) => outcome = Err(fault),
        }
    }
    outcome
}
