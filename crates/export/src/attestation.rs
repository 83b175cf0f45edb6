//! In-toto statements about a result.
use fault::{Fault, Result};
use oci::{Digest, Platform, Reference, gojson};

use crate::api::Statement;

/// What a statement is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    pub name: String,
    pub digest: Digest,
}

/// The in-toto statement as compact JSON. The predicate keeps its numbers and the order of its keys.
pub fn render(statement: &Statement, subjects: &[Subject]) -> Result<String> {
    let predicate = std::str::from_utf8(&statement.predicate)
        .ok()
        .filter(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok())
        .ok_or_else(|| Fault::invalid(format!("failed to marshal attestation: predicate {} is not JSON", statement.predicate_type)))?;
    let subject = |s: &Subject| {
        let name = gojson::to_string(&s.name);
        format!(r#"{{"name":{name},"digest":{{{}:{}}}}}"#, gojson::to_string(s.digest.algorithm()), gojson::to_string(s.digest.hex()))
    };
    let subjects: Vec<String> = subjects.iter().map(subject).collect();
    Ok(format!(
        r#"{{"_type":"https://in-toto.io/Statement/v1","predicateType":{},"subject":[{}],"predicate":{}}}"#,
        gojson::to_string(&statement.predicate_type),
        subjects.join(","),
        gojson::compact(predicate)
    ))
}

/// One subject for each of an image's comma-separated names.
pub fn image_subjects(names: &str, platform: &Platform, manifest: &Digest) -> Result<Vec<Subject>> {
    let names = names.split(',').filter(|n| !n.is_empty());
    names.map(|name| Ok(Subject { name: purl("docker", name, Some(platform))?, digest: manifest.clone() })).collect()
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
        let statement = Statement {
            predicate_type: "https://x/v1".into(),
            predicate: "{ \"b\": 1.0, \"a\": \"<\" }".into(),
            path: "x.json".into(),
            inline_only: false,
        };
        let subjects = image_subjects("a,,b", &Platform::new("linux", "amd64", ""), &Digest::of("m")).unwrap();
        let hex = Digest::of("m").hex().to_owned();
        let want = format!(
            concat!(
                r#"{{"_type":"https://in-toto.io/Statement/v1","predicateType":"https://x/v1","#,
                r#""subject":[{{"name":"pkg:docker/a@latest?platform=linux%2Famd64","digest":{{"sha256":"{0}"}}}},"#,
                r#"{{"name":"pkg:docker/b@latest?platform=linux%2Famd64","digest":{{"sha256":"{0}"}}}}],"predicate":{{"b":1.0,"a":"\u003c"}}}}"#
            ),
            hex
        );
        assert_eq!(render(&statement, &subjects).unwrap(), want);
        let broken = Statement { predicate: "{".into(), ..statement };
        assert!(render(&broken, &[]).unwrap_err().to_string().contains("is not JSON"));
    }
}
