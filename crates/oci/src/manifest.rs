//! Descriptors, manifests and indexes, with their fields in the order in which Go's image-spec types write them.
use std::collections::BTreeMap;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Serialize};

use crate::nullable::{null_if_empty, nullable};
use crate::{Digest, Platform, gojson, media};

pub type Annotations = BTreeMap<String, String>;

/// A blob named by type, digest and size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    #[serde(rename = "mediaType", default, deserialize_with = "nullable")]
    pub media_type: String,
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub urls: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub annotations: Annotations,
    /// The blob itself, base64, where it is embedded.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub data: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(rename = "artifactType", default, skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub artifact_type: String,
}

impl Descriptor {
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.into(),
            digest,
            size,
            urls: Vec::new(),
            annotations: Annotations::new(),
            data: String::new(),
            platform: None,
            artifact_type: String::new(),
        }
    }

    /// The descriptor of `bytes`.
    pub fn of(media_type: impl Into<String>, bytes: &[u8]) -> Self {
        Self::new(media_type, Digest::of(bytes), bytes.len() as u64)
    }

    /// An attestation manifest inside an index is not an image.
    pub fn is_attestation(&self) -> bool {
        self.annotations.get(REFERENCE_TYPE).is_some_and(|t| t == ATTESTATION_MANIFEST)
    }
}

pub const REFERENCE_TYPE: &str = "vnd.docker.reference.type";
pub const REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";
pub const ATTESTATION_MANIFEST: &str = "attestation-manifest";

/// The manifest of one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    #[serde(rename = "schemaVersion", default)]
    pub schema_version: u32,
    #[serde(rename = "mediaType", default, skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub media_type: String,
    #[serde(rename = "artifactType", default, skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub artifact_type: String,
    pub config: Descriptor,
    /// No layers are written as `null`.
    #[serde(default, serialize_with = "null_if_empty", deserialize_with = "nullable")]
    pub layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub annotations: Annotations,
}

/// A list of manifests, one a platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    #[serde(rename = "schemaVersion", default)]
    pub schema_version: u32,
    #[serde(rename = "mediaType", default, skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub media_type: String,
    #[serde(rename = "artifactType", default, skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub artifact_type: String,
    /// No manifests are written as `null`.
    #[serde(default, serialize_with = "null_if_empty", deserialize_with = "nullable")]
    pub manifests: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub annotations: Annotations,
}

/// A document that a registry serves as a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "documents are few and short-lived")]
pub enum Document {
    Manifest(Manifest),
    Index(Index),
}

#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    #[error("{what} is not valid JSON of its type")]
    Json { what: &'static str, source: serde_json::Error },
    #[error("unsupported manifest media type {media_type:?}")]
    Unsupported { media_type: String },
    #[error("docker schema 1 manifests are not supported: push the image again with a current tool")]
    Schema1,
    #[error("manifest has the fields of both an image and an index")]
    Ambiguous,
}

impl Document {
    /// Parses `bytes` as what `media_type` says; where that is empty or generic, as what the document says of itself.
    pub fn parse(media_type: &str, bytes: &[u8]) -> Result<Self, DocumentError> {
        let shape: Shape = json("manifest", bytes)?;
        // A document that both walks of a verifier could read differently is refused (CVE-2021-41190).
        let (image, list) = (shape.config.is_some() || shape.layers.is_some(), shape.manifests.is_some());
        if image && list {
            return Err(DocumentError::Ambiguous);
        }
        let named = if media::is_index(media_type) || media::is_manifest(media_type) { media_type } else { shape.media_type.as_str() };
        match named {
            media::DOCKER_SCHEMA1 | media::DOCKER_SCHEMA1_SIGNED => Err(DocumentError::Schema1),
            _ if shape.fs_layers.is_some() => Err(DocumentError::Schema1),
            t if media::is_index(t) => json("index", bytes).map(Self::Index),
            t if media::is_manifest(t) => json("manifest", bytes).map(Self::Manifest),
            "" if list => json("index", bytes).map(Self::Index),
            "" if shape.config.is_some() => json("manifest", bytes).map(Self::Manifest),
            _ => Err(DocumentError::Unsupported { media_type: if named.is_empty() { media_type } else { named }.to_owned() }),
        }
    }

    /// The document's own media type or, where it names none, the OCI one of its kind.
    pub fn media_type(&self) -> &str {
        match self {
            Self::Manifest(m) if m.media_type.is_empty() => media::OCI_MANIFEST,
            Self::Manifest(m) => &m.media_type,
            Self::Index(i) if i.media_type.is_empty() => media::OCI_INDEX,
            Self::Index(i) => &i.media_type,
        }
    }
}

impl Manifest {
    /// The bytes BuildKit writes: indented by two spaces.
    pub fn to_bytes(&self) -> Vec<u8> {
        gojson::to_vec_indent(self)
    }
}

impl Index {
    /// The bytes BuildKit writes: indented by two spaces.
    pub fn to_bytes(&self) -> Vec<u8> {
        gojson::to_vec_indent(self)
    }

