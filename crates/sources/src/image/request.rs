use std::collections::BTreeMap;

use oci::{Digest, Reference};

use crate::error::SourceError;
use crate::scheme::Scheme;

/// An image source op, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub reference: Reference,
    pub place: Place,
    /// `regular`, `internal` or `frontend`; empty is `regular`.
    pub record_type: String,
    /// Keep only so many of the bottom layers.
    pub layer_limit: Option<usize>,
    /// What the name must stand for.
    pub checksum: Option<Digest>,
}

/// Where the image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Registry,
    /// A store that a client serves; of any session where none is named.
    Layout {
        session: String,
        store: String,
    },
}

impl Request {
    pub fn new(scheme: Scheme, text: &str, attrs: &BTreeMap<String, String>) -> Result<Self, SourceError> {
        let wrong = |source| SourceError::Reference { text: text.to_owned(), source };
        let reference: Reference = text.parse().map_err(wrong)?;
        let get = |key: &str| attrs.get(key).map_or("", String::as_str);
        if scheme == Scheme::OciLayout {
            if reference.digest().is_none() {
                return Err(SourceError::NoDigest { text: text.to_owned() });
            }
            let place = Place::Layout { session: get("oci.session").to_owned(), store: get("oci.store").to_owned() };
            let layer_limit = limit(get("oci.layerlimit"))?;
            return Ok(Self { reference, place, record_type: String::new(), layer_limit, checksum: None });
        }
        let mode = get("image.resolvemode");
        if !matches!(mode, "" | "default" | "pull" | "local") {
            return Err(SourceError::Attr { what: "image resolve mode", value: mode.to_owned() });
        }
        let checksum = match get("image.checksum") {
            "" => None,
            text => Some(text.parse().map_err(|_| SourceError::Attr { what: "image checksum", value: text.to_owned() })?),
        };
        Ok(Self {
            reference: reference.or_latest(),
            place: Place::Registry,
            record_type: record_type(get("image.recordtype"))?,
            layer_limit: limit(get("image.layerlimit"))?,
            checksum,
        })
    }
}

/// `regular` is written as nothing, which is what it is in every record.
pub(crate) fn record_type(text: &str) -> Result<String, SourceError> {
    match text {
        "" | "regular" => Ok(String::new()),
        "internal" | "frontend" => Ok(text.to_owned()),
        _ => Err(SourceError::Attr { what: "record type", value: text.to_owned() }),
    }
}

fn limit(text: &str) -> Result<Option<usize>, SourceError> {
    match text {
        "" => Ok(None),
        text => match text.parse() {
            Ok(limit) if limit > 0 => Ok(Some(limit)),
            _ => Err(SourceError::Attr { what: "layer limit", value: text.to_owned() }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attrs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn reads_attributes() {
        let given = attrs(&[("image.recordtype", "frontend"), ("image.layerlimit", "2"), ("image.resolvemode", "local"), ("unknown", "x")]);
        let request = Request::new(Scheme::Image, "alpine", &given).unwrap();
        assert_eq!(
            (request.reference.to_string().as_str(), request.record_type.as_str(), request.layer_limit),
            ("docker.io/library/alpine:latest", "frontend", Some(2))
        );
        for (bad, text) in [
            (("image.layerlimit", "0"), "invalid layer limit \"0\""),
            (("image.resolvemode", "x"), "invalid image resolve mode \"x\""),
            (("image.recordtype", "x"), "invalid record type \"x\""),
            (("image.checksum", "x"), "invalid image checksum \"x\""),
        ] {
            assert_eq!(Request::new(Scheme::Image, "alpine", &attrs(&[bad])).unwrap_err().to_string(), text);
        }
        let text = Request::new(Scheme::OciLayout, "a/b:c", &attrs(&[])).unwrap_err().to_string();
        assert_eq!(text, "reference \"a/b:c\" must have digest");
    }
}
