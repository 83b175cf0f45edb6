//! Image configs, with the fields that BuildKit's Dockerfile frontend knows, in the order in which it writes them.
use std::collections::{BTreeMap, BTreeSet};

use serde::de::{Error as _, IgnoredAny};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::nullable::{null_if_empty, nullable};
use crate::{Digest, Platform, Timestamp, gojson};

/// The config of an image.
///
/// Fields unknown here are dropped when a config is read, as BuildKit's frontend drops those of a base image. Whoever must keep them (the exporter, which
/// patches a config that a frontend wrote) works on the JSON object instead.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub author: String,
    #[serde(default, deserialize_with = "nullable")]
    pub architecture: String,
    #[serde(default, deserialize_with = "nullable")]
    pub os: String,
    #[serde(rename = "os.version", default, skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub os_version: String,
    #[serde(rename = "os.features", default, skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub os_features: Vec<String>,
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub variant: String,
    #[serde(default, deserialize_with = "nullable")]
    pub rootfs: RootFs,
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub history: Vec<History>,
    #[serde(default, deserialize_with = "nullable")]
    pub config: ContainerConfig,
}

/// How a container of the image starts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerConfig {
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub user: String,
    #[serde(skip_serializing_if = "BTreeSet::is_empty", serialize_with = "as_map", deserialize_with = "keys")]
    pub exposed_ports: BTreeSet<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub env: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub entrypoint: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub cmd: Vec<String>,
    #[serde(skip_serializing_if = "BTreeSet::is_empty", serialize_with = "as_map", deserialize_with = "keys")]
    pub volumes: BTreeSet<String>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub working_dir: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub stop_signal: String,
    #[serde(skip_serializing_if = "is_default", deserialize_with = "nullable")]
    pub args_escaped: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub on_build: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub shell: Vec<String>,
}

/// Docker's health check. Times are nanoseconds; zero means "inherit".
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub test: Vec<String>,
    #[serde(skip_serializing_if = "is_default", deserialize_with = "nullable")]
    pub interval: i64,
    #[serde(skip_serializing_if = "is_default", deserialize_with = "nullable")]
    pub timeout: i64,
    #[serde(skip_serializing_if = "is_default", deserialize_with = "nullable")]
    pub start_period: i64,
    #[serde(skip_serializing_if = "is_default", deserialize_with = "nullable")]
    pub start_interval: i64,
    #[serde(skip_serializing_if = "is_default", deserialize_with = "nullable")]
    pub retries: i64,
}

/// The uncompressed layers, lowest first. No layers are written as `null`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    #[serde(rename = "type", default, deserialize_with = "nullable")]
    pub kind: String,
    #[serde(default, serialize_with = "null_if_empty", deserialize_with = "nullable")]
    pub diff_ids: Vec<Digest>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub created_by: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub author: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub comment: String,
    #[serde(skip_serializing_if = "is_default", deserialize_with = "nullable")]
    pub empty_layer: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("invalid image config")]
pub struct ImageConfigError(#[from] serde_json::Error);

impl ImageConfig {
    pub fn parse(bytes: &[u8]) -> Result<Self, ImageConfigError> {
        // A derived reader would take an array for a struct too.
        if !bytes.trim_ascii_start().starts_with(b"{") {
            return Err(serde_json::Error::custom("not a JSON object").into());
        }
        Ok(serde_json::from_slice(bytes)?)
    }

    /// Compact JSON, byte for byte as Go writes it.
    pub fn to_bytes(&self) -> Vec<u8> {
        gojson::to_vec(self)
    }

    pub fn platform(&self) -> Platform {
        Platform {
            architecture: self.architecture.clone(),
            os: self.os.clone(),
            os_version: self.os_version.clone(),
            os_features: self.os_features.clone(),
            variant: self.variant.clone(),
        }
    }

    pub fn set_platform(&mut self, platform: &Platform) {
        let Platform { architecture, os, os_version, os_features, variant } = platform.clone();
        (self.architecture, self.os, self.os_version, self.os_features, self.variant) =
            (architecture, os, os_version, os_features, variant);
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Go's `map[string]struct{}`.
fn as_map<S: Serializer>(keys: &BTreeSet<String>, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(keys.len()))?;
    for key in keys {
        map.serialize_entry(key, &serde_json::Map::new())?;
    }
    map.end()
}

fn keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<String>, D::Error> {
    let map: BTreeMap<String, IgnoredAny> = nullable(deserializer)?;
    Ok(map.into_keys().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_what_go_writes() {
        let digest = Digest::of(b"");
        let config = ImageConfig {
            created: Some("2024-01-02T03:04:05.6Z".parse().unwrap()),
            architecture: "arm64".into(),
            os: "linux".into(),
            rootfs: RootFs { kind: "layers".into(), diff_ids: vec![digest.clone()] },
            history: vec![History { created_by: "RUN a && b".into(), empty_layer: true, ..History::default() }],
            config: ContainerConfig {
                exposed_ports: ["80/tcp".to_owned()].into(),
                env: vec!["PATH=/bin".into()],
                args_escaped: true,
                healthcheck: Some(Healthcheck { test: vec!["NONE".into()], retries: 3, ..Healthcheck::default() }),
                on_build: vec!["RUN x".into()],
                ..ContainerConfig::default()
            },
            ..ImageConfig::default()
        };
        let want = format!(
            concat!(
                r#"{{"created":"2024-01-02T03:04:05.6Z","architecture":"arm64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{}"]}},"#,
                r#""history":[{{"created_by":"RUN a \u0026\u0026 b","empty_layer":true}}],"config":{{"ExposedPorts":{{"80/tcp":{{}}}},"Env":["PATH=/bin"],"#,
                r#""ArgsEscaped":true,"Healthcheck":{{"Test":["NONE"],"Retries":3}},"OnBuild":["RUN x"]}}}}"#
            ),
            digest
        );
        assert_eq!(String::from_utf8(config.to_bytes()).unwrap(), want);
        assert_eq!(ImageConfig::parse(want.as_bytes()).unwrap(), config);
    }

    #[test]
    fn reads_docker_configs_with_nulls_and_unknown_fields() {
        let text = br#"{"architecture":"amd64","os":"linux","container":"abc","config":{"Hostname":"h","Cmd":null,"Volumes":{"/v":{}},"ExposedPorts":null,
            "Healthcheck":null,"Labels":null},"rootfs":{"type":"layers","diff_ids":null},"history":null}"#;
        let config = ImageConfig::parse(text).unwrap();
        assert_eq!(config.config.volumes, BTreeSet::from(["/v".to_owned()]));
        let want = r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":null},"config":{"Volumes":{"/v":{}}}}"#;
        assert_eq!(String::from_utf8(config.to_bytes()).unwrap(), want);
        assert!(ImageConfig::parse(b"[]").is_err());
    }
}
