//! Caches in registries and OCI layouts: a manifest that names the config and the layers.
use std::collections::BTreeMap;

use fault::{Fault, Result};
use layers::{Compression, CompressionKind};
use oci::{Annotations, Descriptor, Digest, Document, Index, Manifest, gojson, media};

use super::attrs::Attrs;
use super::document::CacheConfig;

/// How the manifest looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// An image's manifest rather than an index of blobs.
    pub image: bool,
    pub oci_types: bool,
}

impl Form {
    pub fn take(attrs: &Attrs) -> Result<Self> {
        let oci_types = attrs.flag("oci-mediatypes")?.unwrap_or(true);
        let image = attrs.flag("image-manifest")?.unwrap_or(oci_types);
        if image && !oci_types {
            let why = "invalid configuration for remote cache, OCI mediatypes are required for image-manifest cache format";
            return Err(Fault::invalid(why));
        }
        Ok(Self { image, oci_types })
    }

    pub fn name(self) -> &'static str {
        if self.image { "cache image manifest" } else { "cache manifest" }
    }
}

/// How a cache's layers are packed.
pub fn compression(attrs: &Attrs) -> Result<Compression> {
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
        Some("") => true,
        Some(value) => super::attrs::parse_bool(value)
            .ok_or_else(|| Fault::invalid(format!("non-bool value {value} specified for force-compression")))?,
    };
    let level = match attrs.text("compression-level") {
        None => None,
        Some(value) => {
            Some(value.parse().map_err(|_| Fault::invalid(format!("non-integer value {value} specified for compression-level")))?)
        }
    };
    Ok(Compression { kind, level, force })
}

/// The manifest's bytes and descriptor. `layers` are in the order of the config.
pub fn write(form: Form, config: &Descriptor, layers: &[Descriptor]) -> (Descriptor, Vec<u8>) {
    let mut layers: Vec<Descriptor> = layers.iter().map(|l| public(l, form.oci_types)).collect();
    let (media_type, bytes) = if form.image {
        let manifest = Manifest {
            schema_version: 2,
            media_type: media::OCI_MANIFEST.into(),
            artifact_type: String::new(),
            config: config.clone(),
            layers,
            subject: None,
            annotations: Annotations::new(),
        };
        (media::OCI_MANIFEST, gojson::to_vec(&manifest))
    } else {
        let media_type = if form.oci_types { media::OCI_INDEX } else { media::DOCKER_LIST };
        layers.push(config.clone());
        let index = Index {
            schema_version: 2,
            media_type: media_type.into(),
            artifact_type: String::new(),
            manifests: layers,
            subject: None,
            annotations: Annotations::new(),
        };
        (media_type, gojson::to_vec(&index))
    };
    (Descriptor::of(media_type, &bytes), bytes)
}

/// With the media type of the wanted family.
pub fn public(layer: &Descriptor, oci_types: bool) -> Descriptor {
    let mut public = layer.clone();
    if let Some(mut kind) = media::LayerType::parse(&layer.media_type) {
        kind.docker = !oci_types;
        kind.foreign = !public.urls.is_empty();
        public.media_type = kind.name().into();
    }
    public
}

/// What a manifest says of a cache.
#[expect(clippy::large_enum_variant, reason = "there is one for each import, and it does not live long")]
pub enum Contents {
    Cache {
        config: Descriptor,
        layers: BTreeMap<Digest, Descriptor>,
    },
    /// An image, or an index of images, that may have a cache inside.
    Image(Document),
}

pub fn read(media_type: &str, bytes: &[u8]) -> Result<Contents> {
    let document = Document::parse(media_type, bytes).map_err(|e| Fault::of(fault::Kind::Invalid, e))?;
    let is_config = |d: &Descriptor| d.media_type == media::BUILDKIT_CACHE_CONFIG;
    let (config, layers) = match &document {
        Document::Index(index) => (index.manifests.iter().rfind(|d| is_config(d)), &index.manifests),
        Document::Manifest(manifest) => (Some(&manifest.config).filter(|d| is_config(d)), &manifest.layers),
    };
    let Some(config) = config.cloned() else { return Ok(Contents::Image(document)) };
    let layers = layers.iter().filter(|d| !is_config(d)).map(|d| (d.digest.clone(), d.clone())).collect();
    Ok(Contents::Cache { config, layers })
}

/// Reads a config that came with a manifest.
pub fn parse(bytes: &[u8]) -> Result<CacheConfig> {
    CacheConfig::parse(bytes).map_err(|e| Fault::invalid(format!("failed to parse cache config: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(pairs: &[(&str, &str)]) -> Result<Form> {
        Form::take(&Attrs::new(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()))
    }

    #[test]
    fn the_form_follows_the_attributes() {
        assert_eq!(form(&[]).unwrap(), Form { image: true, oci_types: true });
        assert_eq!(form(&[("oci-mediatypes", "false")]).unwrap(), Form { image: false, oci_types: false });
        assert_eq!(form(&[("image-manifest", "false")]).unwrap(), Form { image: false, oci_types: true });
        let failure = form(&[("image-manifest", "true"), ("oci-mediatypes", "0")]).unwrap_err().to_string();
        assert_eq!(failure, "invalid configuration for remote cache, OCI mediatypes are required for image-manifest cache format");
        assert!(form(&[("oci-mediatypes", "")]).unwrap_err().to_string().starts_with("failed to parse oci-mediatypes"));
    }

    #[test]
    fn manifests_are_read_as_they_were_written() {
        let config = Descriptor::of(media::BUILDKIT_CACHE_CONFIG, b"{}");
        let layer = Descriptor::of(media::DOCKER_LAYER_GZIP, b"x");
        for (image, oci_types, kind) in
            [(true, true, media::OCI_MANIFEST), (false, true, media::OCI_INDEX), (false, false, media::DOCKER_LIST)]
        {
            let (descriptor, bytes) = write(Form { image, oci_types }, &config, std::slice::from_ref(&layer));
            assert_eq!(descriptor.media_type, kind);
            let Contents::Cache { config: found, layers } = read("", &bytes).unwrap() else { panic!("a cache") };
            assert_eq!(found, config);
            let name = if oci_types { media::OCI_LAYER_GZIP } else { media::DOCKER_LAYER_GZIP };
            assert_eq!(layers[&layer.digest].media_type, name);
        }
        let image = br#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0},"layers":[]}"#;
        assert!(matches!(read(media::OCI_MANIFEST, image).unwrap(), Contents::Image(_)));
    }
}
