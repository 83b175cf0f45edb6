//! From layers to blobs.
use std::collections::BTreeMap;

use fault::{Fault, Kind, Result};
use futures_util::future::try_join_all;
use layers::Layer;
use oci::Digest;

use crate::api::{Context, PlatformResult, Source};
use crate::image::assemble::Part;
use crate::image::options::Packing;

/// A source whose layers all have blobs, though these may still be elsewhere.
pub struct Parts {
    pub parts: Vec<Part>,
    /// Who knows where a blob is.
    pub layers: BTreeMap<Digest, Layer>,
}

/// All platforms at once; each blob is made only once.
pub async fn pack(source: &Source, packing: Packing, context: &Context) -> Result<Parts> {
    let _row = context.reporter.row("exporting layers", "", 0);
    let packed = try_join_all(source.results.iter().map(|result| pack_one(result, packing, context))).await?;
    let (mut parts, mut layers) = (Vec::new(), BTreeMap::new());
    for (part, own) in packed {
        parts.push(part);
        layers.extend(own);
    }
    Ok(Parts { parts, layers })
}

async fn pack_one(result: &PlatformResult, packing: Packing, context: &Context) -> Result<(Part, BTreeMap<Digest, Layer>)> {
    let mut part = Part { id: result.id.clone(), platform: result.platform.clone(), layers: Vec::new() };
    let mut own = BTreeMap::new();
    let Some(layer) = &result.layer else { return Ok((part, own)) };
    let _ = (packing, context, layer, &mut part, &mut own);
    Err(Fault::new(Kind::Unimplemented, "packing layers into blobs is not there yet"))
}
