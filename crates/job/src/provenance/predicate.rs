//! The predicates: SLSA provenance of version 1, and version 0.2 made from the same.
use std::collections::BTreeMap;

use fault::Result;
use oci::{Descriptor, Platform, Timestamp, gojson};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::provenance::capture::{Capture, Uncaptured};
use crate::provenance::machine::Sample;
use crate::provenance::request::{Asked, ConfigSource, Parameters, redacted};
use crate::provenance::sources::{DigestSet, Material};
use crate::provenance::steps::{SourceMap, Steps};

const BUILD_TYPE_V1: &str = "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md";
const BUILD_TYPE_V02: &str = "https://mobyproject.org/buildkit@v1";

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Version {
    #[default]
    V1,
    V02,
}

impl Version {
    pub fn predicate_type(self) -> &'static str {
        match self {
            Self::V1 => "https://slsa.dev/provenance/v1",
            Self::V02 => "https://slsa.dev/provenance/v0.2",
        }
    }
}

/// All that a predicate of either version says.
#[derive(Debug, Clone)]
pub struct Predicate {
    pub materials: Vec<Material>,
    pub config: ConfigSource,
    pub request: Parameters,
    pub steps: Option<Steps>,
    pub dockerfile_version: String,
    /// Of the operator, beside what we say of the builder.
    pub custom: Map<String, Value>,
    pub builder_id: String,
    pub invocation: String,
    pub started: Option<Timestamp>,
    pub finished: Option<Timestamp>,
    pub metadata: BuildkitMetadata,
    pub hermetic: bool,
    pub request_complete: bool,
    pub materials_complete: bool,
    pub reproducible: bool,
}

/// What only BuildKit's provenance has.
#[derive(Debug, Clone, Default, Serialize)]
pub struct BuildkitMetadata {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub vcs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceMap>,
    /// By step and output, the chains of layers that were its result.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub layers: BTreeMap<String, Vec<Vec<Descriptor>>>,
    /// Of the machine, while the build ran.
    #[serde(rename = "sysUsage", skip_serializing_if = "Vec::is_empty")]
    pub usage: Vec<Sample>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkMetadata>,
}

/// How steps reached the network, where that was through the proxy.
#[derive(Debug, Clone, Serialize)]
pub struct NetworkMetadata {
    mode: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy: Option<ProxyMetadata>,
}

#[derive(Debug, Clone, Serialize)]
struct ProxyMetadata {
    incomplete: Vec<Uncaptured>,
}

impl NetworkMetadata {
    fn of(capture: &Capture) -> Option<Self> {
        let proxy = (!capture.uncaptured.is_empty()).then(|| ProxyMetadata { incomplete: capture.uncaptured.clone() });
        capture.proxy.then_some(Self { mode: "proxy", proxy })
    }
}

impl Predicate {
    /// What a capture tells, before anything is left out or added.
    pub fn new(capture: &Capture) -> Result<Self> {
        let shown = Asked::new(&capture.request.frontend, capture.request.args.clone(), &capture.sources);
        let mut request = Parameters { args: shown.request.args, ..capture.request.clone() };
        let mut vcs = BTreeMap::new();
        request.args.retain(|key, value| {
            let Some(name) = key.strip_prefix("vcs:") else { return true };
            let value = if name == "source" { redacted(value) } else { value.clone() };
            if !value.is_empty() {
                vcs.insert(name.to_owned(), value);
            }
            false
        });
        request.locals = capture.sources.local.clone();
        let materials_complete = capture.has_all_materials();
        Ok(Self {
            materials: capture.sources.materials()?,
            config: shown.config,
            request_complete: !request.frontend.is_empty(),
            request,
            steps: None,
            dockerfile_version: String::new(),
            custom: Map::new(),
            builder_id: String::new(),
            invocation: String::new(),
            started: None,
            finished: None,
            metadata: BuildkitMetadata { vcs, network: NetworkMetadata::of(capture), ..BuildkitMetadata::default() },
            hermetic: materials_complete && !capture.network_access,
            materials_complete,
            reproducible: false,
        })
    }

    /// Indented JSON.
    pub fn to_json(&self, version: Version) -> Vec<u8> {
        match version {
            Version::V1 => gojson::to_vec_indent(&self.v1()),
            Version::V02 => gojson::to_vec_indent(&self.v02()),
        }
    }

