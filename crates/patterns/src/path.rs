/// The shortest equivalent of a slash-separated path, by text alone: `a//b/../c/.` is `a/c`, the empty path is `.`.
/// Follows Go's `path.Clean`.
pub fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&"..") | None if !rooted => parts.push(".."),
                None => {}
                Some(_) => {
                    parts.pop();
                }
            },
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// The parts that are not empty, joined by slashes and cleaned; empty if all are. Follows Go's `path.Join`.
pub fn join(parts: &[&str]) -> String {
    let parts: Vec<&str> = parts.iter().copied().filter(|p| !p.is_empty()).collect();
    if parts.is_empty() { String::new() } else { clean(&parts.join("/")) }
}

/// The last element. `.` for the empty path, `/` for the root. Follows Go's `path.Base`.
pub fn base(path: &str) -> &str {
    if path.is_empty() {
        return ".";
    }
    let trimmed = path.trim_end_matches('/');
    if trimmed.is_empty() {
        return "/";
    }
    trimmed.rsplit_once('/').map_or(trimmed, |(_, last)| last)
}

/// All but the last element, cleaned. Follows Go's `path.Dir`.
pub fn dir(path: &str) -> String {
    match path.rfind('/') {
        Some(at) => clean(&path[..=at]),
        None => ".".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleans_like_go() {
        for (path, want) in [
            ("", "."),
            (".", "."),
            ("a/b", "a/b"),
            ("a//b/", "a/b"),
            ("./a", "a"),
            ("a/./b/.", "a/b"),
            ("a/../b", "b"),
            ("a/../../b", "../b"),
            ("../../x", "../../x"),
            ("/..", "/"),
            ("/../a", "/a"),
            ("//a", "/a"),
            ("/", "/"),
            ("a/..", "."),
        ] {
            assert_eq!(clean(path), want, "{path:?}");
        }
        assert_eq!(join(&["", "a", "../b"]), "b");
        assert_eq!(join(&["", ""]), "");
        assert_eq!((base("/a/b/"), base(""), base("//"), base("x")), ("b", ".", "/", "x"));
        assert_eq!((dir("/a/b"), dir("a"), dir("/a"), dir("a/b/")), ("/a".into(), ".".into(), "/".into(), "a/b".into()));
    }
}
