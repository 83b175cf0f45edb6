use fault::{Classified, Kind};
use oci::Digest;

/// Why a source cannot be used as it is given, or does not hold what was promised.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("failed to parse {identifier}: invalid")]
    Identifier { identifier: String },
    #[error("unknown scheme {scheme}: not found")]
    Scheme { scheme: String },
    #[error("invalid {what} {value:?}")]
    Attr { what: &'static str, value: String },
    #[error("invalid reference {text:?}")]
    Reference { text: String, source: oci::ReferenceError },
    #[error("reference {text:?} must have digest")]
    NoDigest { text: String },
    #[error("image digest {actual} for {reference} does not match expected checksum {expected}")]
    ImageChecksum { reference: String, actual: Digest, expected: Digest },
    #[error("layer limit {limit} is greater than the number of layers in the image {count}")]
    LayerLimit { limit: usize, count: usize },
    #[error("no match for platform in manifest {digest}: not found")]
    Platform { digest: Digest },
    #[error("mismatched image rootfs and manifest layers: {diff_ids} and {layers}")]
    Mismatched { diff_ids: usize, layers: usize },
    #[error("index {digest} is nested too deeply")]
    Nested { digest: Digest },
    #[error("failed to parse image config")]
    Config { source: oci::ImageConfigError },
    #[error("invalid manifest {digest}")]
    Manifest { digest: Digest, source: oci::DocumentError },
    #[error("unexpected digest {actual} from the client's store (expected: {expected})")]
    Content { actual: Digest, expected: Digest },
    #[error("content {digest} of the client's store is missing or too large")]
    Missing { digest: Digest },
    #[error("oci-layout blob source requires store id")]
    NoStore,
    #[error("invalid gzip body")]
    Gzip { source: std::io::Error },
    #[error("invalid response status {status}")]
    Status { status: u16 },
    #[error("digest mismatch for {url}: {actual} (expected: {expected})")]
    Checksum { url: String, actual: Digest, expected: Digest },
    #[error("http signature verification requires both pubkey and signature")]
    Signature,
    #[error("cannot verify the signature of {url}: it is larger than {limit} bytes")]
    TooLarge { url: String, limit: u64 },
    #[error("http checksum request suffix exceeds max size {limit}")]
    Suffix { limit: usize },
    #[error("no active sessions")]
    NoSession,
}

impl Classified for SourceError {
    fn kind(&self) -> Kind {
        match self {
            Self::Scheme { .. } | Self::Platform { .. } | Self::Missing { .. } | Self::NoSession => Kind::NotFound,
            Self::ImageChecksum { .. } | Self::Checksum { .. } | Self::Content { .. } => Kind::Precondition,
            Self::Status { status } if *status >= 500 => Kind::Unavailable,
            Self::Status { status: 404 } => Kind::NotFound,
            Self::Status { status: 401 | 403 } => Kind::Denied,
            Self::Status { .. } => Kind::Unknown,
            _ => Kind::Invalid,
        }
    }
}
