use std::collections::BTreeMap;

use oci::{Digest, gojson};
use serde::Serialize;

use super::error::LocalError;

/// A local source op, read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Request {
    /// Of the directory at the client.
    pub name: String,
    /// The session that was named; empty for any.
    pub session: String,
    pub include_patterns: Option<Vec<String>>,
    pub exclude_patterns: Option<Vec<String>>,
    pub follow_paths: Option<Vec<String>>,
    pub shared_key_hint: String,
    /// Ask for every file, whatever its metadata says.
    pub everything: bool,
    pub metadata_only: bool,
    /// Files that a metadata transfer sends nevertheless.
    pub metadata_exceptions: Option<Vec<String>>,
}

/// The key text, in the field order of BuildKit; lists that were not given are `null`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct LocalKey<'a> {
    #[serde(rename = "SessionID")]
    session_id: &'a str,
    include_patterns: &'a Option<Vec<String>>,
    exclude_patterns: &'a Option<Vec<String>>,
    follow_paths: &'a Option<Vec<String>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    metadata_transfer: bool,
    #[serde(skip_serializing_if = "is_empty")]
    metadata_exceptions: &'a Option<Vec<String>>,
}

fn is_empty(list: &&Option<Vec<String>>) -> bool {
    list.as_ref().is_none_or(Vec::is_empty)
}

impl Request {
    pub fn new(name: &str, attrs: &BTreeMap<String, String>) -> Result<Self, LocalError> {
        let mut request = Self { name: name.to_owned(), ..Self::default() };
        for (key, value) in attrs {
            let list = |attr| match serde_json::from_str::<Option<Vec<String>>>(value) {
                Ok(list) => Ok(list),
                Err(_) => Err(LocalError::Attr { attr, value: value.clone() }),
            };
            match key.as_str() {
                "local.session" => match value.split_once(':') {
                    Some((prefix, id)) => {
                        request.name = format!("{prefix}-{name}");
                        request.session = id.to_owned();
                    }
                    None => request.session = value.clone(),
                },
                "local.includepattern" => request.include_patterns = list("local.includepattern")?,
                "local.excludepatterns" => request.exclude_patterns = list("local.excludepatterns")?,
                "local.followpaths" => request.follow_paths = list("local.followpaths")?,
                "local.sharedkeyhint" => request.shared_key_hint = value.clone(),
                "local.differ" => request.everything = value == "none",
                "local.metadatatransfer" => {
                    let attr = || LocalError::Attr { attr: "local.metadatatransfer", value: value.clone() };
                    request.metadata_only = boolean(value).ok_or_else(attr)?;
                }
                "local.metadatatransferexclude" => request.metadata_exceptions = list("local.metadatatransferexclude")?,
                _ => {}
            }
        }
        Ok(request)
    }

    /// The text of the cache key for the session with this id, and its digest.
    pub fn key_text(&self, session: &str) -> (String, Digest) {
        let digest = Digest::of(gojson::to_vec(&LocalKey {
            session_id: session,
            include_patterns: &self.include_patterns,
            exclude_patterns: &self.exclude_patterns,
            follow_paths: &self.follow_paths,
            metadata_transfer: self.metadata_only,
            metadata_exceptions: &self.metadata_exceptions,
        }));
        (format!("session:{}:{digest}", self.name), digest)
    }

    /// Under which the directory is kept from build to build, for a client with this key.
    pub fn shared_key(&self, client: &str) -> String {
        format!("{}:{}:{client}{}", self.name, self.shared_key_hint, if self.metadata_only { ":metadata" } else { "" })
    }
}

/// Go's `strconv.ParseBool`.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(pairs: &[(&str, &str)]) -> Result<Request, LocalError> {
        Request::new("context", &pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn keys_are_upstreams_json() {
        let (text, digest) =
            request(&[("local.session", "abc"), ("local.excludepatterns", r#"["*.o"]"#), ("local.unique", "x")]).unwrap().key_text("abc");
        let json = r#"{"SessionID":"abc","IncludePatterns":null,"ExcludePatterns":["*.o"],"FollowPaths":null}"#;
        assert_eq!((text, &digest), (format!("session:context:{}", Digest::of(json)), &Digest::of(json)));
        let (_, digest) =
            request(&[("local.metadatatransfer", "true"), ("local.metadatatransferexclude", r#"["a"]"#), ("local.followpaths", "[]")])
                .unwrap()
                .key_text("s");
        let json = r#"{"SessionID":"s","IncludePatterns":null,"ExcludePatterns":null,"FollowPaths":[],"MetadataTransfer":true,"MetadataExceptions":["a"]}"#;
        assert_eq!(digest, Digest::of(json));
    }

    #[test]
    fn reads_attributes() {
        let prefixed = request(&[("local.session", "p:abc"), ("local.sharedkeyhint", "h"), ("local.differ", "none")]).unwrap();
        assert_eq!((prefixed.name.as_str(), prefixed.session.as_str(), prefixed.everything), ("p-context", "abc", true));
        assert_eq!(prefixed.shared_key("me"), "p-context:h:me");
        assert!(request(&[("local.followpaths", "x")]).is_err());
        assert_eq!(
            request(&[("local.metadatatransfer", "yes")]).unwrap_err().to_string(),
            "invalid value for local.metadatatransfer: \"yes\""
        );
    }
}
