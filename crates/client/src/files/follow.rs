//! Follows the links on the way to given paths, so that a filtered tree holds what they point at.
use std::collections::BTreeSet;
use std::path::Path;

use patterns::{Glob, base, clean, dir, join};

/// The paths and all that links on them lead to, without those that lie in others. `None`: the whole tree.
pub fn targets(root: &Path, paths: &[String]) -> Option<Vec<String>> {
    let mut resolver = Resolver { root, resolved: BTreeSet::new() };
    for path in paths {
        resolver.follow(path);
    }
    without_nested(resolver.resolved.into_iter().collect())
}

/// Drops paths that lie in the one before them, as far as the given order shows it. `None` if one is the root.
pub fn without_nested(paths: Vec<String>) -> Option<Vec<String>> {
    let mut kept: Vec<String> = Vec::new();
    for path in paths {
        if path == "." {
            return None;
        }
        if !kept.last().is_some_and(|last| path.starts_with(&format!("{last}/"))) {
            kept.push(path);
        }
    }
    Some(kept)
}

struct Resolver<'a> {
    root: &'a Path,
    resolved: BTreeSet<String>,
}

impl Resolver<'_> {
    /// Component by component. Each link is followed once, which ends loops.
    fn follow(&mut self, path: &str) {
        let mut open = vec![path.to_owned()];
        while let Some(path) = open.pop() {
            let path = clean(&format!("/{path}"));
            let path = path.trim_start_matches('/');
            let mut rest = if path.is_empty() { "." } else { path };
            let mut current = ".".to_owned();
            loop {
                let (part, after) = rest.split_once('/').unwrap_or((rest, ""));
                current = join(&[&current, part]);
                let links = self.links(&current, true);
                if let Some(links) = links {
                    if self.resolved.insert(current.clone()) {
                        open.extend(links.iter().map(|target| join(&[target, after])));
                    }
                    break;
                }
                if after.is_empty() {
                    self.resolved.insert(current);
                    break;
                }
                rest = after;
            }
        }
    }

    /// Where a link, or the links that a last component with wildcards matches, lead; `None` if there is no link.
    fn links(&self, path: &str, wildcards: bool) -> Option<Vec<String>> {
        let name = base(path);
        if wildcards && has_wildcards(name) {
            let entries = std::fs::read_dir(self.root.join(dir(path))).ok()?;
            let glob = Glob::new(name).ok();
            let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
            names.retain(|name| glob.as_ref().is_some_and(|glob| glob.matches(name)));
            names.sort();
            let found: Vec<String> = names.iter().filter_map(|name| self.links(&join(&[&dir(path), name]), false)).flatten().collect();
            return (!found.is_empty()).then_some(found);
        }
        let target = std::fs::read_link(self.root.join(path)).ok()?.into_os_string().into_string().ok()?;
        let target = if target.starts_with('/') { clean(&target) } else { join(&["/", &dir(path), &target]) };
        Some(vec![target])
    }
}

fn has_wildcards(name: &str) -> bool {
    let mut chars = name.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => drop(chars.next()),
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}
