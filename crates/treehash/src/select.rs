//! Digests of what wildcards and include and exclude patterns select.
use std::ops::Bound;

use oci::Digest;
use patterns::{Glob, Matcher, MatcherError, Parent};

use crate::records::{ChecksumError, RecordKind, Walk, key_of, slashed, with_nul};

/// What to take the digest of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Follow a symbolic link in the last place.
    pub follow_links: bool,
    /// The path is a glob.
    pub wildcard: bool,
    /// Relative to the path, or to what the glob matches.
    pub include_patterns: Vec<String>,
    pub exclude_patterns: Vec<String>,
    /// Absolute; something selected must begin with each. Looked at only where there is a wildcard or a pattern.
    pub required_paths: Vec<String>,
}

/// A file, link or directory header that was visited.
struct Item {
    /// With the prefix as it was asked for, even if a symbolic link was followed there.
    path: Vec<u8>,
    key: Vec<u8>,
    include: Parent,
    exclude: Parent,
    follow: bool,
    selected: bool,
}

struct Selection<'s, 'w> {
    walk: &'s mut Walk<'w>,
    /// Cleaned; empty for the root.
    pattern: Vec<u8>,
    glob: Option<Glob>,
    /// Lets a walk leave directories out that the glob cannot match into; only for globs without brackets and escapes.
    glob_parts: Option<Vec<Glob>>,
    skip_own_header: bool,
    include: Option<Matcher>,
    exclude: Option<Matcher>,
    follow_links: bool,
    asked_prefix: Vec<u8>,
    real_prefix: Vec<u8>,
    /// The directory that the glob matched last: what is in there is selected by the patterns only.
    matched: Vec<u8>,
    items: Vec<Item>,
    /// Directory headers above the current path.
    parents: Vec<usize>,
    selected: Vec<usize>,
}

pub(crate) fn checksum(walk: &mut Walk<'_>, path: &str, options: &Options) -> Result<Digest, ChecksumError> {
    let key = key_of(std::path::Path::new(path));
    let pattern = slashed(&key);
    let (asked, follow_prefix) = if options.wildcard { split_wildcards(&pattern) } else { (pattern.clone(), false) };
    let (start, found) = walk.follow(&key_of_slashed(&asked), follow_prefix)?;
    let wild = options.wildcard && !pattern.is_empty();
    let text = String::from_utf8_lossy(&pattern).into_owned();
    let mut selection = Selection {
        glob: if wild { Some(Glob::new(&text).map_err(ChecksumError::Wildcard)?) } else { None },
        glob_parts: if wild { glob_parts(&text) } else { None },
        skip_own_header: path.ends_with('/'),
        include: matcher("includepatterns", &options.include_patterns)?,
        exclude: matcher("excludepatterns", &options.exclude_patterns)?,
        follow_links: options.follow_links,
        real_prefix: slashed(&start),
        asked_prefix: asked,
        pattern,
        walk,
        matched: Vec::new(),
        items: Vec::new(),
        parents: Vec::new(),
        selected: Vec::new(),
    };
    if found.is_some() {
        selection.visit(&start)?;
    }
    selection.finish(path, options)
}

impl Selection<'_, '_> {
    /// A path and all below it, in the order of keys.
    fn visit(&mut self, key: &[u8]) -> Result<(), ChecksumError> {
        let Some(kind) = self.walk.get(key)?.map(|record| record.kind.clone()) else { return Ok(()) };
        if !matches!(kind, RecordKind::Dir { .. }) {
            return self.consider(key, &kind).map(drop);
        }
        let header = with_nul(key);
        if !self.consider(&header, &RecordKind::DirHeader)? {
            return Ok(());
        }
        self.walk.list(key)?;
        let mut from = Bound::Excluded(header.clone());
        while let Some((child, record)) = self.walk.records.map.range((from, Bound::Unbounded)).next() {
            if !child.starts_with(&header) {
                break;
            }
            let (mut child, is_dir) = (child.clone(), matches!(record.kind, RecordKind::Dir { .. }));
            self.visit(&child)?;
            from = if is_dir {
                // Past all that is in there: those keys go on with a NUL.
                child.push(1);
                Bound::Included(child)
            } else {
                Bound::Excluded(child)
            };
        }
        Ok(())
    }

    /// Decides about one record. False for a directory in which nothing can be selected.
    fn consider(&mut self, key: &[u8], kind: &RecordKind) -> Result<bool, ChecksumError> {
        let is_header = *kind == RecordKind::DirHeader;
        let mut path = slashed(key);
        if let Some(rest) = path.strip_prefix(self.real_prefix.as_slice()) {
            path = [self.asked_prefix.as_slice(), rest].concat();
        }
        while let Some(parent) = self.parents.last() {
            if is_below(&path, &self.items[*parent].path) {
                break;
            }
            self.parents.pop();
        }
        if is_header {
            path.pop();
            if path == self.pattern && self.skip_own_header {
                return Ok(true);
            }
        }
        let parent = self.parents.last().copied();
        let mut item = Item {
            follow: parent.is_none() && self.follow_links,
            path,
            key: key.to_vec(),
            include: Parent::default(),
            exclude: Parent::default(),
            selected: false,
        };
        let Some((include, excluded)) = self.decide(&mut item, parent)? else { return Ok(self.may_match_below(&item.path)) };
        if !include && !is_header {
            return Ok(true);
        }
        self.items.push(item);
        let number = self.items.len() - 1;
        if include {
            for above in self.parents.clone().into_iter().chain([number]) {
                if !std::mem::replace(&mut self.items[above].selected, true) {
                    self.selected.push(above);
                }
            }
        }
        if is_header {
            self.parents.push(number);
        }
        let hopeless = excluded && self.exclude.as_ref().is_some_and(|matcher| !matcher.has_exclusions());
        Ok(!hopeless)
    }

