//! From layers to blobs.
use std::collections::BTreeMap;

use bytes::Bytes;
use content::Hold;
use fault::{Fault, Result};
use futures_util::future::try_join_all;
use layers::{Begun, Layer, LayerBlob, REWRITTEN};
use oci::{Digest, ImageConfig, Timestamp};

use crate::api::{Context, Source};
use crate::attrs::lookup;
use crate::config::LayerFacts;
use crate::image::assemble::{Packed, Part};
use crate::image::options::Settled;

/// A source whose layers all have blobs, though these may still be elsewhere.
pub struct Parts {
    pub parts: Vec<Part>,
    /// Who knows where a blob is.
    pub layers: BTreeMap<Digest, Layer>,
    /// Keeps blobs that are no layer's own.
    pub holds: Vec<Hold>,
}

/// One platform's part, with what each of its layers was made of.
struct One {
    part: Part,
    layers: Vec<Layer>,
    holds: Vec<Hold>,
}

/// All platforms at once; each blob is made only once. `begun` is told of those that are made now.
pub async fn pack(
    source: &Source,
    metadata: &BTreeMap<String, Bytes>,
    options: &Settled,
    begun: Option<Begun>,
    context: &Context,
) -> Result<Parts> {
    let _row = context.reporter.row("exporting layers", "", 0);
    let packing = source.results.iter().map(|result| {
        let begun = begun.clone();
        async move {
            let part = Part { id: result.id.clone(), platform: result.platform.clone(), layers: Vec::new() };
            let mut one = One { part, layers: Vec::new(), holds: Vec::new() };
            if let Some(layer) = &result.layer {
                one.layers = layer.chain();
                match latest(metadata, options, &result.id)? {
                    Some(latest) => rewrite(&mut one, latest, metadata, options, begun, context).await?,
                    None => {
                        let blobs = layer.blobs_as_they_grow(options.compression, begun, &context.cancel, &context.reporter).await?;
                        one.part.layers.extend(blobs.into_iter().map(packed));
                    }
                }
            }
            Ok::<_, Fault>(one)
        }
    });
    let mut all = Parts { parts: Vec::new(), layers: BTreeMap::new(), holds: Vec::new() };
    for One { part, layers, holds } in try_join_all(packing).await? {
        all.layers.extend(part.layers.iter().map(|packed| packed.descriptor.digest.clone()).zip(layers));
        all.holds.extend(holds);
        all.parts.push(part);
    }
    Ok(all)
}

fn packed(blob: LayerBlob) -> Packed {
    let facts = LayerFacts { diff_id: blob.diff_id, created: Some(blob.created), description: blob.description };
    Packed { descriptor: blob.descriptor, facts }
}

/// What times of files are to be clamped to. Without an epoch there is nothing to clamp to, and as BuildKit we go on without.
fn latest(metadata: &BTreeMap<String, Bytes>, options: &Settled, id: &str) -> Result<Option<i64>> {
    if !options.rewrite_timestamps {
        return Ok(None);
    }
    let epoch = options.epoch.resolve(metadata, id)?;
    match epoch {
        None => tracing::warn!("rewrite-timestamp is specified, but no source-date-epoch was found"),
        // Nor does BuildKit rewrite anything then.
        Some(epoch) if epoch < 0 => {
            tracing::warn!("layers are not rewritten to match source-date-epoch {epoch}: archives hold no time before 1970");
        }
        Some(_) => {}
    }
    Ok(epoch.filter(|epoch| *epoch >= 0))
}

/// Packs layers with the times of files clamped in all but those of the base image. A layer that resists stays as it is.
async fn rewrite(
    one: &mut One,
    latest: i64,
    metadata: &BTreeMap<String, Bytes>,
    options: &Settled,
    begun: Option<Begun>,
    context: &Context,
) -> Result<()> {
    let base = base_layers(lookup(metadata, "containerimage.base.config", &one.part.id).map_or(&[][..], |config| &config[..]))?;
    let untouched = one.layers.iter().zip(&base).take_while(|(layer, base)| layer.diff_id().as_ref() == Some(base)).count();
    let time = Timestamp::from_unix(latest, 0).to_string().replace('T', " ").replace('Z', " +0000 UTC");
    let _row = context.reporter.row(format!("rewriting layers with source-date-epoch {latest} ({time})"), "", 0);
    let (compression, mark) = (options.compression, latest.to_string());
    let done = |blob: &LayerBlob| blob.descriptor.annotations.get(REWRITTEN) == Some(&mark);
    let packing = one.layers.iter().enumerate().map(|(number, layer)| {
        let begun = begun.clone();
        async move {
            let (cancel, reporter) = (&context.cancel, &context.reporter);
            if number >= untouched && !layer.blob_at_hand(compression).is_some_and(|blob| done(&blob)) {
                match layer.retimed(latest, compression, begun.clone(), cancel, reporter).await {
                    Ok(retimed) => {
                        let (created, description) = (Some(layer.created_at()), layer.description());
                        let facts = LayerFacts { diff_id: retimed.diff_id, created, description };
                        return Ok((Packed { descriptor: retimed.descriptor, facts }, Some(retimed.hold)));
                    }
                    Err(fault) => {
                        context.cancel.check()?;
                        // An archive from elsewhere may resist. Files do not: then something else is wrong, and the image would be another next time.
                        if layer.known_blobs().is_empty() {
                            return Err(fault);
                        }
                        tracing::warn!(%fault, layer = number + 1, "failed to rewrite a layer to match source-date-epoch {latest}");
                    }
                }
            }
            Ok::<_, Fault>((packed(layer.blob(compression, begun, cancel, reporter).await?), None))
        }
    });
    for (packed, hold) in try_join_all(packing).await? {
        one.part.layers.push(packed);
        one.holds.extend(hold);
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
