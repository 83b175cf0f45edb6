//! Which files of an input a step uses, so that a changed one can be named.
use std::collections::{BTreeMap, HashMap};

use layers::Layer;
use llb::Vertex;
use oci::{Digest, Hasher};

use super::print::short;

/// Entries for one input; where there are more, whole directories stand for what is in them.
const MOST_ENTRIES: usize = 300;

/// Remembers what it read: several steps of a build use the same context.
#[derive(Default)]
pub struct Listings(HashMap<String, BTreeMap<String, Digest>>);

impl Listings {
    /// Path and short digest of everything that the vertex uses of its input. Empty if that is not known any more.
    pub fn of(&mut self, vertex: &Vertex, input: usize, layer: Option<&Layer>) -> BTreeMap<String, String> {
        let Some(layer) = layer else { return BTreeMap::new() };
        let all = self.0.entry(layer.id().to_string()).or_insert_with(|| ops::checksum::known_files(layer));
        let selects = ops::checksum::selects(vertex, input);
        summarized(all.iter().filter(|(path, _)| selects(path)).map(|(path, digest)| (path.as_str(), digest)).collect())
    }
}

fn summarized(files: Vec<(&str, &Digest)>) -> BTreeMap<String, String> {
    if files.len() <= MOST_ENTRIES {
        return files.into_iter().map(|(path, digest)| (path.to_owned(), short(digest))).collect();
    }
    let group = |path: &str, depth: usize| -> String {
        let end = path.match_indices('/').nth(depth).map_or(path.len(), |(at, _)| at);
        path[..end].to_owned()
    };
    let count = |depth: usize| {
        let mut groups: Vec<String> = files.iter().map(|(path, _)| group(path, depth)).collect();
        groups.dedup();
        groups.len()
    };
    // Depth 1 is the first name below the root.
    let depth = (1..=16).take_while(|depth| count(*depth) <= MOST_ENTRIES).last();
    let Some(depth) = depth else { return BTreeMap::new() };
    let mut groups: BTreeMap<String, Hasher> = BTreeMap::new();
    for (path, digest) in &files {
        let hasher = groups.entry(group(path, depth)).or_default();
        hasher.update(path.as_bytes());
        hasher.update(digest.as_str().as_bytes());
    }
    groups.into_iter().map(|(path, hasher)| (path, short(&hasher.finish()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_files_are_summed_up_by_directory() {
        let paths: Vec<String> = (0..1000).map(|i| format!("/src/d{:02}/f{i}", i % 40)).collect();
        let list = |changed: Option<usize>| {
            let digests: Vec<Digest> = (0..1000).map(|i| Digest::of(format!("{i} {}", changed == Some(i)))).collect();
            let mut files: Vec<(&str, &Digest)> = paths.iter().map(String::as_str).zip(&digests).collect();
            files.sort();
            summarized(files)
        };
        let (before, after) = (list(None), list(Some(41)));
        assert_eq!(before.len(), 40);
        let changed: Vec<&String> = before.iter().filter(|(path, digest)| after[*path] != **digest).map(|(path, _)| path).collect();
        assert_eq!(changed, ["/src/d01"]);
    }
}
