//! The content part of cache keys: digests of what an op selects in an input, with the records kept beside the layer for the next question.
use fault::{Context as _, Fault, Kind, Result};
use layers::Layer;
use llb::cache_key::{self, ContentSelector};
use oci::Digest;
use progress::Reporter;
use task::Cancel;
use treehash::{ChecksumError, Options, Records};

/// Under which a layer keeps the digests of its files.
const RECORDS: &str = "treehash";

/// One digest for all selectors. The layer is fetched and unpacked if it was not; scratch has nothing in it.
pub async fn of_selectors(layer: Option<&Layer>, selectors: &[ContentSelector], cancel: &Cancel, reporter: &Reporter) -> Result<Digest> {
    let Some(layer) = layer else {
        let of = |s: &ContentSelector| treehash::checksum_of_nothing(&rooted(&s.path)).map_err(|e| checksum_fault("", e));
        return Ok(cache_key::combine(&selectors.iter().map(of).collect::<Result<Vec<_>>>()?));
    };
    layer.realize(cancel, reporter).await?;
    let (layer, selectors, cancel) = (layer.clone(), selectors.to_vec(), cancel.clone());
    task::blocking(move || {
        let view = layer.view()?;
        let known = layer.meta_get(RECORDS).unwrap_or_default();
        let mut records = known.and_then(|bytes| Records::decode(&bytes).ok()).unwrap_or_default();
        let mut checksums = Vec::with_capacity(selectors.len());
        for selector in &selectors {
            cancel.check()?;
            let options = Options {
                follow_links: selector.follow_links,
                wildcard: selector.wildcard,
                include_patterns: selector.include_patterns.clone(),
                exclude_patterns: selector.exclude_patterns.clone(),
                required_paths: selector.required_paths.clone(),
            };
            let id = layer.id().to_string();
            checksums.push(records.checksum(&view, &rooted(&selector.path), &options).map_err(|e| checksum_fault(&id, e))?);
        }
        if records.take_changed() {
            layer.meta_put(RECORDS, &records.encode());
        }
        Ok(cache_key::combine(&checksums))
    })
    .await
}

/// A trailing slash counts: it leaves out the directory's own header.
fn rooted(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

fn checksum_fault(layer: &str, error: ChecksumError) -> Fault {
    let missing = matches!(error, ChecksumError::NotFound { .. } | ChecksumError::NoTree { .. });
    let kind = if missing { Kind::NotFound } else { Kind::Unknown };
    let outcome: std::result::Result<(), Fault> = Err(Fault::of(kind, error));
    let reference = if layer.is_empty() { "scratch" } else { layer };
    outcome.context(format!("failed to calculate checksum of ref {reference}")).expect_err("it was one")
}
