//! Git repositories as people write them: `https://host/x.git#ref:dir`, `git@host:x?tag=v1`, …
use std::collections::BTreeMap;

use patterns::join;

use crate::text::{parse_bool, quote};
use crate::{Error, Result};

/// A git source, taken apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GitRef {
    /// What git is called with: no fragment, no query.
    pub remote: String,
    pub reference: String,
    pub checksum: String,
    pub subdir: String,
    /// `github.com/x/y`: may just as well be a path, so only contexts take it as a repository.
    pub like_a_path: bool,
    pub keep_git_dir: Option<bool>,
    pub submodules: Option<bool>,
    /// `checkout`, `commit`, or empty.
    pub mtime: String,
    pub fetch_by_commit: bool,
}

/// A git URL's parts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct GitUrl {
    pub scheme: String,
    /// With the port, without the user.
    pub host: String,
    pub path: String,
    pub remote: String,
    pub reference: String,
    pub subdir: String,
    query: BTreeMap<String, Vec<String>>,
}

impl GitRef {
    /// `None`: not a git repository. An error: a git repository, but wrongly written.
    pub fn parse(text: &str) -> Option<Result<Self>> {
        if text.starts_with("./") || text.starts_with("../") {
            return None;
        }
        let like_a_path = text.starts_with("github.com/");
        let url = if like_a_path { GitUrl::parse(&format!("https://{text}"))? } else { GitUrl::parse(text)? };
        if !like_a_path && matches!(url.scheme.as_str(), "http" | "https") && !url.path.ends_with(".git") {
            return None;
        }
        let remote = if like_a_path { url.remote.split_once("://").map_or("", |(_, rest)| rest) } else { &url.remote };
        let mut found = Self {
            remote: remote.to_owned(),
            reference: url.reference.clone(),
            subdir: url.subdir.clone(),
            like_a_path,
            ..Self::default()
        };
        Some(found.load_query(&url.query).map(|()| found))
    }

    fn load_query(&mut self, query: &BTreeMap<String, Vec<String>>) -> Result<()> {
        let (mut tag, mut branch) = (None, None);
        for (key, values) in query {
            let [value] = values.as_slice() else { return Err(Error::new(format!("query {} has multiple values", quote(key)))) };
            let is_flag = matches!(key.as_str(), "submodules" | "keep-git-dir" | "fetch-by-commit");
            if value.is_empty() && !is_flag {
                return Err(Error::new(format!("query {} has no value", quote(key))));
            }
            let invalid = || Error::new(format!("invalid {key} value: {}", quote(value)));
            let flag = || if value.is_empty() { Ok(true) } else { parse_bool(value).ok_or_else(invalid) };
            match key.as_str() {
                "ref" => settle("ref", &mut self.reference, value)?,
                "subdir" => settle("subdir", &mut self.subdir, value)?,
                "tag" => tag = Some(prefixed(value, "refs/tags/")),
                "branch" => branch = Some(prefixed(value, "refs/heads/")),
                "checksum" | "commit" => self.checksum = value.clone(),
                "keep-git-dir" => self.keep_git_dir = Some(flag()?),
                "submodules" => self.submodules = Some(flag()?),
                "fetch-by-commit" => self.fetch_by_commit = flag()?,
                "mtime" if value == "checkout" || value == "commit" => self.mtime = value.clone(),
                "mtime" => return Err(invalid().suffixed(" (must be \"checkout\" or \"commit\")")),
                _ => return Err(Error::new(format!("unexpected query {}", quote(key)))),
            }
        }
        if tag.is_some() && branch.is_some() {
            return Err(Error::new("branch conflicts with tag"));
        }
        match tag.or(branch) {
            Some(full) => settle("ref", &mut self.reference, &full),
            None => Ok(()),
        }
    }
}

fn settle(what: &str, known: &mut String, value: &str) -> Result<()> {
    if !known.is_empty() && known != value {
        return Err(Error::new(format!("{what} conflicts: {} vs {}", quote(known), quote(value))));
    }
    *known = value.to_owned();
    Ok(())
}

fn prefixed(value: &str, prefix: &str) -> String {
    if value.starts_with(prefix) { value.to_owned() } else { format!("{prefix}{value}") }
}

impl Error {
    fn suffixed(self, text: &str) -> Self {
        Error::new(format!("{self}{text}"))
    }
}