    /// Whether the item is selected, and whether the exclude patterns decided so; `None` if the glob does not reach it.
    fn decide(&mut self, item: &mut Item, parent: Option<usize>) -> Result<Option<(bool, bool)>, ChecksumError> {
        let base = match &self.glob {
            Some(glob) if self.matched.is_empty() || !is_below(&item.path, &self.matched) => {
                if !glob.matches(&String::from_utf8_lossy(&item.path)) {
                    return Ok(None);
                }
                self.matched.clone_from(&item.path);
                &self.matched
            }
            Some(_) => &self.matched,
            // A wildcard on the root matches nothing by itself and has the root as its base, as no wildcard has.
            None => &self.pattern,
        };
        let candidate = item.path.get(base.len() + 1..).unwrap_or_default();
        let candidate = String::from_utf8_lossy(candidate);
        let above = parent.map(|number| &self.items[number]);
        if let Some(matcher) = &self.include {
            let (matches, info) = matcher
                .matches_below(&candidate, &above.map(|item| item.include.clone()).unwrap_or_default())
                .map_err(failed("includepatterns"))?;
            item.include = info;
            if !matches {
                return Ok(Some((false, false)));
            }
        }
        if let Some(matcher) = &self.exclude {
            let (matches, info) = matcher
                .matches_below(&candidate, &above.map(|item| item.exclude.clone()).unwrap_or_default())
                .map_err(failed("excludepatterns"))?;
            item.exclude = info;
            if matches {
                return Ok(Some((false, true)));
            }
        }
        Ok(Some((true, false)))
    }

    fn may_match_below(&self, dir: &[u8]) -> bool {
        let Some(parts) = &self.glob_parts else { return true };
        let dir = String::from_utf8_lossy(dir);
        let names: Vec<&str> = dir.split('/').filter(|part| !part.is_empty()).collect();
        names.len() < parts.len() && names.iter().zip(parts).all(|(name, glob)| glob.matches(name))
    }

    fn finish(self, path: &str, options: &Options) -> Result<Digest, ChecksumError> {
        for required in &options.required_paths {
            if !self.selected.iter().any(|number| self.items[*number].path.starts_with(required.as_bytes())) {
                return Err(ChecksumError::NotFound { path: required.clone() });
            }
        }
        let mut digests = Vec::with_capacity(self.selected.len());
        for number in &self.selected {
            let item = &self.items[*number];
            let (kind, mut digest) = self.walk.digest(&item.key, false)?;
            if item.follow && matches!(kind, RecordKind::Symlink(_)) {
                digest = self.walk.digest(&key_of_slashed(&item.path), self.follow_links)?.1;
            }
            digests.push((item, digest));
        }
        if let [(item, digest)] = digests.as_slice()
            && patterns::base(path) == patterns::base(&String::from_utf8_lossy(&item.path))
        {
            return Ok(digest.clone());
        }
        let mut hasher = oci::Hasher::new();
        for (item, digest) in &digests {
            let rest = item.path.strip_prefix(self.asked_prefix.as_slice()).unwrap_or(&item.path);
            let key: Vec<u8> = rest.iter().map(|b| if *b == b'/' { 0 } else { *b }).collect();
            hasher.update(if key.is_empty() { &[0] } else { key.as_slice() });
            hasher.update(digest.as_str());
        }
        Ok(hasher.finish())
    }
}

fn is_below(path: &[u8], dir: &[u8]) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.first() == Some(&b'/'))
}

fn key_of_slashed(path: &[u8]) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt as _;
    key_of(std::path::Path::new(std::ffi::OsStr::from_bytes(path)))
}

/// The leading components without wildcards, and whether there are others.
fn split_wildcards(pattern: &[u8]) -> (Vec<u8>, bool) {
    let mut plain = Vec::new();
    for part in pattern.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
        if has_wildcards(part) {
            return (plain, true);
        }
        plain.push(b'/');
        plain.extend_from_slice(part);
    }
    (plain, false)
}

fn has_wildcards(part: &[u8]) -> bool {
    let mut bytes = part.iter();
    while let Some(b) = bytes.next() {
        match b {
            b'*' | b'?' | b'[' => return true,
            b'\\' => _ = bytes.next(),
            _ => {}
        }
    }
    false
}

fn glob_parts(pattern: &str) -> Option<Vec<Glob>> {
    if pattern.contains(['[', '\\']) {
        return None;
    }
    pattern.split('/').filter(|part| !part.is_empty()).map(|part| Glob::new(part).ok()).collect()
}

fn matcher(name: &str, list: &[String]) -> Result<Option<Matcher>, ChecksumError> {
    if list.is_empty() {
        return Ok(None);
    }
    let failed = |source| ChecksumError::Pattern { text: format!("invalid {name}: [{}]", list.join(" ")), source };
    Matcher::new(list).map(Some).map_err(failed)
}

fn failed(name: &'static str) -> impl FnOnce(MatcherError) -> ChecksumError {
    move |source| ChecksumError::Pattern { text: format!("failed to match {name}"), source }
}
