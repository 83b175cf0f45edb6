//! How a build's provenance is to look.
use std::collections::BTreeMap;

use fault::{Fault, Kind, Result};
use frontend::attestations::Wanted;

use crate::provenance::predicate::Version;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    pub version: Version,
    /// Leaves out what may be private: arguments, secrets' names, steps and files.
    pub minimal: bool,
    pub builder_id: String,
    pub filename: String,
    pub reproducible: bool,
    /// Only where the exporter keeps such statements.
    pub inline_only: bool,
    /// Fails the build if something went in that has no digest.
    pub complete_materials: bool,
    /// Tells how busy the machine was, and what each step used of it.
    pub usage: bool,
}

impl Options {
    pub fn parse(params: &BTreeMap<String, String>) -> Result<Self> {
        let get = |key: &str| params.get(key).map(String::as_str);
        let version = match get("version") {
            None | Some("v1") => Version::V1,
            Some("v0.2") => Version::V02,
            Some("") => return Err(invalid("provenance SLSA version cannot be empty")),
            Some(other) => return Err(invalid(format!("invalid provenance SLSA version: {other}"))),
        };
        let minimal = match get("mode") {
            None | Some("max" | "full") => false,
            Some("min") => true,
            Some(other) => return Err(invalid(format!("invalid mode {other:?}"))),
        };
        let flag = |key: &str, name: &str| match get(key) {
            None => Ok(false),
            Some(text) => parse_bool(text).ok_or_else(|| {
                invalid(format!("failed to parse {name} flag {text:?}: strconv.ParseBool: parsing {text:?}: invalid syntax"))
            }),
        };
        Ok(Self {
            version,
            minimal,
            builder_id: get("builder-id").unwrap_or_default().to_owned(),
            filename: get("filename").unwrap_or("provenance.json").to_owned(),
            reproducible: flag("reproducible", "reproducible")?,
            inline_only: get("inline-only").and_then(parse_bool).unwrap_or(false),
            complete_materials: flag("complete-materials", "complete-materials")?,
            usage: get("capture-usage").and_then(parse_bool).unwrap_or(false),
        })
    }

    /// For the record of a build with these attributes: everything, under the builder's name that the client gave for its own statement.
    pub fn of_history(attrs: &BTreeMap<String, String>) -> Self {
        let asked = Wanted::parse(attrs, "generator").ok().and_then(|wanted| wanted.provenance);
        let builder_id = asked.and_then(|params| params.get("builder-id").cloned()).unwrap_or_default();
        Self {
            version: Version::V1,
            minimal: false,
            builder_id,
            filename: String::new(),
            reproducible: false,
            inline_only: false,
            complete_materials: false,
            usage: true,
        }
    }
}

/// As Go's ParseBool.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

fn invalid(message: impl Into<String>) -> Fault {
    // BuildKit gives these no code of their own.
    Fault::new(Kind::Unknown, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Options> {
        Options::parse(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn everything_has_a_default() {
        let options = parse(&[]).unwrap();
        assert_eq!((options.version, options.minimal, options.filename.as_str()), (Version::V1, false, "provenance.json"));
        let given = parse(&[("mode", "min"), ("version", "v0.2"), ("inline-only", "true"), ("reproducible", "1")]).unwrap();
        assert_eq!((given.version, given.minimal, given.inline_only, given.reproducible), (Version::V02, true, true, true));
        assert!(parse(&[("capture-usage", "1")]).unwrap().usage && !parse(&[("capture-usage", "x")]).unwrap().usage);
        assert!(!parse(&[("inline-only", "maybe")]).unwrap().inline_only, "what it cannot read BuildKit ignores here");
    }

    #[test]
    fn the_history_names_the_builder_as_the_client_does() {
        let attrs = |text: &str| BTreeMap::from([("attest:provenance".to_owned(), text.to_owned())]);
        let options = Options::of_history(&attrs("mode=min,builder-id=https://b/1"));
        assert_eq!((options.builder_id.as_str(), options.minimal), ("https://b/1", false));
        assert_eq!(Options::of_history(&attrs("\"")).builder_id, "");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (key, value, want) in [
            ("mode", "x", "invalid mode \"x\""),
            ("version", "v3", "invalid provenance SLSA version: v3"),
            ("reproducible", "x", "failed to parse reproducible flag \"x\": strconv.ParseBool: parsing \"x\": invalid syntax"),
        ] {
            assert_eq!(parse(&[(key, value)]).unwrap_err().to_string(), want);
        }
    }
}
