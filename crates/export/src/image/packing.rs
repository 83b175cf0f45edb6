//! From layers to blobs.
use std::collections::BTreeMap;

use bytes::Bytes;
use content::Hold;
use fault::{Fault, Result};
use futures_util::future::{join_all, try_join_all};
use layers::{Begun, Compression, Layer, LayerBlob, REWRITTEN};
use oci::{Digest, ImageConfig, Timestamp};

use crate::api::{Context, PlatformResult, Source};
use crate::attrs::lookup;
use crate::config::LayerFacts;
use crate::image::assemble::{Packed, Part};
use crate::image::options::Settled;

/// A source whose layers all have blobs, though these may still be elsewhere.
pub struct Parts {
    pub parts: Vec<Part>,
    /// Those of the layers themselves, whatever was made of them for the image, by platform id and lowest first. Scratch has none.
    pub diff_ids: BTreeMap<String, Vec<Digest>>,
    /// Who knows where a blob is.
    pub layers: BTreeMap<Digest, Layer>,
    /// Keeps blobs that are no layer's own.
    pub holds: Vec<Hold>,
}

/// One platform's layers, with their blobs.
struct One {
    part: Part,
    blobs: Vec<LayerBlob>,
    holds: Vec<Hold>,
}

/// All platforms at once; each blob is made only once. `begun` is told of those that are made now and are to leave.
pub async fn pack(
    source: &Source,
    metadata: &BTreeMap<String, Bytes>,
    options: &Settled,
    begun: Option<Begun>,
    context: &Context,
) -> Result<Parts> {
    // Those whose times are clamped are others than those that leave.
    let (first, second) = if options.rewrite_timestamps { (None, begun) } else { (begun, None) };
    let mut packed = {
        let _row = context.reporter.row("exporting layers", "", 0);
        try_join_all(source.results.iter().map(|result| pack_one(result, options.compression, first.clone(), context))).await?
    };
    if options.rewrite_timestamps {
        try_join_all(packed.iter_mut().map(|one| rewrite(one, metadata, options, second.clone(), context))).await?;
    }
    let mut all = Parts { parts: Vec::new(), diff_ids: BTreeMap::new(), layers: BTreeMap::new(), holds: Vec::new() };
    for One { part, blobs, holds } in packed {
        if !blobs.is_empty() {
            all.diff_ids.insert(part.id.clone(), blobs.iter().map(|blob| blob.diff_id.clone()).collect());
        }
        // The layer of a rewritten blob knows which files are in it.
        let named = part
            .layers
            .iter()
            .zip(blobs)
            .flat_map(|(packed, blob)| [(blob.descriptor.digest, blob.layer.clone()), (packed.descriptor.digest.clone(), blob.layer)]);
        all.layers.extend(named);
        all.holds.extend(holds);
        all.parts.push(part);
    }
    Ok(all)
}

async fn pack_one(result: &PlatformResult, compression: Compression, begun: Option<Begun>, context: &Context) -> Result<One> {
    let mut part = Part { id: result.id.clone(), platform: result.platform.clone(), layers: Vec::new() };
    let Some(layer) = &result.layer else { return Ok(One { part, blobs: Vec::new(), holds: Vec::new() }) };
    let blobs = layer.blobs_as_they_grow(compression, begun, &context.cancel, &context.reporter).await?;
    let packed = |blob: &LayerBlob| Packed {
        descriptor: blob.descriptor.clone(),
        facts: LayerFacts { diff_id: blob.diff_id.clone(), created: Some(blob.created), description: blob.description.clone() },
    };
    part.layers = blobs.iter().map(packed).collect();
    Ok(One { part, blobs, holds: Vec::new() })
}

/// Clamps the times of files in all layers but those of the base image. Without an epoch there is nothing to clamp to, and as BuildKit we go on
/// without; a layer that resists stays as it is.
async fn rewrite(
    one: &mut One,
    metadata: &BTreeMap<String, Bytes>,
    options: &Settled,
    begun: Option<Begun>,
    context: &Context,
) -> Result<()> {
    let Some(epoch) = options.epoch.resolve(metadata, &one.part.id)? else {
        tracing::warn!("rewrite-timestamp is specified, but no source-date-epoch was found");
        return Ok(());
    };
    if epoch < 0 {
        // Nor does BuildKit rewrite anything then.
        tracing::warn!("layers are not rewritten to match source-date-epoch {epoch}: archives hold no time before 1970");
        return Ok(());
    }
    let base = base_layers(lookup(metadata, "containerimage.base.config", &one.part.id).map_or(&[][..], |config| &config[..]))?;
    let untouched = one.blobs.iter().zip(&base).take_while(|(blob, base)| blob.layer.diff_id().as_ref() == Some(base)).count();
    let time = Timestamp::from_unix(epoch, 0).to_string().replace('T', " ").replace('Z', " +0000 UTC");
    let _row = context.reporter.row(format!("rewriting layers with source-date-epoch {epoch} ({time})"), "", 0);
    let mark = epoch.to_string();
    let done = |blob: &LayerBlob| blob.descriptor.annotations.get(REWRITTEN) == Some(&mark);
    let rewritten = join_all(one.blobs[untouched..].iter().map(|blob| async {
        match done(blob) {
            true => None,
            false => Some(blob.retimed(epoch, options.compression, begun.clone(), &context.cancel, &context.reporter).await),
        }
    }))
    .await;
    for (number, rewritten) in (untouched..).zip(rewritten) {
        match rewritten {
            None => {}
            Some(Ok(rewritten)) => {
                let packed = &mut one.part.layers[number];
                (packed.descriptor, packed.facts.diff_id) = (rewritten.descriptor, rewritten.diff_id);
                one.holds.push(rewritten.hold);
            }
            Some(Err(fault)) => {
                context.cancel.check()?;
                tracing::warn!(%fault, layer = number + 1, "failed to rewrite a layer to match source-date-epoch {epoch}");
            }
        }
    }
    Ok(())
}

fn base_layers(config: &[u8]) -> Result<Vec<Digest>> {
    if config.is_empty() {
        return Ok(Vec::new());
    }
    let config =
        ImageConfig::parse(config).map_err(|e| Fault::invalid(format!("failed to unmarshal base image config: {}", fault::chain(&e))))?;
    Ok(config.rootfs.diff_ids)
}
