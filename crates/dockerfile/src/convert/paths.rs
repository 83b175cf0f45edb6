//! Paths inside the image, which on Windows have drive letters and backslashes.
use patterns::{clean, join};

use crate::{Error, Result};

pub(super) fn to_slash(path: &str, os: &str) -> String {
    if os == "windows" { path.replace('\\', "/") } else { path.to_owned() }
}

fn from_slash(path: &str, os: &str) -> String {
    if os == "windows" { path.replace('/', "\\") } else { path.to_owned() }
}

/// Absolute, with forward slashes and without a drive letter; relative to `parent` if need be. `keep_slash` keeps a trailing `/` or `/.`.
pub(super) fn normalize(parent: &str, path: &str, os: &str, keep_slash: bool) -> Result<String> {
    let path = to_slash(path, os);
    let parent = match to_slash(parent, os).as_str() {
        "" => "/".to_owned(),
        parent => parent.to_owned(),
    };
    let parent = without_drive(&parent, os, keep_slash).map_err(|e| e.context("removing drive letter"))?;
    let parent = if parent.starts_with('/') { parent } else { join(&["/", &parent]) };
    let wanted = if path.is_empty() { parent.clone() } else { path.clone() };
    let mut wanted = without_drive(&wanted, os, keep_slash).map_err(|e| e.context("removing drive letter"))?;
    if !wanted.starts_with('/') {
        wanted = join(&[&parent, &wanted]);
    }
    if keep_slash {
        keep_end(&path, &mut wanted);
    }
    Ok(to_slash(&wanted, os))
}

/// A trailing `/` or `/.` of what was written says that the destination is a directory.
pub(super) fn keep_end(written: &str, path: &mut String) {
    if written.ends_with('/') && !path.ends_with('/') {
        path.push('/');
    } else if written.ends_with("/.") {
        if path != "/" {
            path.push('/');
        }
        path.push('.');
    }
}

pub(super) fn normalize_workdir(current: &str, path: &str, os: &str) -> Result<String> {
    let path = normalize(current, path, os, false).map_err(|e| e.context("normalizing working directory"))?;
    Ok(from_slash(&path, os))
}

pub(super) fn is_absolute(path: &str, os: &str) -> bool {
    without_drive(path, os, false).is_ok_and(|path| to_slash(&path, os).starts_with('/'))
}

pub(super) fn without_drive(path: &str, os: &str, keep_slash: bool) -> Result<String> {
    if os != "windows" {
        return Ok(path.to_owned());
    }
    if path.len() == 2 && path.ends_with(':') {
        return Err(Error::new(format!("No relative path specified in {}", crate::text::quote(path))));
    }
    let slashed = to_slash(path, os);
    if slashed.starts_with("//") {
        return Err(Error::new("UNC paths are not supported"));
    }
    let rest = match slashed.split_once(':') {
        None => slashed.as_str(),
        Some((drive, rest)) if drive.eq_ignore_ascii_case("c") => rest,
        Some(_) => return Err(Error::new("The specified path is not on the system drive (C:)")),
    };
    let mut cleaned = clean(rest);
    if keep_slash && cleaned.len() > 1 && rest.ends_with('/') {
        cleaned.push('/');
    }
    Ok(cleaned)
}

/// What an LLB file action makes of a path: absolute and clean.
pub(super) fn action_path(dir: &str, path: &str, keep_slash: bool) -> String {
    let mut cleaned = clean(path);
    if !cleaned.starts_with('/') {
        cleaned = join(&["/", dir, &cleaned]);
    }
    if keep_slash {
        keep_end(path, &mut cleaned);
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalizes() {
        for (parent, path, want) in [
            ("/app", "x", "/app/x"),
            ("/app", "x/", "/app/x/"),
            ("/app", "./", "/app/"),
            ("/app", "../y/.", "/y/."),
            ("/app", "/abs/../x", "/abs/../x"),
            ("", "x", "/x"),
            ("/app", "", "/app"),
        ] {
            assert_eq!(normalize(parent, path, "linux", true).unwrap(), want, "{parent} {path}");
        }
        assert_eq!(normalize_workdir("C:\\app", "x/y", "windows").unwrap(), "\\app\\x\\y");
        assert_eq!(normalize("/", "c:\\x\\", "windows", true).unwrap(), "/x/");
        assert!(normalize("/", "d:\\x", "windows", true).is_err());
        assert!(is_absolute("c:/x", "windows") && !is_absolute("x", "linux"));
        assert_eq!(action_path("/a", "/x/../y/.", true), "/y/.");
    }
}
