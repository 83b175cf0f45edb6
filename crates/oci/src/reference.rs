use std::fmt;
use std::str::FromStr;

use crate::Digest;

/// The name of an image in a registry: always with a domain and a repository, perhaps with a tag, a digest, or both.
///
/// Parsing takes the short forms that people write (`alpine` is `docker.io/library/alpine`) and follows the distribution project's grammar; it adds no
/// tag, see [`Reference::or_latest`]. `Display` prints the full form.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("invalid reference format")]
    Format,
    #[error("invalid reference format: repository name ({name}) must be lowercase")]
    UpperCase { name: String },
    #[error("repository name must not be more than 255 characters")]
    TooLong,
    #[error("invalid repository name ({name}), cannot specify 64-byte hexadecimal strings")]
    Identifier { name: String },
    #[error("invalid checksum digest format")]
    Digest,
}

const HUB: &str = "docker.io";
const HUB_LEGACY: &str = "index.docker.io";
const OFFICIAL: &str = "library/";

impl Reference {
    /// The registry, with its port if one was given; `docker.io` for Docker Hub.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry, such as `library/alpine`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Domain and repository, such as `docker.io/library/alpine`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The short form of the name, such as `alpine`, without tag and digest.
    pub fn familiar_name(&self) -> String {
        if self.domain != HUB {
            return self.name();
        }
        match self.path.strip_prefix(OFFICIAL) {
            Some(rest) if !rest.contains('/') => rest.to_owned(),
            // No such name exists on Docker Hub, and without the domain it would be one of another registry.
            _ if split_domain(&self.path) != (HUB.to_owned(), self.path.clone()) => self.name(),
            _ => self.path.clone(),
        }
    }

    /// The short form, such as `alpine:3.20`.
    pub fn familiar(&self) -> String {
        let mut text = self.familiar_name();
        self.write_suffix(&mut text).expect("writing to a string does not fail");
        text
    }

    /// With the tag `latest` where there is neither a tag nor a digest.
    pub fn or_latest(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some("latest".into());
        }
        self
    }

    /// The reference that is actually fetched: with a digest the tag is dropped, with nothing it becomes `latest`.
    pub fn pinned(mut self) -> Self {
        if self.digest.is_some() {
            self.tag = None;
        }
        self.or_latest()
    }

    /// Only the name.
    pub fn without_suffix(&self) -> Self {
        Self { tag: None, digest: None, ..self.clone() }
    }

    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }

    pub fn with_tag(&self, tag: &str) -> Result<Self, ReferenceError> {
        if !is_tag(tag) {
            return Err(ReferenceError::Format);
        }
        Ok(Self { tag: Some(tag.to_owned()), ..self.clone() })
    }

    /// What names the manifest within its repository: the digest if there is one, else the tag.
    pub fn identifier(&self) -> &str {
        self.digest.as_ref().map(Digest::as_str).or(self.tag.as_deref()).unwrap_or("latest")
    }

    fn write_suffix(&self, out: &mut impl fmt::Write) -> fmt::Result {
        if let Some(tag) = &self.tag {
            write!(out, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(out, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        self.write_suffix(f)
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(ReferenceError::Identifier { name: text.to_owned() });
        }
        let (domain, rest) = split_domain(text);
        let name = rest.split(':').next().unwrap_or_default();
        if name.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(ReferenceError::UpperCase { name: name.to_owned() });
        }
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest.to_owned(), Some(digest.parse().map_err(|_| ReferenceError::Digest)?)),
            None => (rest, None),
        };
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) if is_tag(tag) => (path, Some(tag.to_owned())),
            Some(_) => return Err(ReferenceError::Format),
            None => (rest.as_str(), None),
        };
        if !is_domain(&domain) || !path.split('/').all(is_component) {
            return Err(ReferenceError::Format);
        }
        if path.len() > 255 {
            return Err(ReferenceError::TooLong);
        }
        Ok(Self { domain, path: path.to_owned(), tag, digest })
    }
}

/// Finds out whether the first part names a registry: it must look like a host, be `localhost`, or have upper-case letters.
fn split_domain(text: &str) -> (String, String) {
    let (domain, path) = match text.split_once('/') {
        Some((HUB_LEGACY, rest)) => (HUB, rest),
        Some((first, rest)) if first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|b| b.is_ascii_uppercase()) => {
            (first, rest)
        }
        _ => (HUB, text),
    };
    let official = domain == HUB && !path.contains('/');
    (domain.to_owned(), format!("{}{path}", if official { OFFICIAL } else { "" }))
}

