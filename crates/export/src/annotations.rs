//! Annotations that a user or a frontend asks for: which document, for which platform, which key.
use std::collections::BTreeMap;

use bytes::Bytes;
use fault::{Fault, Result};
use oci::Platform;

use crate::attrs::Attrs;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Index,
    IndexDescriptor,
    Manifest,
    ManifestDescriptor,
}

/// What follows `annotation` in a key: `[-<place>][[<platform>]].<key>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    pub place: Place,
    /// The platform's full name; `None` is every platform.
    pub platform: Option<String>,
    pub key: String,
}

impl Key {
    /// `None`: not an annotation's key.
    pub fn parse(text: &str) -> Result<Option<Self>> {
        let Some((place, platform, key)) = split(text) else { return Ok(None) };
        let place = match place {
            Some("index") => Place::Index,
            Some("index-descriptor") => Place::IndexDescriptor,
            Some("manifest") | None => Place::Manifest,
            Some("manifest-descriptor") => Place::ManifestDescriptor,
            Some(other) => return Err(Fault::invalid(format!("unrecognized annotation type {other}"))),
        };
        let platform =
            platform.map(|p| p.parse::<Platform>().map(|p| p.to_string())).transpose().map_err(|e| Fault::invalid(e.to_string()))?;
        Ok(Some(Self { place, platform, key: key.to_owned() }))
    }
}

/// Place, platform and key as written.
fn split(text: &str) -> Option<(Option<&str>, Option<&str>, &str)> {
    let mut rest = text.strip_prefix("annotation")?;
    let mut place = None;
    if let Some(after) = rest.strip_prefix('-') {
        let end = after.find(|c: char| !(c.is_ascii_lowercase() || c == '-')).filter(|end| *end > 0)?;
        place = Some(&after[..end]);
        rest = &after[end..];
    }
    let mut platform = None;
    if let Some(after) = rest.strip_prefix('[') {
        let (inside, after) = after.split_once(']')?;
        if inside.is_empty() || !inside.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'/' | b'-')) {
            return None;
        }
        platform = Some(inside);
        rest = after;
    }
    let key = rest.strip_prefix('.')?;
    let blank = |c: char| matches!(c, '\t' | '\n' | '\x0c' | '\r' | ' ');
    (!key.is_empty() && !key.contains(blank)).then_some((place, platform, key))
}

type Pairs = BTreeMap<String, String>;

/// The annotations of one platform's documents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Annotations {
    pub index: Pairs,
    pub index_descriptor: Pairs,
    pub manifest: Pairs,
    pub manifest_descriptor: Pairs,
}

impl Annotations {
    fn at(&mut self, place: Place) -> &mut Pairs {
        match place {
            Place::Index => &mut self.index,
            Place::IndexDescriptor => &mut self.index_descriptor,
            Place::Manifest => &mut self.manifest,
            Place::ManifestDescriptor => &mut self.manifest_descriptor,
        }
    }

    fn extend(&mut self, other: &Self) {
        self.index.extend(other.index.clone());
        self.index_descriptor.extend(other.index_descriptor.clone());
        self.manifest.extend(other.manifest.clone());
        self.manifest_descriptor.extend(other.manifest_descriptor.clone());
    }
}

/// All annotations that were asked for, by platform; under the empty name what holds for all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Groups(BTreeMap<String, Annotations>);

impl Groups {
    /// Takes the annotations out of an exporter's attributes.
    pub fn take(attrs: &mut Attrs) -> Result<Self> {
        let mut groups = Self::default();
        for (key, value) in attrs.take(Key::parse)? {
            groups.insert(key, value);
        }
        Ok(groups)
    }

    /// Adds those in a result's metadata, which win.
    pub fn with_metadata(mut self, metadata: &BTreeMap<String, Bytes>) -> Result<Self> {
        for (key, value) in metadata {
            if let Some(key) = Key::parse(key)? {
                self.insert(key, String::from_utf8_lossy(value).into_owned());
            }
        }
        Ok(self)
    }

