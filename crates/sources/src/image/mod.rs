//! `docker-image://` and `oci-layout://`: a manifest for a platform, its layers left lazy.
mod chain;
mod origin;
mod pin;
mod request;

use std::sync::Arc;

use bytes::Bytes;
use fault::Result;
use layers::{ImageLayer, Layer, Properties};
use llb::Vertex;
use oci::{Digest, Platform, gojson};
use serde::Serialize;

pub use chain::Chain;
pub(crate) use chain::chain;
pub(crate) use origin::{Blobs, Origin};
pub(crate) use pin::Pinned;
pub(crate) use request::{Place, Request, record_type};

use crate::error::SourceError;
use crate::key::Key;
use crate::store::{Context, Shared};

/// What a frontend learns of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageConfig {
    /// Of the manifest or index that the name stands for.
    pub digest: Digest,
    /// Empty if it was not asked for.
    pub config: Bytes,
}

/// The key text of index 0, in the field order of BuildKit.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ManifestKey<'a> {
    digest: &'a Digest,
    #[serde(rename = "OS")]
    os: &'a str,
    arch: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    variant: &'a str,
    #[serde(rename = "OSVersion", skip_serializing_if = "str::is_empty")]
    os_version: &'a str,
    #[serde(rename = "OSFeatures", skip_serializing_if = "<[String]>::is_empty")]
    os_features: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<usize>,
}

pub(crate) async fn key(shared: &Shared, vertex: &Vertex, request: &Request, index: usize, context: &Context) -> Result<Key> {
    let platform = platform_of(vertex.platform.as_ref());
    let pinned = match shared.images.get(&vertex.digest).filter(|_| index > 0) {
        Some(pinned) => pinned,
        None => pin_for(shared, vertex, request, &platform, context).await?,
    };
    let root = &pinned.root.digest;
    let by_config = if index > 0 { config_key(&pinned, request.layer_limit)? } else { None };
    let text = by_config.unwrap_or_else(|| manifest_key(root, &platform, request.layer_limit));
    Ok(Key::new(text.as_str(), root.as_str(), index == 0))
}

pub(crate) async fn fetch(shared: &Shared, vertex: &Vertex, request: &Request, context: &Context) -> Result<Option<Layer>> {
    let pinned = match shared.images.get(&vertex.digest) {
        Some(pinned) => pinned,
        None => pin_for(shared, vertex, request, &platform_of(vertex.platform.as_ref()), context).await?,
    };
    let taken = pinned.layers.len().min(request.layer_limit.unwrap_or(usize::MAX));
    let properties = |top| Properties {
        description: format!("pulled from {}", request.reference),
        record_type: if top { request.record_type.clone() } else { String::new() },
    };
    let image = pinned.layers[..taken].iter().enumerate().map(|(at, (descriptor, diff_id))| {
        let properties = properties(at + 1 == taken);
        ImageLayer { descriptor: descriptor.clone(), diff_id: diff_id.clone(), created: None, properties }
    });
    let blobs = Blobs::new(Origin::new(shared, request, context), context.reporter.clone());
    Ok(shared.layers.from_image(image.collect(), Arc::new(blobs))?)
}

/// Digest and config for a frontend.
pub(crate) async fn config(
    shared: &Shared,
    request: &Request,
    platform: Option<&Platform>,
    with_config: bool,
    context: &Context,
) -> Result<ImageConfig> {
    let origin = Origin::new(shared, request, context);
    if !with_config {
        let root = context.cancel.run(pin::root(shared, &origin, request)).await?;
        return Ok(ImageConfig { digest: root.digest, config: Bytes::new() });
    }
    let platform = platform_of(platform);
    let pinned = context.cancel.run(pin::pin(shared, &origin, request, &platform, pin::Depth::Config)).await?;
    Ok(ImageConfig { digest: pinned.root.digest.clone(), config: pinned.config.clone() })
}

async fn pin_for(shared: &Shared, vertex: &Vertex, request: &Request, platform: &Platform, context: &Context) -> Result<Arc<Pinned>> {
    let _row = context.reporter.row(format!("resolve {}", request.reference), "", 0);
    let origin = Origin::new(shared, request, context);
    let pinned = context.cancel.run(pin::pin(shared, &origin, request, platform, pin::Depth::Layers)).await?;
    if let Some(expected) = request.checksum.as_ref().filter(|expected| **expected != pinned.root.digest) {
        let (reference, actual) = (request.reference.to_string(), pinned.root.digest.clone());
        return Err(SourceError::ImageChecksum { reference, actual, expected: expected.clone() }.into());
    }
    let count = pinned.layers.len();
    if let Some(limit) = request.layer_limit.filter(|limit| *limit > count) {
        return Err(SourceError::LayerLimit { limit, count }.into());
    }
    let pinned = Arc::new(pinned);
    shared.images.put(vertex.digest.clone(), pinned.clone());
    Ok(pinned)
}

fn platform_of(given: Option<&Platform>) -> Platform {
    given.cloned().map_or_else(Platform::host, Platform::normalized)
}

fn manifest_key(digest: &Digest, platform: &Platform, limit: Option<usize>) -> Digest {
    let Platform { architecture, os, os_version, os_features, variant } = platform;
    Digest::of(gojson::to_vec(&ManifestKey { digest, os, arch: architecture, variant, os_version, os_features, limit }))
}

/// The chain of the layers; for a config that is not one of an image, its digest; `None` where there are no layers.
fn config_key(pinned: &Pinned, limit: Option<usize>) -> Result<Option<Digest>> {
    let config = match oci::ImageConfig::parse(&pinned.config) {
        Ok(config) => config,
        Err(source) if limit.is_some() => return Err(SourceError::Config { source }.into()),
        Err(_) => return Ok(Some(Digest::of(&pinned.config))),
    };
    if config.rootfs.kind != "layers" {
        return Ok(None);
    }
    let links = config.rootfs.diff_ids.into_iter().take(limit.unwrap_or(usize::MAX));
    Ok(links.reduce(|chain, next| Digest::of(format!("{chain} {next}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_upstreams_json() {
        let digest = Digest::of(b"x");
        let text = format!(r#"{{"Digest":"{digest}","OS":"linux","Arch":"arm","Variant":"v7","Limit":2}}"#);
        assert_eq!(manifest_key(&digest, &Platform::new("linux", "arm", "v7"), Some(2)), Digest::of(text));
        let text = format!(r#"{{"Digest":"{digest}","OS":"linux","Arch":"amd64"}}"#);
        assert_eq!(manifest_key(&digest, &Platform::new("linux", "amd64", ""), None), Digest::of(text));
    }
}