fn is_domain(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|t| t.split_once(']')) {
        Some((address, rest)) => {
            if address.is_empty() || !address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') {
                return false;
            }
            return rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port);
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let label =
        |l: &str| !l.is_empty() && !l.starts_with('-') && !l.ends_with('-') && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    host.split('.').all(label) && port.is_none_or(is_port)
}

fn is_port(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= 128 && text.bytes().next().is_some_and(word) && text.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

/// Lower-case alphanumerics, with one dot, one or two underscores or any number of dashes between them.
fn is_component(text: &str) -> bool {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends = bytes.first().is_some_and(alphanumeric) && bytes.last().is_some_and(alphanumeric);
    let separators = text.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()).filter(|s| !s.is_empty());
    ends && separators.into_iter().all(|s| matches!(s, "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn normalizes_and_shortens() {
        for (text, full, short) in [
            ("alpine", "docker.io/library/alpine", "alpine"),
            ("alpine:3.20", "docker.io/library/alpine:3.20", "alpine:3.20"),
            ("docker.io/alpine", "docker.io/library/alpine", "alpine"),
            ("index.docker.io/library/alpine", "docker.io/library/alpine", "alpine"),
            ("user/app:1", "docker.io/user/app:1", "user/app:1"),
            ("library/a/b", "docker.io/library/a/b", "library/a/b"),
            ("docker.io/ghcr.io/app:3", "docker.io/ghcr.io/app:3", "docker.io/ghcr.io/app:3"),
            ("localhost/app", "localhost/app", "localhost/app"),
            ("localhost:5000/app:tag", "localhost:5000/app:tag", "localhost:5000/app:tag"),
            ("127.0.0.1:5000/a/b", "127.0.0.1:5000/a/b", "127.0.0.1:5000/a/b"),
            ("[::1]:5000/app", "[::1]:5000/app", "[::1]:5000/app"),
            ("Registry/app", "Registry/app", "Registry/app"),
            ("ghcr.io/a_b/c__d/e---f.g:_x", "ghcr.io/a_b/c__d/e---f.g:_x", "ghcr.io/a_b/c__d/e---f.g:_x"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!((reference.to_string().as_str(), reference.familiar().as_str()), (full, short), "{text}");
        }
    }

    #[test]
    fn keeps_tag_and_digest() {
        let reference: Reference = format!("a.b/c:t@sha256:{HEX}").parse().unwrap();
        assert_eq!((reference.tag(), reference.digest().unwrap().hex()), (Some("t"), HEX));
        assert_eq!(reference.identifier(), format!("sha256:{HEX}"));
        assert_eq!(reference.pinned().to_string(), format!("a.b/c@sha256:{HEX}"));
        let bare: Reference = "a.b/c".parse().unwrap();
        assert_eq!(bare.pinned().to_string(), "a.b/c:latest");
    }

    #[test]
    fn refuses_what_the_grammar_refuses() {
        for bad in [
            "",
            "a:",
            "a@",
            "a@sha256:00",
            ":tag",
            "a//b",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "/a",
            "a/",
            "a b",
            "é",
            "a:b:c",
            "a.b/",
            "-x.y/a",
            "x.y:p/a",
            "[::1/a",
            "[]/a",
            "a.b/../c",
            "a:.b",
            "sha256:abc",
        ] {
            let parsed = bad.parse::<Reference>();
            // The one valid-looking case is a repository `sha256` with a tag.
            assert_eq!(parsed.is_ok(), bad == "sha256:abc", "{bad}: {parsed:?}");
        }
        let named = |text: &str| text.parse::<Reference>().unwrap_err().to_string();
        assert_eq!(named("X@y"), "invalid reference format: repository name (library/X@y) must be lowercase");
        assert!(matches!("Alpine".parse::<Reference>(), Err(ReferenceError::UpperCase { .. })));
        assert!(matches!(HEX.parse::<Reference>(), Err(ReferenceError::Identifier { .. })));
        assert!(matches!(format!("a/{}", "b".repeat(256)).parse::<Reference>(), Err(ReferenceError::TooLong)));
    }
}