    fn v1(&self) -> V1<'_> {
        V1 {
            definition: Definition {
                build_type: BUILD_TYPE_V1,
                materials: &self.materials,
                external: External { config: &self.config, request: &self.request },
                internal: self.environment("builderPlatform", self.steps.as_ref()),
            },
            run: Run {
                builder: Builder { id: &self.builder_id },
                metadata: MetadataV1 {
                    invocation: &self.invocation,
                    started: self.started,
                    finished: self.finished,
                    buildkit: &self.metadata,
                    hermetic: self.hermetic,
                    completeness: CompletenessV1 { request: self.request_complete, materials: self.materials_complete },
                    reproducible: self.reproducible,
                },
            },
        }
    }

    fn v02(&self) -> V02<'_> {
        V02 {
            builder: Builder { id: &self.builder_id },
            build_type: BUILD_TYPE_V02,
            materials: &self.materials,
            invocation: Invocation {
                config: ConfigV02 { uri: &self.config.uri, digest: &self.config.digest, entry_point: &self.config.path },
                parameters: &self.request,
                environment: self.environment("platform", None),
            },
            steps: self.steps.as_ref(),
            metadata: MetadataV02 {
                invocation: &self.invocation,
                started: self.started,
                finished: self.finished,
                completeness: CompletenessV02 { parameters: self.request_complete, environment: true, materials: self.materials_complete },
                reproducible: self.reproducible,
                buildkit: &self.metadata,
                hermetic: self.hermetic,
            },
        }
    }

    /// The builder's own circumstances. The operator's words stand beside ours and win; keys are sorted throughout, as BuildKit has it.
    fn environment(&self, platform_key: &str, steps: Option<&Steps>) -> Value {
        let mut all = Map::new();
        if let Some(steps) = steps {
            all.insert("buildConfig".into(), serde_json::to_value(steps).expect("steps are JSON"));
        }
        all.insert(platform_key.into(), Platform::host().normalized().to_string().into());
        if !self.dockerfile_version.is_empty() {
            all.insert("dockerfileVersion".into(), self.dockerfile_version.clone().into());
        }
        all.extend(self.custom.clone());
        gojson::sorted(Value::Object(all))
    }
}

#[derive(Serialize)]
struct V1<'a> {
    #[serde(rename = "buildDefinition")]
    definition: Definition<'a>,
    #[serde(rename = "runDetails")]
    run: Run<'a>,
}

#[derive(Serialize)]
struct Definition<'a> {
    #[serde(rename = "buildType")]
    build_type: &'static str,
    #[serde(rename = "resolvedDependencies", skip_serializing_if = "<[_]>::is_empty")]
    materials: &'a [Material],
    #[serde(rename = "externalParameters")]
    external: External<'a>,
    #[serde(rename = "internalParameters")]
    internal: Value,
}

#[derive(Serialize)]
struct External<'a> {
    #[serde(rename = "configSource")]
    config: &'a ConfigSource,
    request: &'a Parameters,
}

#[derive(Serialize)]
struct Run<'a> {
    builder: Builder<'a>,
    metadata: MetadataV1<'a>,
}

#[derive(Serialize)]
struct Builder<'a> {
    id: &'a str,
}

#[derive(Serialize)]
struct MetadataV1<'a> {
    #[serde(rename = "invocationId", skip_serializing_if = "str::is_empty")]
    invocation: &'a str,
    #[serde(rename = "startedOn", skip_serializing_if = "Option::is_none")]
    started: Option<Timestamp>,
    #[serde(rename = "finishedOn", skip_serializing_if = "Option::is_none")]
    finished: Option<Timestamp>,
    #[serde(rename = "buildkit_metadata")]
    buildkit: &'a BuildkitMetadata,
    #[serde(rename = "buildkit_hermetic", skip_serializing_if = "std::ops::Not::not")]
    hermetic: bool,
    #[serde(rename = "buildkit_completeness")]
    completeness: CompletenessV1,
    #[serde(rename = "buildkit_reproducible", skip_serializing_if = "std::ops::Not::not")]
    reproducible: bool,
}

#[derive(Serialize)]
struct CompletenessV1 {
    request: bool,
    #[serde(rename = "resolvedDependencies")]
    materials: bool,
}

#[derive(Serialize)]
struct V02<'a> {
    builder: Builder<'a>,
    #[serde(rename = "buildType")]
    build_type: &'static str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    materials: &'a [Material],
    invocation: Invocation<'a>,
    #[serde(rename = "buildConfig", skip_serializing_if = "Option::is_none")]
    steps: Option<&'a Steps>,
    metadata: MetadataV02<'a>,
}

