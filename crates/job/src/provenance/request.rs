//! What was asked for: the request as a predicate shows it.
use std::collections::BTreeMap;

use serde::Serialize;

use crate::provenance::sources::{DigestSet, Sources};

/// A frontend with what it was given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Parameters {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub frontend: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub args: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<Grant>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ssh: Vec<Grant>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub locals: Vec<LocalSource>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub inputs: BTreeMap<String, Asked>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<Box<Asked>>,
    #[serde(rename = "compatibilityVersion", skip_serializing_if = "is_zero")]
    pub compatibility: u32,
}

/// A secret or an ssh agent that steps could use.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Grant {
    pub id: String,
    #[serde(skip_serializing_if = "is_false")]
    pub optional: bool,
}

/// A directory of the client.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct LocalSource {
    pub name: String,
}

/// A request and where its main source came from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Asked {
    #[serde(rename = "configSource")]
    pub config: ConfigSource,
    pub request: Parameters,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ConfigSource {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uri: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub digest: DigestSet,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn is_false(flag: &bool) -> bool {
    !*flag
}

impl Asked {
    /// `args` are those of [`shown_args`]; what names the context and the file in it moves to `config`.
    pub fn new(frontend: &str, mut args: BTreeMap<String, String>, sources: &Sources) -> Self {
        let given = |args: &BTreeMap<String, String>, key: &str| args.get(key).filter(|v| !v.is_empty()).cloned();
        let key = match given(&args, "contextkey") {
            Some(key) => key,
            None if given(&args, "input:context").is_some() => "input:context".to_owned(),
            None => "context".to_owned(),
        };
        let mut config = ConfigSource::default();
        if let Some(context) = given(&args, &key) {
            match sources.find(&context) {
                Some(material) => (config.uri, config.digest) = (material.uri, material.digest),
                None => config.uri = context,
            }
            config.uri = redacted(&config.uri);
            args.remove(&key);
        }
        if let Some(path) = given(&args, "filename") {
            config.path = path;
            args.remove("filename");
        }
        Self { config, request: Parameters { frontend: frontend.to_owned(), args, ..Parameters::default() } }
    }
}

impl Parameters {
    /// Takes out what the least detailed mode keeps to itself. Whether anything of weight was lost by that.
    pub fn scrub(&mut self) -> bool {
        let before = self.args.len();
        self.args.retain(|key, _| !(key.starts_with("build-arg:") || key.starts_with("label:")));
        let mut lost = self.args.len() != before;
        self.secrets.clear();
        self.ssh.clear();
        for input in self.inputs.values_mut().chain(self.root.as_deref_mut()) {
            lost |= input.request.scrub();
        }
        lost
    }
}

/// Options of a frontend without what is only about this host, and without credentials in contexts.
pub fn shown_args(opts: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let context = opts.get("contextkey").filter(|v| !v.is_empty()).map_or("context", String::as_str);
    let hidden =
        |key: &str| matches!(key, "cgroup-parent" | "image-resolve-mode" | "platform" | "cache-imports") || key.starts_with("attest:");
    let shown = opts.iter().filter(|(key, _)| !hidden(key));
    shown
        .map(|(key, value)| {
            let is_context = key == context || key.starts_with("context:");
            (key.clone(), if is_context { redacted(value) } else { value.clone() })
        })
        .collect()
}

/// A URL with its user and password masked. What is no URL stays as it is.
pub fn redacted(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let mut letters = scheme.bytes();
    let valid = letters.next().is_some_and(|b| b.is_ascii_alphabetic())
        && letters.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let Some((user, host)) = authority.rsplit_once('@').filter(|_| valid) else { return text.to_owned() };
    let masked = match user.split_once(':') {
        Some(("", _)) => ":xxxxx",
        Some(_) => "xxxxx:xxxxx",
        None if user.is_empty() => "",
        None => "xxxxx",
    };
    format!("{scheme}://{masked}@{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn credentials_are_masked() {
        for (text, want) in [
            ("https://user:password@host.tld/path.git", "https://xxxxx:xxxxx@host.tld/path.git"),
            ("https://user@host.tld/path.git", "https://xxxxx@host.tld/path.git"),
            ("https://:password@host.tld/path.git", "https://:xxxxx@host.tld/path.git"),
            ("https://host.tld/a@b", "https://host.tld/a@b"),
            ("git@host.tld:path", "git@host.tld:path"),
            ("not a url", "not a url"),
        ] {
            assert_eq!(redacted(text), want);
        }
    }

    #[test]
    fn a_request_shows_its_context_apart() {
        let opts = map(&[
            ("context", "https://u:p@h/x.tar"),
            ("filename", "Dockerfile.x"),
            ("platform", "linux/amd64"),
            ("attest:provenance", ""),
            ("build-arg:A", "b"),
            ("context:base", "https://t@h/y"),
        ]);
        let asked = Asked::new("dockerfile.v0", shown_args(&opts), &Sources::default());
        assert_eq!(
            asked.config,
            ConfigSource { uri: "https://xxxxx:xxxxx@h/x.tar".into(), path: "Dockerfile.x".into(), ..Default::default() }
        );
        assert_eq!(asked.request.args, map(&[("build-arg:A", "b"), ("context:base", "https://xxxxx@h/y")]));
        let keyed = map(&[("contextkey", "c"), ("c", "https://h/z"), ("context", "other")]);
        let asked = Asked::new("dockerfile.v0", shown_args(&keyed), &Sources::default());
        assert_eq!((asked.config.uri.as_str(), asked.request.args), ("https://h/z", map(&[("contextkey", "c"), ("context", "other")])));
    }

    #[test]
    fn scrubbing_goes_down_to_inputs() {
        let grant = Grant { id: "s".into(), optional: false };
        let with = |args: &[(&str, &str)]| Parameters { args: map(args), secrets: vec![grant.clone()], ..Parameters::default() };
        let mut plain = with(&[("target", "x")]);
        assert!(!plain.scrub(), "secrets do not count");
        assert_eq!(plain, Parameters { args: map(&[("target", "x")]), ..Parameters::default() });
        let inner = Asked { request: with(&[("label:a", "b")]), ..Asked::default() };
        let mut outer = Parameters { inputs: BTreeMap::from([("base".to_owned(), inner)]), ..Parameters::default() };
        assert!(outer.scrub());
        assert_eq!(outer.inputs["base"].request, Parameters::default());
    }
}
