//! The content part of cache keys: digests of what an op selects in an input, with the records kept beside the layer for the next question.
use std::collections::BTreeMap;

use fault::{Context as _, Fault, Kind, Result};
use layers::Layer;
use llb::Vertex;
use llb::cache_key::{self, ContentSelector};
use oci::{Digest, Platform};
use patterns::{Glob, Matcher};
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
    layer.realize_with_room(cancel, reporter).await?;
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

/// The files of a layer whose digests are known from earlier questions, by absolute path. For telling people what changed: never reads the files.
pub fn known_files(layer: &Layer) -> BTreeMap<String, Digest> {
    let known = layer.meta_get(RECORDS).unwrap_or_default();
    let records = known.and_then(|bytes| Records::decode(&bytes).ok()).unwrap_or_default();
    records.digests().map(|(path, digest)| (path.to_string_lossy().into_owned(), digest.clone())).collect()
}

/// Tells which paths a vertex looks at in one of its inputs, all of them where that cannot be said. Links are not followed, so this may say
/// less than the key does.
pub fn selects(vertex: &Vertex, input: usize) -> impl Fn(&str) -> bool + use<> {
    let key = cache_key::of(vertex, &Platform::host()).ok();
    let selectors = key.and_then(|key| key.deps.into_iter().nth(input)?.content).unwrap_or_else(|| vec![ContentSelector::default()]);
    let selections: Vec<Selection> = selectors.iter().map(Selection::new).collect();
    move |path| selections.iter().any(|selection| selection.covers(path))
}

struct Selection {
    /// One for each name in the selector's path.
    names: Vec<Option<Glob>>,
    plain: Vec<String>,
    include: Option<Matcher>,
    exclude: Option<Matcher>,
}

impl Selection {
    fn new(selector: &ContentSelector) -> Self {
        let plain: Vec<String> = selector.path.split('/').filter(|name| !name.is_empty() && *name != ".").map(str::to_owned).collect();
        let glob = |name: &String| if selector.wildcard { Glob::new(name).ok() } else { None };
        let matcher = |patterns: &[String]| if patterns.is_empty() { None } else { Matcher::new(patterns).ok() };
        Self {
            names: plain.iter().map(glob).collect(),
            plain,
            include: matcher(&selector.include_patterns),
            exclude: matcher(&selector.exclude_patterns),
        }
    }

    fn covers(&self, path: &str) -> bool {
        let mut rest = path.split('/').filter(|name| !name.is_empty());
        for (glob, plain) in self.names.iter().zip(&self.plain) {
            let Some(name) = rest.next() else { return false };
            if !glob.as_ref().map_or(name == plain, |glob| glob.matches(name)) {
                return false;
            }
        }
        let below = rest.collect::<Vec<_>>().join("/");
        let matches = |matcher: &Option<Matcher>, none: bool| matcher.as_ref().map_or(none, |m| m.matches(&below).unwrap_or(none));
        matches(&self.include, true) && !matches(&self.exclude, false)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_selector_covers() {
        let covers = |selector: ContentSelector, path: &str| Selection::new(&selector).covers(path);
        let plain = |path: &str| ContentSelector { path: path.into(), ..ContentSelector::default() };
        assert!(covers(plain("/"), "/a/b") && covers(plain("/a/"), "/a/b") && covers(plain("a"), "/a"));
        assert!(!covers(plain("/a"), "/ab") && !covers(plain("/a/b"), "/a"));
        let wild = ContentSelector { wildcard: true, ..plain("/src/*.rs") };
        assert!(covers(wild.clone(), "/src/x.rs") && !covers(wild, "/src/x.c"));
        let picky = ContentSelector { include_patterns: vec!["*.md".into()], exclude_patterns: vec!["b.md".into()], ..plain("/docs") };
        assert!(covers(picky.clone(), "/docs/a.md") && !covers(picky.clone(), "/docs/b.md") && !covers(picky, "/docs/a.txt"));
    }
}
