//! Exporter attributes, read once into typed options.
use std::collections::BTreeMap;

use bytes::Bytes;
use fault::{Fault, Result};

/// Attributes not yet taken.
pub struct Attrs(BTreeMap<String, String>);

impl Attrs {
    pub fn new(attrs: &BTreeMap<String, String>) -> Self {
        Self(attrs.clone())
    }

    pub fn text(&mut self, key: &str) -> Option<String> {
        self.0.remove(key)
    }

    /// As Go's ParseBool reads it.
    pub fn flag(&mut self, key: &str) -> Result<Option<bool>> {
        self.0.remove(key).map(|value| parse_bool(&value, &format!("non-bool value specified for {key}"))).transpose()
    }

    /// As [`Attrs::flag`], and a key without a value is `true`.
    pub fn switch(&mut self, key: &str) -> Result<Option<bool>> {
        if self.0.get(key).is_some_and(String::is_empty) {
            self.0.remove(key);
            return Ok(Some(true));
        }
        self.flag(key)
    }

    /// Seconds since 1970; an empty value says that there is none.
    pub fn epoch(&mut self) -> Result<Epoch> {
        match self.0.remove("source-date-epoch") {
            None => Ok(Epoch::Inherit),
            Some(value) if value.is_empty() => Ok(Epoch::Off),
            // BuildKit gives the reason twice.
            Some(value) => Ok(Epoch::At(parse_int(&value, "invalid source-date-epoch").map_err(|fault| twice(&fault))?)),
        }
    }

    /// Takes every pair whose key `read` makes something of.
    pub fn take<T>(&mut self, read: impl Fn(&str) -> Result<Option<T>>) -> Result<Vec<(T, String)>> {
        let mut taken = Vec::new();
        for (key, value) in std::mem::take(&mut self.0) {
            match read(&key)? {
                Some(meaning) => taken.push((meaning, value)),
                None => {
                    self.0.insert(key, value);
                }
            }
        }
        Ok(taken)
    }

    /// What is left; for image exporters it is metadata of the result.
    pub fn rest(self) -> BTreeMap<String, Bytes> {
        self.0.into_iter().map(|(key, value)| (key, Bytes::from(value))).collect()
    }
}

/// Where times of files and configs are clamped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Epoch {
    /// As the result's metadata says, if it does.
    #[default]
    Inherit,
    Off,
    /// Seconds since 1970.
    At(i64),
}

impl Epoch {
    /// With what the metadata says of the whole result.
    pub fn or_metadata(self, metadata: &BTreeMap<String, Bytes>) -> Result<Self> {
        match self {
            Self::Inherit => Ok(from_metadata(metadata.get(METADATA_KEY))?.map_or(Self::Inherit, Self::At)),
            decided => Ok(decided),
        }
    }

    /// The seconds that hold for one platform's result. What the metadata says of the whole result goes before what it says of a platform.
    pub fn resolve(self, metadata: &BTreeMap<String, Bytes>, platform: &str) -> Result<Option<i64>> {
        match self.or_metadata(metadata)? {
            Self::Off => Ok(None),
            Self::At(seconds) => Ok(Some(seconds)),
            Self::Inherit => from_metadata(metadata.get(&format!("{METADATA_KEY}/{platform}"))),
        }
    }
}

const METADATA_KEY: &str = "source.date.epoch";

fn from_metadata(value: Option<&Bytes>) -> Result<Option<i64>> {
    let Some(value) = value.filter(|v| !v.is_empty()) else { return Ok(None) };
    let text = String::from_utf8_lossy(value);
    parse_int(&text, &format!("invalid SOURCE_DATE_EPOCH from frontend: {text:?}: invalid ")).map(Some)
}

/// A metadata value for one platform: under `<key>/<platform id>`, or else under the bare key.
pub fn lookup<'a>(metadata: &'a BTreeMap<String, Bytes>, key: &str, platform: &str) -> Option<&'a Bytes> {
    metadata.get(&format!("{key}/{platform}")).or_else(|| metadata.get(key))
}

fn twice(fault: &Fault) -> Fault {
    let text = fault.to_string();
    let reason = text.split_once(": ").map_or("", |(_, reason)| reason);
    Fault::invalid(format!("{text}: {reason}"))
}

/// As Go's ParseBool; a failure reads `<what>: <Go's words>`.
pub fn parse_bool(value: &str, what: &str) -> Result<bool> {
    match value {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(Fault::invalid(format!("{what}: strconv.ParseBool: parsing {value:?}: invalid syntax"))),
    }
}

/// As Go's ParseInt; a failure reads `<what>: <Go's words>`.
pub fn parse_int(value: &str, what: &str) -> Result<i64> {
    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
    value.parse().map_err(|error: std::num::ParseIntError| {
        let why = if matches!(error.kind(), PosOverflow | NegOverflow) { "value out of range" } else { "invalid syntax" };
        Fault::invalid(format!("{what}: strconv.ParseInt: parsing {value:?}: {why}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attrs(pairs: &[(&str, &str)]) -> Attrs {
        Attrs(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn switches_take_an_empty_value_and_flags_do_not() {
        let mut all = attrs(&[("push", ""), ("store", "T"), ("x", "y")]);
        assert_eq!(all.switch("push").unwrap(), Some(true));
        assert_eq!(all.flag("store").unwrap(), Some(true));
        assert_eq!(all.rest().keys().collect::<Vec<_>>(), ["x"]);
        let failure = attrs(&[("push", "yes")]).switch("push").unwrap_err();
        assert_eq!(failure.to_string(), r#"non-bool value specified for push: strconv.ParseBool: parsing "yes": invalid syntax"#);
        assert!(attrs(&[("oci-mediatypes", "")]).flag("oci-mediatypes").is_err());
    }

    #[test]
    fn the_epoch_comes_from_attribute_result_or_platform() {
        let metadata = |pairs: &[(&'static str, &'static str)]| -> BTreeMap<String, Bytes> {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), Bytes::from_static(v.as_bytes()))).collect()
        };
        let both = metadata(&[("source.date.epoch", "7"), ("source.date.epoch/linux/amd64", "8")]);
        let one = metadata(&[("source.date.epoch", ""), ("source.date.epoch/linux/amd64", "8")]);
        assert_eq!(attrs(&[("source-date-epoch", "5")]).epoch().unwrap().resolve(&both, "linux/amd64").unwrap(), Some(5));
        assert_eq!(attrs(&[("source-date-epoch", "")]).epoch().unwrap().resolve(&both, "linux/amd64").unwrap(), None);
        assert_eq!(Epoch::Inherit.resolve(&both, "linux/amd64").unwrap(), Some(7));
        assert_eq!(Epoch::Inherit.resolve(&one, "linux/amd64").unwrap(), Some(8));
        assert_eq!(Epoch::Inherit.resolve(&one, "linux/arm64").unwrap(), None);
        let failure = attrs(&[("source-date-epoch", "soon")]).epoch().unwrap_err();
        let reason = r#"strconv.ParseInt: parsing "soon": invalid syntax"#;
        assert_eq!(failure.to_string(), format!("invalid source-date-epoch: {reason}: {reason}"));
        let bad = metadata(&[("source.date.epoch", "x")]);
        let failure = Epoch::Inherit.resolve(&bad, "").unwrap_err().to_string();
        assert!(failure.starts_with(r#"invalid SOURCE_DATE_EPOCH from frontend: "x": "#), "{failure}");
    }
}
