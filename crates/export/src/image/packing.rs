//! From layers to blobs.
use std::collections::BTreeMap;

use fault::Result;
use futures_util::future::try_join_all;
use layers::{Compression, Layer};
use oci::Digest;

use crate::api::{Context, PlatformResult, Source};
use crate::config::LayerFacts;
use crate::image::assemble::{Packed, Part};

/// A source whose layers all have blobs, though these may still be elsewhere.
pub struct Parts {
    pub parts: Vec<Part>,
    /// Who knows where a blob is.
    pub layers: BTreeMap<Digest, Layer>,
}

/// All platforms at once; each blob is made only once.
pub async fn pack(source: &Source, compression: Compression, context: &Context) -> Result<Parts> {
    let _row = context.reporter.row("exporting layers", "", 0);
    let packed = try_join_all(source.results.iter().map(|result| pack_one(result, compression, context))).await?;
    let mut all = Parts { parts: Vec::new(), layers: BTreeMap::new() };
    for (part, layers) in packed {
        all.parts.push(part);
        all.layers.extend(layers);
    }
    Ok(all)
}

async fn pack_one(result: &PlatformResult, compression: Compression, context: &Context) -> Result<(Part, BTreeMap<Digest, Layer>)> {
    let mut part = Part { id: result.id.clone(), platform: result.platform.clone(), layers: Vec::new() };
    let mut layers = BTreeMap::new();
    let Some(layer) = &result.layer else { return Ok((part, layers)) };
    for blob in layer.blobs(compression, &context.cancel, &context.reporter).await? {
        layers.insert(blob.descriptor.digest.clone(), blob.layer);
        let facts = LayerFacts { diff_id: blob.diff_id, created: Some(blob.created), description: blob.description };
        part.layers.push(Packed { descriptor: blob.descriptor, facts });
    }
    Ok((part, layers))
}