    /// The image manifests for `wanted`, best first; entries that name no platform come last, attestations never.
    pub fn matching(&self, wanted: &Platform) -> Vec<&Descriptor> {
        let mut ranked: Vec<(usize, std::cmp::Reverse<usize>, &Descriptor)> = self
            .manifests
            .iter()
            .filter(|d| !d.is_attestation())
            .filter_map(|d| match &d.platform {
                Some(p) => wanted.rank(p).map(|rank| (rank, std::cmp::Reverse(p.os_features.len()), d)),
                None => Some((usize::MAX, std::cmp::Reverse(0), d)),
            })
            .collect();
        ranked.sort_by_key(|(rank, features, _)| (*rank, *features));
        ranked.into_iter().map(|(_, _, d)| d).collect()
    }
}

/// Just enough of a manifest to tell its kind.
#[derive(Deserialize)]
struct Shape {
    #[serde(rename = "mediaType", default, deserialize_with = "nullable")]
    media_type: String,
    config: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(rename = "fsLayers")]
    fs_layers: Option<serde::de::IgnoredAny>,
}

fn json<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, DocumentError> {
    // A derived reader would take an array for a struct too.
    let object = if bytes.trim_ascii_start().starts_with(b"{") { Ok(()) } else { Err(serde_json::Error::custom("not a JSON object")) };
    object.and_then(|()| serde_json::from_slice(bytes)).map_err(|source| DocumentError::Json { what, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor() -> Descriptor {
        Descriptor::of(media::OCI_CONFIG, b"{}")
    }

    #[test]
    fn writes_fields_in_go_order() {
        let mut config = descriptor();
        config.platform = Some(Platform::new("linux", "arm", "v7"));
        config.annotations.insert("b".into(), "<2>".into());
        config.annotations.insert("a".into(), "1".into());
        let text = gojson::to_string(&config);
        let digest = Digest::of(b"{}");
        let want = format!(
            r#"{{"mediaType":"{}","digest":"{digest}","size":2,"annotations":{{"a":"1","b":"\u003c2\u003e"}},"platform":{{"architecture":"arm","os":"linux","variant":"v7"}}}}"#,
            media::OCI_CONFIG
        );
        assert_eq!(text, want);
        assert_eq!(serde_json::from_str::<Descriptor>(&text).unwrap(), config);
    }

    #[test]
    fn tells_documents_apart() {
        let manifest = Manifest {
            schema_version: 2,
            media_type: String::new(),
            artifact_type: String::new(),
            config: descriptor(),
            layers: vec![],
            subject: None,
            annotations: Annotations::new(),
        };
        let bytes = manifest.to_bytes();
        assert_eq!(Document::parse("", &bytes).unwrap(), Document::Manifest(manifest.clone()));
        assert_eq!(Document::parse(media::DOCKER_MANIFEST, &bytes).unwrap().media_type(), media::OCI_MANIFEST);
        assert!(matches!(Document::parse("", br#"{"config":{},"manifests":[]}"#), Err(DocumentError::Ambiguous)));
        assert!(matches!(Document::parse("", br#"{"fsLayers":[]}"#), Err(DocumentError::Schema1)));
        assert!(matches!(Document::parse("text/html", br#"{"x":1}"#), Err(DocumentError::Unsupported { .. })));
        assert!(matches!(Document::parse(media::OCI_MANIFEST, b"<html>"), Err(DocumentError::Json { .. })));
        let nulls = br#"{"schemaVersion":2,"manifests":null,"annotations":null}"#;
        assert!(matches!(Document::parse(media::OCI_INDEX, nulls), Ok(Document::Index(_))));
    }

    #[test]
    fn picks_the_best_platform() {
        let entry = |os: &str, arch: &str, variant: &str| Descriptor { platform: Some(Platform::new(os, arch, variant)), ..descriptor() };
        let mut index = Index {
            schema_version: 2,
            media_type: media::OCI_INDEX.into(),
            artifact_type: String::new(),
            manifests: vec![
                entry("linux", "arm", "v5"),
                entry("linux", "arm", "v6"),
                entry("windows", "amd64", ""),
                entry("linux", "amd64", ""),
            ],
            subject: None,
            annotations: Annotations::new(),
        };
        let pick =
            |index: &Index, p: &str| index.matching(&p.parse().unwrap()).first().and_then(|d| d.platform.clone()).map(|p| p.to_string());
        assert_eq!(pick(&index, "linux/arm/v7").as_deref(), Some("linux/arm/v6"));
        assert_eq!(pick(&index, "linux/arm64").as_deref(), Some("linux/arm/v6"));
        assert_eq!(pick(&index, "linux/amd64/v3").as_deref(), Some("linux/amd64"));
        assert_eq!(pick(&index, "linux/s390x"), None);
        index.manifests[3].annotations.insert(REFERENCE_TYPE.into(), ATTESTATION_MANIFEST.into());
        assert_eq!(pick(&index, "linux/amd64"), None);
    }
}
