//! Remotes as git takes them: URLs, and `user@host:path`.
use patterns::join;

/// A remote and what is written behind it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Remote {
    /// What git is called with: no query, no fragment.
    pub remote: String,
    pub reference: String,
    /// Clean, without a leading slash.
    pub subdir: String,
}

/// Whether git itself would take it for a remote: a URL of a scheme that it has, or `user@host:path`.
pub(super) fn is_transport(text: &str) -> bool {
    match scheme(text) {
        Some(scheme) => matches!(scheme.to_ascii_lowercase().as_str(), "http" | "https" | "ssh" | "git"),
        None => is_scp_style(text),
    }
}

/// The `remote` with the scheme that upstream takes where none is written.
pub(super) fn with_scheme(text: &str) -> String {
    if is_transport(text) { text.to_owned() } else { format!("https://{text}") }
}

impl Remote {
    /// `None`: not a remote.
    pub fn parse(text: &str) -> Option<Self> {
        let text = with_scheme(text);
        if text.bytes().any(|b| b.is_ascii_control()) {
            return None;
        }
        let (rest, fragment) = text.split_once('#').unwrap_or((&text, ""));
        let remote = rest.split_once('?').map_or(rest, |(bare, _)| bare).to_owned();
        let fragment = if is_scp_style(&text) { fragment.to_owned() } else { percent_decode(fragment)? };
        let (reference, subdir) = fragment.split_once(':').unwrap_or((&fragment, ""));
        let subdir = join(&["/", subdir]).trim_start_matches('/').to_owned();
        Some(Self { remote, reference: reference.to_owned(), subdir })
    }
}

/// The host with its port, as it stands in the names of secrets. `None` for `user@host:path`, which has no such secrets.
pub(super) fn host(remote: &str) -> Option<&str> {
    scheme(remote)?;
    let (_, rest) = remote.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    Some(authority.rsplit_once('@').map_or(authority, |(_, host)| host))
}

/// What a remote is called without its scheme and user.
pub(super) fn host_and_path(remote: &str) -> String {
    let (authority, path) = match remote.split_once("://").filter(|_| scheme(remote).is_some()) {
        Some((_, rest)) => rest.find('/').map_or((rest, ""), |at| rest.split_at(at)),
        None => remote.split_once(':').unwrap_or((remote, "")),
    };
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let path = percent_decode(path).unwrap_or_else(|| path.to_owned());
    format!("{host}{}", join(&["/", &path]))
}

/// Without user names and passwords, for everything that people see.
pub(super) fn redacted(remote: &str) -> String {
    let Some((start, rest)) = remote.split_once("://").filter(|_| scheme(remote).is_some()) else { return remote.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let Some(at) = rest[..end].rfind('@') else { return remote.to_owned() };
    let mask = match rest[..at].split_once(':') {
        Some(("", _)) => ":xxxxx",
        Some(_) => "xxxxx:xxxxx",
        None if at == 0 => "",
        None => "xxxxx",
    };
    format!("{start}://{mask}{}", &rest[at..])
}

fn scheme(text: &str) -> Option<&str> {
    text.split_once("://").map(|(scheme, _)| scheme).filter(|s| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric()))
}

fn is_scp_style(text: &str) -> bool {
    let word = |s: &str, more: &[u8]| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b));
    let parts = text.split_once('@').and_then(|(user, rest)| Some((user, rest.split_once(':')?.0)));
    scheme(text).is_none() && parts.is_some_and(|(user, host)| word(user, b"-_") && word(host, b"-."))
}

/// `None` for a percent sign that is no escape.
fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        let mut digit = || bytes.next().and_then(|b| (b as char).to_digit(16));
        out.push(if b == b'%' { (digit()? * 16 + digit()?) as u8 } else { b });
    }
    Some(String::from_utf8_lossy(&out).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_remotes_apart() {
        for (text, remote, reference, subdir) in [
            ("host/a.git#v1:sub/../dir/", "https://host/a.git", "v1", "dir"),
            ("http://u:p@host:8080/a.git?x=y#v%31", "http://u:p@host:8080/a.git", "v1", ""),
            ("git@host:a/b.git#m:/../d", "git@host:a/b.git", "m", "d"),
            ("ssh://git@host/a", "ssh://git@host/a", "", ""),
            ("host/a#:d", "https://host/a", "", "d"),
        ] {
            let want = Remote { remote: remote.into(), reference: reference.into(), subdir: subdir.into() };
            assert_eq!(Remote::parse(text), Some(want), "{text}");
        }
        assert_eq!(Remote::parse("host/a#%zz"), None);
        assert_eq!(Remote::parse("host/a\nb"), None);
    }

    #[test]
    fn hosts_and_what_is_shown() {
        assert_eq!(host("https://u:p@h:1/x"), Some("h:1"));
        assert_eq!(host("git@h:x"), None);
        for (remote, shown) in [
            ("https://u:p@h/x", "https://xxxxx:xxxxx@h/x"),
            ("https://u@h/x", "https://xxxxx@h/x"),
            ("https://:p@h/x", "https://:xxxxx@h/x"),
            ("https://h/x@y", "https://h/x@y"),
            ("git@h:x", "git@h:x"),
        ] {
            assert_eq!(redacted(remote), shown);
        }
    }
}
