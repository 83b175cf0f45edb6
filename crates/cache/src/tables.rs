//! The index's tables. Everything is text: keys are words joined by spaces, values are lines. None of the words (digests, numbers, ids)
//! holds either.
use kv::Table;
use oci::Digest;
use solver::{KeyId, Link};

use crate::Entry;

/// [`link`] to the keys that it leads to.
pub(crate) const LINKS: Table<str, String> = Table::new("cache.links");
/// A key to the links that lead to it.
pub(crate) const BACKLINKS: Table<str, String> = Table::new("cache.backlinks");
/// A key to its results, each with the time of its creation.
pub(crate) const RESULTS: Table<str, String> = Table::new("cache.results");
/// A result to the keys that have it.
pub(crate) const KEYS: Table<str, String> = Table::new("cache.keys");

/// `<from> <input> <output> <op digest> <selector or ->`
pub(crate) fn link(from: &KeyId, link: &Link) -> String {
    let selector = link.selector.as_ref().map_or("-", Digest::as_str);
    format!("{from} {} {} {} {selector}", link.input, link.output, link.digest)
}

pub(crate) fn parse_link(text: &str) -> Option<(KeyId, Link)> {
    let mut words = text.split(' ');
    let from = key(words.next()?)?;
    let input = words.next()?.parse().ok()?;
    let output = words.next()?.parse().ok()?;
    let digest = words.next()?.parse().ok()?;
    let selector = match words.next()? {
        "-" => None,
        selector => Some(selector.parse().ok()?),
    };
    Some((from, Link { input, output, digest, selector }))
}

pub(crate) fn key(text: &str) -> Option<KeyId> {
    text.parse::<Digest>().ok().map(KeyId::from)
}

/// `<created at> <result>`
pub(crate) fn entry(entry: &Entry) -> String {
    format!("{} {}", entry.created_at, entry.result)
}

pub(crate) fn parse_entry(text: &str) -> Option<Entry> {
    let (created_at, result) = text.split_once(' ')?;
    Some(Entry { result: result.to_owned(), created_at: created_at.parse().ok()? })
}

/// Adds a line to a value, at its end. `None` if it is there already.
pub(crate) fn with_line(value: Option<String>, line: &str) -> Option<String> {
    match value {
        None => Some(line.to_owned()),
        Some(value) if value.lines().any(|l| l == line) => None,
        Some(value) => Some(format!("{value}\n{line}")),
    }
}

/// Drops the lines that do not satisfy `keep`. `None` if nothing is left.
pub(crate) fn without_lines(value: &str, keep: impl Fn(&str) -> bool) -> Option<String> {
    let kept: Vec<&str> = value.lines().filter(|l| keep(l)).collect();
    if kept.is_empty() { None } else { Some(kept.join("\n")) }
}
