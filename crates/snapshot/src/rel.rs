//! Paths within a tree as bytes: relative, without `.`, `..`, empty or trailing parts; the root is empty.
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

pub(crate) fn parts(path: &Path) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.as_os_str().as_bytes().split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".")
}

pub(crate) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(dir.len() + name.len() + 1);
    path.extend_from_slice(dir);
    push(&mut path, name);
    path
}

pub(crate) fn push(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

pub(crate) fn pop(path: &mut Vec<u8>) {
    let end = path.iter().rposition(|b| *b == b'/').unwrap_or(0);
    path.truncate(end);
}

/// Directory and name; `None` for the root.
pub(crate) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => Some((&path[..slash], &path[slash + 1..])),
        None if path.is_empty() => None,
        None => Some((b"", path)),
    }
}

/// As callers see it: absolute.
pub(crate) fn absolute(path: &[u8]) -> PathBuf {
    let mut text = Vec::with_capacity(path.len() + 1);
    text.push(b'/');
    text.extend_from_slice(path);
    OsString::from_vec(text).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_and_joins() {
        assert_eq!(split(b""), None);
        assert_eq!(split(b"a"), Some((b"".as_slice(), b"a".as_slice())));
        assert_eq!(split(b"a/b/c"), Some((b"a/b".as_slice(), b"c".as_slice())));
        let mut path = join(b"", b"a");
        push(&mut path, b"b");
        assert_eq!(absolute(&path), Path::new("/a/b"));
        pop(&mut path);
        pop(&mut path);
        pop(&mut path);
        assert_eq!(absolute(&path), Path::new("/"));
        assert_eq!(parts(Path::new("//a/./b/../")).collect::<Vec<_>>(), [b"a".as_slice(), b"b", b".."]);
    }
}
