//! The cache config: which key leads where, and which layers a result consists of. Format and byte-exact form are BuildKit's
//! (`application/vnd.buildkit.cacheconfig.v0`).
use oci::{Digest, Timestamp, gojson};
use serde::{Deserialize, Deserializer, Serialize};

/// The document as it is stored. [`super::keys::Keys`] checks that it makes sense.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CacheConfig {
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub layers: Vec<LayerEntry>,
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub records: Vec<RecordEntry>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerEntry {
    pub blob: Digest,
    /// Position of the layer below, -1 for none. Left out where it is 0, which is a position like any other.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub parent: i64,
    /// Where there is no manifest that describes the blob.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<LayerFacts>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerFacts {
    #[serde(rename = "mediaType", default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    #[serde(rename = "diffID", default, skip_serializing_if = "String::is_empty")]
    pub diff_id: String,
    #[serde(default, skip_serializing_if = "is_no_size")]
    pub size: u64,
    #[serde(rename = "createdAt", default = "never")]
    pub created_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordEntry {
    #[serde(default, rename = "layers", skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub results: Vec<ResultEntry>,
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub chains: Vec<ChainEntry>,
    /// The op's digest and output in the form of a root key.
    pub digest: Digest,
    /// For each input, the ways in which it is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub inputs: Vec<Vec<InputEntry>>,
}

/// A result that is a layer with all its parents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResultEntry {
    #[serde(default)]
    pub layer: i64,
    #[serde(rename = "createdAt", default = "never")]
    pub created_at: Timestamp,
}

/// A result whose layers are listed, lowest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChainEntry {
    #[serde(default, deserialize_with = "nullable")]
    pub layers: Vec<i64>,
    #[serde(rename = "createdAt", default = "never")]
    pub created_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InputEntry {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub selector: String,
    #[serde(default)]
    pub link: i64,
}

impl CacheConfig {
    pub fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        gojson::to_vec(self)
    }
}

/// Go's zero time.
pub fn never() -> Timestamp {
    Timestamp::from_unix(-62_135_596_800, 0)
}

fn is_zero(n: &i64) -> bool {
    *n == 0
}

fn is_no_size(n: &u64) -> bool {
    *n == 0
}

fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_what_it_reads_byte_by_byte() {
        let blob = Digest::of("blob");
        let text = format!(
            concat!(
                r#"{{"layers":[{{"blob":"{0}","parent":-1}},{{"blob":"{0}"}},{{"blob":"{0}","parent":1,"annotations":{{"mediaType":"m","diffID":"{0}","size":3,"createdAt":"2024-01-02T03:04:05.6Z"}}}}],"#,
                r#""records":[{{"digest":"{0}"}},{{"layers":[{{"layer":0,"createdAt":"2024-01-02T03:04:05Z"}}],"digest":"{0}","inputs":[[{{"selector":"{0}","link":0}},{{"link":0}}]]}},"#,
                r#"{{"chains":[{{"layers":[0,1],"createdAt":"0001-01-01T00:00:00Z"}}],"digest":"{0}"}}]}}"#
            ),
            blob
        );
        let config = CacheConfig::parse(text.as_bytes()).unwrap();
        assert_eq!(config.layers[1].parent, 0);
        assert_eq!(config.records[2].chains[0].created_at, never());
        assert_eq!(String::from_utf8(config.to_bytes()).unwrap(), text);
    }

    #[test]
    fn nulls_and_absences_are_empty() {
        assert_eq!(CacheConfig::parse(b"{}").unwrap(), CacheConfig::default());
        assert_eq!(CacheConfig::parse(br#"{"layers":null,"records":null}"#).unwrap(), CacheConfig::default());
        assert!(CacheConfig::parse(br#"{"layers":[{"blob":"nonsense"}]}"#).is_err());
        assert_eq!(CacheConfig::default().to_bytes(), b"{}");
    }
}
