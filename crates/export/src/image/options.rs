//! What all exporters that make an image can be told.
use std::collections::BTreeMap;

use bytes::Bytes;
use fault::{Detail, Fault, Kind, Result};
use layers::{Compression, CompressionKind};

use crate::annotations::Groups;
use crate::attrs::{Attrs, Epoch, parse_bool, parse_int};

/// Compatibility versions from which defaults changed.
const OCI_BY_DEFAULT: u32 = 30;
const WITHOUT_ZSTD: u32 = 10;

/// How layers without a blob are packed; with `force-compression`, how all are.
fn compression(attrs: &mut Attrs) -> Result<Compression> {
    use CompressionKind::{Estargz, Gzip, Uncompressed, Zstd};
    let kind = match attrs.text("compression") {
        None => Gzip,
        Some(name) => {
            let known = [Uncompressed, Gzip, Estargz, Zstd].into_iter().find(|kind| kind.name() == name);
            known.ok_or_else(|| Fault::invalid(format!("unsupported compression type {name}")))?
        }
    };
    let force = match attrs.text("force-compression") {
        None => false,
        Some(value) if value.is_empty() => true,
        Some(value) => parse_bool(&value, &format!("non-bool value {value} specified for force-compression"))?,
    };
    let level = attrs.text("compression-level");
    let level = level.map(|value| parse_int(&value, &format!("non-integer value {value} specified for compression-level"))).transpose()?;
    let level = level.map(|level| i32::try_from(level).unwrap_or(if level < 0 { i32::MIN } else { i32::MAX }));
    Ok(Compression { kind, level, force })
}

/// As given; [`ImageOptions::settle`] fills in what depends on the result.
#[derive(Debug, Clone)]
pub struct ImageOptions {
    /// Comma-separated; `*` is the name that the result's metadata has.
    pub name: String,
    pub compression: Compression,
    pub oci_types: Option<bool>,
    pub oci_artifact: Option<bool>,
    pub annotations: Groups,
    pub epoch: Epoch,
    /// Keeps statements that are marked inline-only.
    pub inline_attestations: bool,
    pub prefer_foreign: bool,
    pub rewrite_timestamps: bool,
    compatibility: u32,
}

/// Options without open questions.
#[derive(Debug, Clone)]
pub struct Settled {
    pub oci_types: bool,
    pub oci_artifact: bool,
    pub annotations: Groups,
    pub epoch: Epoch,
    pub inline_attestations: bool,
    pub prefer_foreign: bool,
    pub rewrite_timestamps: bool,
    pub compression: Compression,
}

impl ImageOptions {
    pub fn take(attrs: &mut Attrs, compatibility: u32, inline_attestations: bool) -> Result<Self> {
        let options = Self {
            annotations: Groups::take(attrs)?,
            epoch: attrs.epoch()?,
            compression: compression(attrs)?,
            name: attrs.text("name").unwrap_or_default(),
            oci_types: attrs.flag("oci-mediatypes")?,
            oci_artifact: attrs.flag("oci-artifact")?,
            inline_attestations: attrs.flag("attestation-inline")?.unwrap_or(inline_attestations),
            prefer_foreign: attrs.flag("prefer-nondist-layers")?.unwrap_or(false),
            rewrite_timestamps: attrs.flag("rewrite-timestamp")?.unwrap_or(false),
            compatibility,
        };
        if let Some(oci_types) = options.oci_types {
            options.check(oci_types, options.oci_artifact.unwrap_or(false))?;
        }
        Ok(options)
    }

    /// Decides what the result decides. `always_oci`: the format has no other media types unless asked for.
    pub fn settle(&self, kind: &str, metadata: &BTreeMap<String, Bytes>, has_attestations: bool, always_oci: bool) -> Result<Settled> {
        let new = self.compatibility >= OCI_BY_DEFAULT;
        let oci_types = self.oci_types.unwrap_or(always_oci || new || has_attestations);
        let oci_artifact = self.oci_artifact.unwrap_or(new && oci_types);
        let annotations = self.annotations.clone().with_metadata(metadata)?;
        self.check(oci_types, oci_artifact)?;
        if self.compatibility == WITHOUT_ZSTD && self.compression.kind == CompressionKind::Zstd {
            return Err(unsupported_feature(self.compatibility, &format!("{kind} exporter compression=zstd")));
        }
        Ok(Settled {
            oci_types,
            oci_artifact,
            annotations,
            epoch: self.epoch.or_metadata(metadata)?,
            inline_attestations: self.inline_attestations,
            prefer_foreign: self.prefer_foreign,
            rewrite_timestamps: self.rewrite_timestamps,
            compression: self.compression,
        })
    }

