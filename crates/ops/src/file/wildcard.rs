//! Paths with wildcards, against a tree.
use std::path::{Path, PathBuf};

use patterns::Glob;
use snapshot::{Follow, View};

use super::error::ActionError;

/// The paths that `pattern` stands for, sorted: itself if it has no wildcards, else what matches below its leading part without any. What
/// is in a matched directory is not looked at. Symbolic links in the leading part are followed, in its last place only if asked.
pub(super) fn resolve(view: &View, pattern: &str, follow: bool) -> Result<Vec<PathBuf>, ActionError> {
    let (plain, wild) = split(pattern);
    if wild.is_empty() {
        return Ok(vec![PathBuf::from(plain)]);
    }
    let base = place(view, &plain, follow)?;
    let Some(entry) = view.lookup(&base, Follow::No)? else { return Err(ActionError::os("lstat", &base, rustix::io::Errno::NOENT)) };
    let mut found = Vec::new();
    if let (true, Ok(glob)) = (entry.metadata().is_dir(), Glob::new(&wild)) {
        let depth = (!wild.contains(['[', '\\'])).then(|| wild.split('/').count());
        view.walk::<ActionError>(&base, &mut |entry| {
            let rel = entry.path().strip_prefix(&base).expect("a walk stays below its start");
            let matches = glob.matches(&rel.to_string_lossy());
            if matches {
                found.push(entry.path().to_owned());
            }
            // No wildcard reaches across a slash.
            Ok(!matches && depth.is_none_or(|depth| rel.components().count() < depth))
        })?;
    }
    Ok(found)
}

/// Where a path is: its parents' links followed, its own only if asked.
pub(super) fn place(view: &View, path: &str, follow: bool) -> Result<PathBuf, ActionError> {
    Ok(view.resolve(Path::new("/").join(path), if follow { Follow::Yes } else { Follow::No })?)
}

/// The leading components without wildcards, and the rest.
fn split(pattern: &str) -> (String, String) {
    let cleaned = patterns::join(&["/", pattern]);
    let parts: Vec<&str> = cleaned.split('/').filter(|part| !part.is_empty()).collect();
    let plain = parts.iter().position(|part| has_wildcards(part)).unwrap_or(parts.len());
    (format!("/{}", parts[..plain].join("/")), parts[plain..].join("/"))
}

fn has_wildcards(part: &str) -> bool {
    let mut letters = part.bytes();
    while let Some(letter) = letters.next() {
        match letter {
            b'*' | b'?' | b'[' => return true,
            b'\\' => _ = letters.next(),
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_at_the_first_wildcard() {
        let pair = |pattern| split(pattern);
        assert_eq!(pair("/a/b/"), ("/a/b".into(), String::new()));
        assert_eq!(pair("/a/b*/c"), ("/a".into(), "b*/c".into()));
        assert_eq!(pair("*"), ("/".into(), "*".into()));
        assert_eq!(pair("/a\\*/b"), ("/a\\*/b".into(), String::new()));
    }
}