    fn insert(&mut self, key: Key, value: String) {
        self.0.entry(key.platform.unwrap_or_default()).or_default().at(key.place).insert(key.key, value);
    }

    /// For the documents about all platforms, or about one: what is said of a platform goes before what is said of all.
    pub fn of(&self, platform: Option<&Platform>) -> Annotations {
        let mut found = Annotations::default();
        for all in self.0.values() {
            found.index.extend(all.index.clone());
            found.index_descriptor.extend(all.index_descriptor.clone());
        }
        let own = platform.map(ToString::to_string);
        for name in [Some(String::new()), own].into_iter().flatten() {
            if let Some(group) = self.0.get(&name) {
                found.extend(group);
            }
        }
        found
    }

    /// `known` says whether the result has a platform.
    pub fn check(&self, oci_types: bool, known: impl Fn(&str) -> bool) -> Result<()> {
        for (platform, all) in &self.0 {
            if !platform.is_empty() && !known(platform) {
                return Err(Fault::invalid(format!("invalid annotation: no platform {platform} found in source")));
            }
            let new = [&all.index, &all.index_descriptor, &all.manifest_descriptor];
            if !oci_types && new.iter().any(|pairs| !pairs.is_empty()) {
                return Err(Fault::invalid("cannot export annotations with \"oci-mediatypes=false\""));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_say_place_platform_and_name() {
        let key = |place, platform: Option<&str>, key: &str| Key { place, platform: platform.map(str::to_owned), key: key.to_owned() };
        for (text, want) in [
            ("annotation.org.x", key(Place::Manifest, None, "org.x")),
            ("annotation-index.a", key(Place::Index, None, "a")),
            ("annotation-manifest-descriptor[linux/arm64/v8].a.b", key(Place::ManifestDescriptor, Some("linux/arm64"), "a.b")),
            ("annotation[linux/arm].é", key(Place::Manifest, Some("linux/arm/v7"), "é")),
        ] {
            assert_eq!(Key::parse(text).unwrap(), Some(want), "{text}");
        }
        for text in
            ["annotation", "annotation.", "annotations.a", "annotation-.a", "annotation[].a", "annotation[a b].c", "annotation.a b", "x"]
        {
            assert_eq!(Key::parse(text).unwrap(), None, "{text}");
        }
        assert_eq!(Key::parse("annotation-layer.a").unwrap_err().to_string(), "unrecognized annotation type layer");
    }

    #[test]
    fn a_platform_goes_before_all_and_metadata_before_attributes() {
        let attrs = BTreeMap::from(
            [("annotation.a", "1"), ("annotation[linux/amd64].a", "2"), ("annotation-index.i", "3"), ("annotation.m", "4"), ("other", "5")]
                .map(|(k, v)| (k.to_owned(), v.to_owned())),
        );
        let mut attrs = Attrs::new(&attrs);
        let groups = Groups::take(&mut attrs).unwrap();
        assert_eq!(attrs.rest().into_keys().collect::<Vec<_>>(), ["other"]);
        let metadata = BTreeMap::from([("annotation.m".to_owned(), Bytes::from_static(b"frontend"))]);
        let groups = groups.with_metadata(&metadata).unwrap();
        let amd64 = groups.of(Some(&"linux/amd64".parse().unwrap()));
        assert_eq!((amd64.manifest["a"].as_str(), amd64.manifest["m"].as_str()), ("2", "frontend"));
        assert_eq!(groups.of(Some(&"linux/s390x".parse().unwrap())).manifest["a"], "1");
        assert_eq!(groups.of(None).index["i"], "3");

        let known = |platform: &str| platform == "linux/amd64";
        groups.check(true, known).unwrap();
        let failure = groups.check(true, |_| false).unwrap_err();
        assert_eq!(failure.to_string(), "invalid annotation: no platform linux/amd64 found in source");
        assert_eq!(groups.check(false, known).unwrap_err().to_string(), "cannot export annotations with \"oci-mediatypes=false\"");
    }
}