    fn check(&self, oci_types: bool, oci_artifact: bool) -> Result<()> {
        if self.compression.kind == CompressionKind::Estargz && !oci_types {
            return Err(Fault::invalid("exporter option \"compression=estargz\" conflicts with \"oci-mediatypes=false\""));
        }
        if oci_artifact && !oci_types {
            return Err(Fault::invalid("exporter option \"oci-artifact=true\" conflicts with \"oci-mediatypes=false\""));
        }
        Ok(())
    }

    /// The names to give, now that the result is known.
    pub fn names(&self, metadata: &BTreeMap<String, Bytes>) -> String {
        match metadata.get("image.name") {
            Some(name) if self.name == "*" => String::from_utf8_lossy(name).into_owned(),
            _ => self.name.clone(),
        }
    }
}

fn unsupported_feature(version: u32, feature: &str) -> Fault {
    let detail = serde_json::json!({"version": version, "feature": feature});
    Fault::new(Kind::Unknown, format!("unsupported compatibility-version {version} feature {feature}")).with_detail(Detail::Other {
        type_url: "github.com/moby/buildkit/errdefs.CompatibilityFeature+json".into(),
        value: detail.to_string().into_bytes(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(pairs: &[(&str, &str)], compatibility: u32) -> Result<ImageOptions> {
        let attrs = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        ImageOptions::take(&mut Attrs::new(&attrs), compatibility, true)
    }

    fn failure(pairs: &[(&str, &str)], compatibility: u32) -> String {
        let options = take(pairs, compatibility);
        options.and_then(|o| o.settle("image", &BTreeMap::new(), false, false)).unwrap_err().to_string()
    }

    #[test]
    fn defaults_follow_the_compatibility_version() {
        let settle = |compatibility, attestations, always| {
            let settled = take(&[], compatibility).unwrap().settle("image", &BTreeMap::new(), attestations, always).unwrap();
            (settled.oci_types, settled.oci_artifact)
        };
        assert_eq!(settle(30, false, false), (true, true));
        assert_eq!(settle(20, false, false), (false, false));
        assert_eq!(settle(20, true, false), (true, false));
        assert_eq!(settle(20, false, true), (true, false));
    }

    #[test]
    fn conflicts_and_bad_values_are_named() {
        for (pairs, want) in [
            (&[("compression", "lz4")][..], "unsupported compression type lz4"),
            (
                &[("compression-level", "x")],
                "non-integer value x specified for compression-level: strconv.ParseInt: parsing \"x\": invalid syntax",
            ),
            (
                &[("force-compression", "x")],
                "non-bool value x specified for force-compression: strconv.ParseBool: parsing \"x\": invalid syntax",
            ),
            (
                &[("compression", "estargz"), ("oci-mediatypes", "false")],
                "exporter option \"compression=estargz\" conflicts with \"oci-mediatypes=false\"",
            ),
            (
                &[("oci-artifact", "true"), ("oci-mediatypes", "false")],
                "exporter option \"oci-artifact=true\" conflicts with \"oci-mediatypes=false\"",
            ),
        ] {
            assert_eq!(failure(pairs, 30), want);
        }
        assert_eq!(failure(&[("compression", "zstd")], 10), "unsupported compatibility-version 10 feature image exporter compression=zstd");
        assert!(take(&[("compression", "zstd"), ("force-compression", "")], 30).unwrap().compression.force);
    }

    #[test]
    fn a_star_is_the_frontends_name() {
        let metadata = BTreeMap::from([("image.name".to_owned(), Bytes::from_static(b"a,b"))]);
        assert_eq!(take(&[("name", "*")], 30).unwrap().names(&metadata), "a,b");
        assert_eq!(take(&[("name", "c")], 30).unwrap().names(&metadata), "c");
        assert_eq!(take(&[("name", "*")], 30).unwrap().names(&BTreeMap::new()), "*");
    }
}
