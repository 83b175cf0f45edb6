//! In-toto statements about a result.
use bytes::Bytes;
use fault::{Fault, Result};
use oci::{Digest, Platform, Reference, gojson};

use crate::api::{Statement, Subject};

/// The result under one of its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub name: String,
    pub digest: Digest,
}

/// A statement whose predicate is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub predicate_type: String,
    /// JSON.
    pub predicate: Bytes,
    pub path: String,
    pub inline_only: bool,
    pub subjects: Vec<Subject>,
    pub sbom_core: Option<String>,
}

impl Written {
    pub async fn of(statement: &Statement) -> Result<Self> {
        let Statement { predicate_type, path, inline_only, subjects, sbom_core, predicate } = statement.clone();
        Ok(Self { predicate_type, predicate: predicate.json().await?, path, inline_only, subjects, sbom_core })
    }

    /// The in-toto statement as compact JSON. The predicate keeps its numbers and the order of its keys.
    pub fn render(&self, result: &[Target]) -> Result<String> {
        let predicate = if self.predicate.is_empty() { b"null" } else { &self.predicate[..] };
        let predicate = std::str::from_utf8(predicate)
            .ok()
            .filter(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok())
            .ok_or_else(|| Fault::invalid(format!("failed to marshal attestation: predicate {} is not JSON", self.predicate_type)))?;
        Ok(format!(
            r#"{{"_type":"https://in-toto.io/Statement/v1","predicateType":{},"subject":[{}],"predicate":{}}}"#,
            gojson::to_string(&self.predicate_type),
            self.subjects(result).join(","),
            gojson::compact(predicate)
        ))
    }

    fn subjects(&self, result: &[Target]) -> Vec<String> {
        let own = [Subject::Own { name: String::new() }];
        let subjects = if self.subjects.is_empty() { &own[..] } else { &self.subjects };
        let mut all = Vec::new();
        for subject in subjects {
            match subject {
                Subject::Own { name } => {
                    for target in result {
                        let names = [target.name.as_str(), name].into_iter().enumerate().filter(|(n, name)| *n == 0 || !name.is_empty());
                        all.extend(names.map(|(_, name)| described(name, std::slice::from_ref(&target.digest))));
                    }
                }
                Subject::Raw { name, digests } => all.push(described(if name.is_empty() { "_" } else { name }, digests)),
            }
        }
        all
    }
}