impl GitUrl {
    /// `scheme://…` with a scheme that git has, or `user@host:path`.
    pub fn parse(text: &str) -> Option<Self> {
        let (rest, fragment) = text.split_once('#').map_or((text, ""), |(rest, fragment)| (rest, fragment));
        let (bare, query) = rest.split_once('?').map_or((rest, ""), |(bare, query)| (bare, query));
        let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
        let opts = |decode: fn(&str) -> Option<String>| {
            let subdir = join(&["/", &decode(subdir)?]);
            Some((decode(reference)?, subdir.trim_start_matches('/').to_owned()))
        };
        let scheme = text.split_once("://").filter(|(s, _)| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric()));
        let mut url = match scheme {
            Some((scheme, _)) => {
                let scheme = scheme.to_lowercase();
                if !matches!(scheme.as_str(), "http" | "https" | "ssh" | "git") || bare.bytes().any(|b| b.is_ascii_control()) {
                    return None;
                }
                let body = &bare[scheme.len() + 3..];
                let (authority, path) = body.find('/').map_or((body, ""), |at| body.split_at(at));
                let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
                let (reference, subdir) = opts(percent_decode)?;
                let remote = format!("{scheme}://{body}");
                Self { host: host.to_owned(), path: percent_decode(path)?, remote, scheme, reference, subdir, ..Self::default() }
            }
            None => {
                let (user, rest) = bare.split_once('@')?;
                let (host, path) = rest.split_once(':')?;
                let word = |s: &str, more: &[u8]| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b));
                if !word(user, b"-_") || !word(host, b"-.") {
                    return None;
                }
                let (reference, subdir) = opts(|s| Some(s.to_owned()))?;
                let (host, path) = (host.to_owned(), path.to_owned());
                Self { scheme: "ssh".into(), host, path, remote: bare.to_owned(), reference, subdir, ..Self::default() }
            }
        };
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decode = |s: &str| percent_decode(&s.replace('+', " "));
            if let (Some(key), Some(value)) = (decode(key), decode(value)) {
                url.query.entry(key).or_default().push(value);
            }
        }
        Some(url)
    }
}

/// `None` for a percent sign that is no escape.
pub(crate) fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b != b'%' {
            out.push(b);
            continue;
        }
        let mut digit = || bytes.next().and_then(|b| (b as char).to_digit(16));
        let (high, low) = (digit()?, digit()?);
        out.push((high * 16 + low) as u8);
    }
    Some(String::from_utf8_lossy(&out).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn git(text: &str) -> GitRef {
        GitRef::parse(text).unwrap().unwrap()
    }

    #[test]
    fn knows_repositories() {
        for text in ["./x.git", "../x.git", "https://x/y", "http://x/y.tar.gz", "a/b", "Dockerfile", "ftp://x/y.git", "a@b", "/a/b.git"] {
            assert!(GitRef::parse(text).is_none(), "{text}");
        }
        assert_eq!(git("https://host/x/y.git#v1:sub/dir/").reference, "v1");
        assert_eq!(git("https://host/x/y.git#v1:sub/dir/").subdir, "sub/dir");
        assert_eq!(git("https://host/x/y.git#v1").remote, "https://host/x/y.git");
        assert_eq!(git("git@host:x/y.git#v1:../d").subdir, "d");
        assert_eq!(git("git@host:x/y.git?branch=b").remote, "git@host:x/y.git");
        assert_eq!(git("ssh://u@host:22/x").remote, "ssh://u@host:22/x");
        assert_eq!(git("git://host/x").remote, "git://host/x");
        let short = git("github.com/a/b#c");
        assert_eq!((short.remote.as_str(), short.like_a_path, short.reference.as_str()), ("github.com/a/b", true, "c"));
    }

    #[test]
    fn queries() {
        let full = git("https://h/x.git?tag=v1&subdir=d&checksum=abc&keep-git-dir&submodules=false&mtime=commit&fetch-by-commit=1");
        assert_eq!((full.reference.as_str(), full.subdir.as_str(), full.checksum.as_str()), ("refs/tags/v1", "d", "abc"));
        assert_eq!((full.keep_git_dir, full.submodules, full.fetch_by_commit), (Some(true), Some(false), true));
        assert_eq!(full.mtime, "commit");
        for (query, want) in [
            ("?x=y", "unexpected query \"x\""),
            ("?ref", "query \"ref\" has no value"),
            ("?ref=a&ref=b", "query \"ref\" has multiple values"),
            ("?ref=a#b", "ref conflicts: \"b\" vs \"a\""),
            ("?subdir=a#:b", "subdir conflicts: \"b\" vs \"a\""),
            ("?tag=a&branch=b", "branch conflicts with tag"),
            ("?tag=a#b", "ref conflicts: \"b\" vs \"refs/tags/a\""),
            ("?keep-git-dir=x", "invalid keep-git-dir value: \"x\""),
            ("?submodules=x", "invalid submodules value: \"x\""),
            ("?mtime=x", "invalid mtime value: \"x\" (must be \"checkout\" or \"commit\")"),
        ] {
            let error = GitRef::parse(&format!("https://h/x.git{query}")).unwrap().unwrap_err();
            assert_eq!(error.to_string(), want, "{query}");
        }
    }
}