#[derive(Serialize)]
struct Invocation<'a> {
    #[serde(rename = "configSource")]
    config: ConfigV02<'a>,
    parameters: &'a Parameters,
    environment: Value,
}

#[derive(Serialize)]
struct ConfigV02<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    uri: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    digest: &'a DigestSet,
    #[serde(rename = "entryPoint", skip_serializing_if = "str::is_empty")]
    entry_point: &'a str,
}

#[derive(Serialize)]
struct MetadataV02<'a> {
    #[serde(rename = "buildInvocationID", skip_serializing_if = "str::is_empty")]
    invocation: &'a str,
    #[serde(rename = "buildStartedOn", skip_serializing_if = "Option::is_none")]
    started: Option<Timestamp>,
    #[serde(rename = "buildFinishedOn", skip_serializing_if = "Option::is_none")]
    finished: Option<Timestamp>,
    completeness: CompletenessV02,
    reproducible: bool,
    #[serde(rename = "https://mobyproject.org/buildkit@v1#metadata")]
    buildkit: &'a BuildkitMetadata,
    #[serde(rename = "https://mobyproject.org/buildkit@v1#hermetic", skip_serializing_if = "std::ops::Not::not")]
    hermetic: bool,
}

#[derive(Serialize)]
struct CompletenessV02 {
    parameters: bool,
    environment: bool,
    materials: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provenance::sources::HttpSource;
    use oci::Digest;

    fn predicate() -> Predicate {
        let mut capture = Capture::default();
        capture.request.frontend = "dockerfile.v0".into();
        for (key, value) in [("context", "https://h/x"), ("vcs:source", "https://u:p@h/r"), ("vcs:revision", ""), ("target", "<t>")] {
            capture.request.args.insert(key.into(), value.into());
        }
        capture.sources.add_http(HttpSource { url: "https://h/x".into(), digest: Some(Digest::of("x")) });
        let mut predicate = Predicate::new(&capture).unwrap();
        predicate.invocation = "id".into();
        predicate.started = Some(Timestamp::from_unix(1, 5_000_000));
        predicate.custom.insert("a".into(), 1.into());
        predicate
    }

    #[test]
    fn version_1_is_byte_for_byte_known() {
        let (hex, platform) = (Digest::of("x").hex().to_owned(), Platform::host().normalized().to_string());
        let want = serde_json::json!({
            "buildDefinition": {
                "buildType": BUILD_TYPE_V1,
                "resolvedDependencies": [{"uri": "https://h/x", "digest": {"sha256": hex}}],
                "externalParameters": {
                    "configSource": {"uri": "https://h/x", "digest": {"sha256": hex}},
                    "request": {"frontend": "dockerfile.v0", "args": {"target": "<t>"}}
                },
                "internalParameters": {"a": 1, "builderPlatform": platform}
            },
            "runDetails": {
                "builder": {"id": ""},
                "metadata": {
                    "invocationId": "id",
                    "startedOn": "1970-01-01T00:00:01.005Z",
                    "buildkit_metadata": {"vcs": {"source": "https://xxxxx:xxxxx@h/r"}},
                    "buildkit_hermetic": true,
                    "buildkit_completeness": {"request": true, "resolvedDependencies": true}
                }
            }
        });
        assert_eq!(String::from_utf8(predicate().to_json(Version::V1)), String::from_utf8(gojson::to_vec_indent(&want)));
    }

    #[test]
    fn version_0_2_says_the_same_in_its_own_words() {
        let json: Value = serde_json::from_slice(&predicate().to_json(Version::V02)).unwrap();
        assert_eq!(json["buildType"], BUILD_TYPE_V02);
        assert_eq!(json["invocation"]["configSource"]["uri"], "https://h/x");
        assert_eq!(json["invocation"]["parameters"]["args"]["target"], "<t>");
        assert_eq!(json["invocation"]["environment"]["a"], 1);
        assert_eq!(json["metadata"]["completeness"], serde_json::json!({"parameters": true, "environment": true, "materials": true}));
        assert_eq!(json["metadata"]["reproducible"], false);
        assert_eq!(json["metadata"]["https://mobyproject.org/buildkit@v1#hermetic"], true);
        assert_eq!(json["metadata"]["https://mobyproject.org/buildkit@v1#metadata"]["vcs"]["source"], "https://xxxxx:xxxxx@h/r");
    }
}
