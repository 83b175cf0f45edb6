//! From layers to blobs.
use std::collections::BTreeMap;

use fault::{Fault, Kind, Result};
use futures_util::future::try_join_all;
use layers::{Compression, Layer};
use oci::Digest;

use crate::api::{Context, PlatformResult, Source};
use crate::config::LayerFacts;
use crate::image::assemble::{Packed, Part};
use crate::image::options::{Encoding, Packing};

/// A source whose layers all have blobs, though these may still be elsewhere.
pub struct Parts {
    pub parts: Vec<Part>,
    /// Who knows where a blob is.
    pub layers: BTreeMap<Digest, Layer>,
}

impl Packing {
    /// As `layers` wants it.
    pub fn compression(self) -> Result<Compression> {
        let kind = match self.encoding {
            Encoding::Uncompressed => layers::CompressionKind::Uncompressed,
            Encoding::Gzip => layers::CompressionKind::Gzip,
            Encoding::Zstd => layers::CompressionKind::Zstd,
            Encoding::Estargz => return Err(Fault::new(Kind::Unimplemented, "compression estargz is not supported by kiln: use zstd or gzip")),
        };
        Ok(Compression { kind, force: self.force, level: self.level.map(|l| l as i32) })
    }
}

/// All platforms at once; each blob is made only once.
pub async fn pack(source: &Source, packing: Packing, context: &Context) -> Result<Parts> {
    let compression = packing.compression()?;
    let _row = context.reporter.row("exporting layers", "", 0);
    let packed = try_join_all(source.results.iter().map(|result| pack_one(result, compression, context))).await?;
    let (mut parts, mut layers) = (Vec::new(), BTreeMap::new());
    for (part, own) in packed {
        parts.push(part);
        layers.extend(own);
    }
    Ok(Parts { parts, layers })
}

async fn pack_one(result: &PlatformResult, compression: Compression, context: &Context) -> Result<(Part, BTreeMap<Digest, Layer>)> {
    let mut part = Part { id: result.id.clone(), platform: result.platform.clone(), layers: Vec::new() };
    let mut own = BTreeMap::new();
    let Some(layer) = &result.layer else { return Ok((part, own)) };
    for (blob, member) in layer.blobs(compression, &context.cancel).await?.into_iter().zip(layer.chain()) {
        own.insert(blob.descriptor.digest.clone(), member);
        let facts = LayerFacts { diff_id: blob.diff_id, created: Some(blob.created), description: blob.description };
        part.layers.push(Packed { descriptor: blob.descriptor, facts });
    }
    Ok((part, own))
}
