//! `http://` and `https://`: a URL's body as a file.
mod body;
mod file;
mod request;
mod resolve;

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use fault::{Context as _, Fault, Kind, Result};
use layers::{Layer, LayerId};
use llb::Vertex;
use oci::Digest;

pub(crate) use file::Placement;
pub(crate) use request::Request;
use request::Signature;
use resolve::Resolved;

use crate::error::SourceError;
use crate::key::Key;
use crate::signature::verify_detached;
use crate::store::{Context, Shared};

/// What a URL holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpMeta {
    pub digest: Digest,
    pub filename: String,
    /// Unix seconds.
    pub last_modified: Option<i64>,
    /// `<algorithm>:<hex>` of the body and the suffix that was asked for.
    pub checksum: Option<String>,
}

/// Signed bodies are held in memory while they are checked.
const MAX_SIGNED: u64 = 512 << 20;
/// Longest suffix of a checksum request.
const MAX_SUFFIX: usize = 4 << 10;

/// What a vertex was pinned to.
pub(crate) struct Pin {
    digest: Digest,
    /// The layer with the content, unless that was not needed to tell the digest.
    layer: Option<LayerId>,
}

pub(crate) async fn key(shared: &Shared, vertex: &Vertex, request: &Request, context: &Context) -> Result<Key> {
    let resolved = resolve_signed(shared, request, context, request.checksum.is_none()).await?;
    let pin = Pin { digest: resolved.digest.clone(), layer: resolved.layer.as_ref().map(Layer::id) };
    shared.downloads.put(vertex.digest.clone(), Arc::new(pin));
    Ok(request.key(&resolved))
}

pub(crate) async fn fetch(shared: &Shared, vertex: &Vertex, request: &Request, context: &Context) -> Result<Layer> {
    let pin = shared.downloads.get(&vertex.digest);
    if let Some(id) = pin.as_ref().and_then(|pin| pin.layer)
        && let Some(layer) = shared.layers.get(&id)?
    {
        return Ok(layer);
    }
    let fetched = resolve_signed(shared, request, context, true).await?;
    if let Some(expected) = pin.map(|pin| pin.digest.clone()).filter(|expected| *expected != fetched.digest) {
        return Err(SourceError::Checksum { url: request.url.clone(), actual: fetched.digest, expected }.into());
    }
    Ok(fetched.layer.expect("content was asked for"))
}

pub(crate) async fn meta(shared: &Shared, request: &Request, checksum: Option<(&str, &[u8])>, context: &Context) -> Result<HttpMeta> {
    if let Some((_, suffix)) = checksum.filter(|(_, suffix)| suffix.len() > MAX_SUFFIX) {
        tracing::debug!(length = suffix.len(), "suffix of a checksum request is too long");
        return Err(SourceError::Suffix { limit: MAX_SUFFIX }.into());
    }
    let content = request.checksum.is_none() || checksum.is_some();
    let resolved = resolve_signed(shared, request, context, content).await?;
    let checksum = match (checksum, &resolved.layer) {
        (Some((algorithm, suffix)), Some(layer)) => {
            let (algorithm, suffix) = (algorithm.to_owned(), suffix.to_vec());
            let open = opener(layer, &resolved.filename)?;
            Some(task::blocking(move || digest_with_suffix(open()?, &algorithm, &suffix)).await?)
        }
        _ => None,
    };
    Ok(HttpMeta { digest: resolved.digest, filename: resolved.filename, last_modified: resolved.modified, checksum })
}

/// The content is needed too where a signature must be on it.
async fn resolve_signed(shared: &Shared, request: &Request, context: &Context, content: bool) -> Result<Resolved> {
    let content = content || request.signature.is_some();
    let resolved = context.cancel.run(resolve::resolve(shared, request, context, content)).await?;
    if let (Some(Signature { keys, armored }), Some(layer)) = (request.signature.clone(), &resolved.layer) {
        let (open, url) = (opener(layer, &resolved.filename)?, request.url.clone());
        task::blocking(move || {
            let mut body = Vec::new();
            open()?.take(MAX_SIGNED + 1).read_to_end(&mut body)?;
            if body.len() as u64 > MAX_SIGNED {
                return Err(SourceError::TooLarge { url, limit: MAX_SIGNED }.into());
            }
            verify_detached(body, &armored, &keys, false).context("failed to verify pgp signature")
        })
        .await?;
    }
    Ok(resolved)
}

fn opener(layer: &Layer, name: &str) -> Result<impl FnOnce() -> Result<std::fs::File> + Send + 'static> {
    let (view, name) = (layer.view()?, name.to_owned());
    Ok(move || view.open(Path::new(&name)).map_err(|e| Fault::of(Kind::of_io(&e.source), e)))
}

fn digest_with_suffix(mut file: std::fs::File, algorithm: &str, suffix: &[u8]) -> Result<String> {
    fn run<D: sha2::Digest>(file: &mut std::fs::File, suffix: &[u8]) -> Result<String> {
        let mut hash = D::new();
        let mut buffer = vec![0; 256 << 10];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                n => hash.update(&buffer[..n]),
            }
        }
        hash.update(suffix);
        Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
    }
    let hex = match algorithm {
        "" | "sha256" => run::<sha2::Sha256>(&mut file, suffix)?,
        "sha384" => run::<sha2::Sha384>(&mut file, suffix)?,
        "sha512" => run::<sha2::Sha512>(&mut file, suffix)?,
        other => return Err(SourceError::Attr { what: "checksum algorithm", value: other.to_owned() }.into()),
    };
    Ok(format!("{}:{hex}", if algorithm.is_empty() { "sha256" } else { algorithm }))
}