fn described(name: &str, digests: &[Digest]) -> String {
    let set: std::collections::BTreeMap<&str, &str> = digests.iter().map(|d| (d.algorithm(), d.hex())).collect();
    format!(r#"{{"name":{},"digest":{}}}"#, gojson::to_string(name), gojson::to_string(&set))
}

/// One target for each of an image's comma-separated names.
pub fn image_targets(names: &str, platform: &Platform, manifest: &Digest) -> Result<Vec<Target>> {
    let names = names.split(',').filter(|n| !n.is_empty());
    names.map(|name| Ok(Target { name: purl("docker", name, Some(platform))?, digest: manifest.clone() })).collect()
}

/// The package URL of an image name. Follows the purl specification as BuildKit writes it.
pub fn purl(kind: &str, name: &str, platform: Option<&Platform>) -> Result<String> {
    let reference: Reference = name.parse().map_err(|e| Fault::invalid(format!("failed to parse ref {name:?}: {e}")))?;
    let reference = reference.or_latest();
    let familiar = reference.familiar_name();
    let path: Vec<String> = familiar.split('/').map(|part| escape(part, true)).collect();
    let mut out = format!("pkg:{kind}/{}", path.join("/"));
    if let Some(tag) = reference.tag() {
        out.push_str(&format!("@{}", escape(tag, false)));
    }
    let mut qualifiers = Vec::new();
    if let Some(digest) = reference.digest() {
        qualifiers.push(format!("digest={}", escape(digest.as_str(), false)));
    }
    if let Some(platform) = platform {
        let short = Platform { os_version: String::new(), ..platform.clone().normalized() };
        qualifiers.push(format!("platform={}", escape(&short.to_string(), false)));
    }
    if !qualifiers.is_empty() {
        out.push_str(&format!("?{}", qualifiers.join("&")));
    }
    Ok(out)
}

/// A value as it stands in the query of a package URL.
pub fn escape_query(value: &str) -> String {
    escape(value, false)
}

/// Percent-encodes as Go does for a query or for a segment of a path.
fn escape(text: &str, query: bool) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'-' | b'_' | b'.' | b'~' => out.push(byte.into()),
            b'$' | b'&' | b'+' | b'=' | b':' | b'@' if !query => out.push(byte.into()),
            _ if byte.is_ascii_alphanumeric() => out.push(byte.into()),
            b' ' if query => out.push('+'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_package_urls() {
        let platform: Platform = "linux/arm64/v8".parse().unwrap();
        let digest = Digest::of("x");
        for (name, want) in [
            ("alpine".to_owned(), "pkg:docker/alpine@latest?platform=linux%2Farm64".to_owned()),
            ("localhost:5000/a/b:v1+x".replace('+', "."), "pkg:docker/localhost%3A5000/a/b@v1.x?platform=linux%2Farm64".to_owned()),
            (format!("r.io/a@{digest}"), format!("pkg:docker/r.io/a?digest={digest}&platform=linux%2Farm64")),
        ] {
            assert_eq!(purl("docker", &name, Some(&platform)).unwrap(), want);
        }
        assert_eq!(purl("docker", "a b", None).unwrap_err().to_string(), "failed to parse ref \"a b\": invalid reference format");
    }

    #[test]
    fn statements_are_gos_json() {
        let statement = Written {
            predicate_type: "https://x/v1".into(),
            predicate: "{ \"b\": 1.0, \"a\": \"<\" }".into(),
            path: "x.json".into(),
            inline_only: false,
            subjects: Vec::new(),
            sbom_core: None,
        };
        let targets = image_targets("a,,b", &Platform::new("linux", "amd64", ""), &Digest::of("m")).unwrap();
        let hex = Digest::of("m").hex().to_owned();
        let want = format!(
            concat!(
                r#"{{"_type":"https://in-toto.io/Statement/v1","predicateType":"https://x/v1","#,
                r#""subject":[{{"name":"pkg:docker/a@latest?platform=linux%2Famd64","digest":{{"sha256":"{0}"}}}},"#,
                r#"{{"name":"pkg:docker/b@latest?platform=linux%2Famd64","digest":{{"sha256":"{0}"}}}}],"predicate":{{"b":1.0,"a":"\u003c"}}}}"#
            ),
            hex
        );
        assert_eq!(statement.render(&targets).unwrap(), want);
        let empty = Written { predicate: Bytes::new(), ..statement.clone() }.render(&[]).unwrap();
        assert!(empty.ends_with(r#""subject":[],"predicate":null}"#), "{empty}");
        let broken = Written { predicate: "{".into(), ..statement };
        assert!(broken.render(&[]).unwrap_err().to_string().contains("is not JSON"));
    }

    #[test]
    fn subjects_are_the_result_or_something_else() {
        let (own, other) = (Digest::of("m"), Digest::of("o"));
        let statement = |subjects| Written {
            predicate_type: "t".into(),
            predicate: Bytes::new(),
            path: "p".into(),
            inline_only: false,
            subjects,
            sbom_core: None,
        };
        let target = Target { name: "n".into(), digest: own.clone() };
        let named =
            statement(vec![Subject::Own { name: "also".into() }, Subject::Raw { name: String::new(), digests: vec![other.clone()] }]);
        let want = [("n", &own), ("also", &own), ("_", &other)].map(|(name, digest)| described(name, std::slice::from_ref(digest)));
        assert_eq!(named.subjects(std::slice::from_ref(&target)), want);
        assert_eq!(statement(Vec::new()).subjects(&[target]), want[..1]);
    }
}
