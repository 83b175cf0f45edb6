//! Which statements a build is to make about its result, as its options say.
use std::collections::BTreeMap;

use dockerfile::instruction::csv_fields;
use fault::{Context as _, Fault, Kind, Result};
use oci::Reference;

/// Names the scanner that is part of the daemon.
pub const BUILTIN_SBOM_GENERATOR: &str = "kiln";

/// What was asked for. `None` is not asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    pub sbom: Option<SbomRequest>,
    /// The parameters as they were given.
    pub provenance: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SbomRequest {
    pub generator: Generator,
    /// Passed to the generator.
    pub params: BTreeMap<String, String>,
}

/// Who makes bills of materials.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Generator {
    /// Whom the operator prefers; BuildKit's usual image where he does not care, or the daemon itself where that image cannot be had.
    #[default]
    Any,
    /// The daemon itself.
    Builtin,
    /// A full image reference.
    Image(String),
}

impl Generator {
    /// A wrong image is blamed on `word`.
    pub fn parse(text: &str, word: &str) -> Result<Self> {
        if text == BUILTIN_SBOM_GENERATOR {
            return Ok(Self::Builtin);
        }
        if text.is_empty() {
            return Err(invalid("sbom generator cannot be empty"));
        }
        let parsed: Result<Reference> = text.parse().map_err(|e: oci::ReferenceError| invalid(e.to_string()));
        Ok(Self::Image(parsed.with_context(|| format!("failed to parse sbom {word} {text}"))?.or_latest().to_string()))
    }
}

impl Wanted {
    /// Reads `attest:<kind>` and `build-arg:BUILDKIT_ATTEST_<KIND>`. A wrong image is blamed on a `word`: BuildKit's daemon says `generator`, its
    /// Dockerfile frontend `scanner`.
    pub fn parse(opts: &BTreeMap<String, String>, word: &str) -> Result<Self> {
        let mut asked = BTreeMap::new();
        for prefix in ["build-arg:BUILDKIT_ATTEST_", "attest:"] {
            asked.extend(opts.iter().filter_map(|(key, value)| Some((key.strip_prefix(prefix)?.to_lowercase(), value))));
        }
        let mut wanted = Self::default();
        for (kind, text) in asked {
            let fields = if text.is_empty() { Vec::new() } else { csv_fields(text).map_err(|e| invalid(e.to_string()))? };
            let pair = |field: String| match field.split_once('=') {
                Some((key, value)) => (key.to_owned(), value.to_owned()),
                None => (field, String::new()),
            };
            let mut params: BTreeMap<String, String> = fields.into_iter().map(pair).collect();
            match kind.as_str() {
                "sbom" => {
                    let generator = params.remove("generator").map(|text| Generator::parse(&text, word)).transpose()?;
                    wanted.sbom = Some(SbomRequest { generator: generator.unwrap_or_default(), params });
                }
                "provenance" => wanted.provenance = Some(params),
                other => return Err(invalid(format!("unknown attestation type {other:?}"))),
            }
        }
        Ok(wanted)
    }
}

fn invalid(message: impl Into<String>) -> Fault {
    // BuildKit gives these no code of their own.
    Fault::new(Kind::Unknown, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Wanted> {
        Wanted::parse(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(), "generator")
    }

    #[test]
    fn reads_both_spellings() {
        let wanted =
            parse(&[("attest:provenance", "mode=min,inline-only=true"), ("build-arg:BUILDKIT_ATTEST_SBOM", "generator=r.io/s,a")]).unwrap();
        let provenance = wanted.provenance.unwrap();
        assert_eq!((provenance["mode"].as_str(), provenance["inline-only"].as_str()), ("min", "true"));
        let sbom = wanted.sbom.unwrap();
        assert_eq!((sbom.generator, sbom.params["a"].as_str()), (Generator::Image("r.io/s:latest".into()), ""));
        let generator = |text: &str| parse(&[("attest:sbom", text)]).unwrap().sbom.unwrap().generator;
        assert_eq!((generator(""), generator("generator=kiln")), (Generator::Any, Generator::Builtin));
        assert_eq!(generator("generator=library/kiln"), Generator::Image("docker.io/library/kiln:latest".into()));
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        assert_eq!(parse(&[("attest:x", "")]).unwrap_err().to_string(), "unknown attestation type \"x\"");
        assert_eq!(parse(&[("attest:sbom", "generator=")]).unwrap_err().to_string(), "sbom generator cannot be empty");
        assert!(parse(&[("attest:sbom", "generator=A b")]).unwrap_err().to_string().starts_with("failed to parse sbom generator A b"));
    }
}
