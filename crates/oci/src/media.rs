//! Media type names, and what they say about a blob.

pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
pub const OCI_NONDIST: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar";
pub const OCI_NONDIST_GZIP: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
pub const OCI_NONDIST_ZSTD: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd";

pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+json";
pub const DOCKER_SCHEMA1_SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";
pub const DOCKER_FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";
pub const DOCKER_FOREIGN_GZIP: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";

pub const IN_TOTO: &str = "application/vnd.in-toto+json";
pub const BUILDKIT_CACHE_CONFIG: &str = "application/vnd.buildkit.cacheconfig.v0";

/// How a layer's tar is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LayerEncoding {
    Plain,
    Gzip,
    Zstd,
}

/// A layer media type taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerType {
    pub encoding: LayerEncoding,
    /// Docker's name rather than the OCI one.
    pub docker: bool,
    /// The blob may come from elsewhere and is not pushed ("foreign", "non-distributable").
    pub foreign: bool,
}

impl LayerType {
    /// `None` for anything that is not a known layer type.
    pub fn parse(media_type: &str) -> Option<Self> {
        ALL.iter().find(|(name, _)| *name == media_type).map(|(_, kind)| *kind)
    }

    /// The media type name. Docker never named zstd among its foreign types: that becomes the plain zstd type.
    pub fn name(self) -> &'static str {
        let exact = ALL.iter().find(|(_, kind)| *kind == self);
        exact.map_or(DOCKER_LAYER_ZSTD, |(name, _)| name)
    }
}

const fn layer(encoding: LayerEncoding, docker: bool, foreign: bool) -> LayerType {
    LayerType { encoding, docker, foreign }
}

const ALL: [(&str, LayerType); 11] = [
    (OCI_LAYER, layer(LayerEncoding::Plain, false, false)),
    (OCI_LAYER_GZIP, layer(LayerEncoding::Gzip, false, false)),
    (OCI_LAYER_ZSTD, layer(LayerEncoding::Zstd, false, false)),
    (OCI_NONDIST, layer(LayerEncoding::Plain, false, true)),
    (OCI_NONDIST_GZIP, layer(LayerEncoding::Gzip, false, true)),
    (OCI_NONDIST_ZSTD, layer(LayerEncoding::Zstd, false, true)),
    (DOCKER_LAYER, layer(LayerEncoding::Plain, true, false)),
    (DOCKER_LAYER_GZIP, layer(LayerEncoding::Gzip, true, false)),
    (DOCKER_LAYER_ZSTD, layer(LayerEncoding::Zstd, true, false)),
    (DOCKER_FOREIGN, layer(LayerEncoding::Plain, true, true)),
    (DOCKER_FOREIGN_GZIP, layer(LayerEncoding::Gzip, true, true)),
];

pub fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_LIST)
}

pub fn is_manifest(media_type: &str) -> bool {
    matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
}

pub fn is_config(media_type: &str) -> bool {
    matches!(media_type, OCI_CONFIG | DOCKER_CONFIG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_types_round_trip() {
        for (name, kind) in ALL {
            assert_eq!(LayerType::parse(name), Some(kind));
            assert_eq!(kind.name(), name);
        }
        assert_eq!(LayerType::parse(OCI_CONFIG), None);
    }
}
