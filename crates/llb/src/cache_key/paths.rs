//! Go's `path.Join("/", …)` and `path.Base`, and which of several selected paths say it all.
use std::collections::BTreeSet;

/// `path` below `/`, cleaned: `..` never leaves the root.
pub(super) fn rooted(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// The last element; `.` for nothing, `/` for only slashes.
pub(super) fn base(path: &str) -> &str {
    if path.is_empty() {
        return ".";
    }
    match path.trim_end_matches('/') {
        "" => "/",
        path => path.rsplit('/').next().expect("a split has at least one part"),
    }
}

/// Drops duplicates and what lies below another path of the list; sorted unless there is at most one.
pub(super) fn dedupe(paths: Vec<String>) -> Vec<String> {
    if paths.len() <= 1 {
        return paths;
    }
    let all: BTreeSet<String> = paths.into_iter().collect();
    let below_another = |path: &String| {
        all.iter().any(|other| {
            let prefix = if other.ends_with('/') { other.clone() } else { format!("{other}/") };
            path != other && path.starts_with(&prefix)
        })
    };
    all.iter().filter(|path| !below_another(path)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follow_go() {
        for (path, want) in [("", "/"), ("/", "/"), ("../x/", "/x"), ("a//b/./c/..", "/a/b"), ("/..", "/")] {
            assert_eq!(rooted(path), want, "{path}");
        }
        for (path, want) in [("", "."), ("///", "/"), ("/foo/bar*", "bar*"), ("a/", "a"), ("x", "x")] {
            assert_eq!(base(path), want, "{path}");
        }
    }

    #[test]
    fn drops_what_a_parent_covers() {
        let paths = |list: &[&str]| list.iter().map(|p| p.to_string()).collect::<Vec<_>>();
        assert_eq!(dedupe(paths(&["/foobar", "/foo/x", "/foo", "/foo"])), paths(&["/foo", "/foobar"]));
        assert_eq!(dedupe(paths(&["/foo", "/"])), paths(&["/"]));
    }
}
