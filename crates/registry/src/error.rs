use std::time::Duration;

use fault::{Classified, Kind};
use http::StatusCode;
use oci::Digest;

/// Why a registry did not do what we asked. URLs have their query values removed, since those carry signatures.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("{what}: not found")]
    NotFound { what: String },
    #[error("unexpected status from {method} request to {url}: {status}{detail}")]
    Status { method: String, url: String, status: StatusCode, detail: String, retry_after: Option<Duration> },
    #[error("failed to do request: {method} {url:?}")]
    Request { method: String, url: String, source: TransportError },
    #[error("pull access denied, repository does not exist or may require authorization")]
    PullDenied { source: Box<RegistryError> },
    #[error("push access denied, repository does not exist or may require authorization")]
    PushDenied { source: Box<RegistryError> },
    #[error("server message: {message}")]
    Unauthorized { message: String },
    #[error("failed to authorize")]
    Authorize { source: Box<RegistryError> },
    #[error("failed to fetch {} token", if *anonymous { "anonymous" } else { "oauth" })]
    Token { anonymous: bool, source: Box<RegistryError> },
    #[error("failed to find supported auth scheme")]
    AuthScheme,
    #[error("{0}")]
    Client(fault::Fault),
    #[error("{url} answered with {problem}")]
    Answer { url: String, problem: String },
    #[error("{url} answered with more than {limit} bytes")]
    TooLarge { url: String, limit: u64 },
    #[error("unexpected digest from {url}: {actual} (expected: {expected})")]
    Mismatch { url: String, actual: Digest, expected: Digest },
    #[error("download of {digest} from {url} kept breaking at byte {offset}")]
    Broken { url: String, digest: Digest, offset: u64, source: Box<RegistryError> },
    #[error("invalid registry host {host:?}")]
    Host { host: String },
    #[error("failed to read {path}")]
    ReadFile { path: String, source: std::io::Error },
    #[error("failed to load keypair for {path}: {problem}")]
    Keypair { path: String, problem: String },
    #[error("invalid manifest at {url}")]
    Manifest { url: String, source: oci::DocumentError },
    #[error("failed to read the blob to push")]
    Payload { source: std::io::Error },
}

/// What went wrong below HTTP, or in its framing.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    #[error("dial {address}")]
    Dial { address: String, source: std::io::Error },
    #[error("dial tcp: lookup {host}: {why}")]
    Lookup { host: String, why: String },
    #[error("dial {address}: i/o timeout")]
    DialTimeout { address: String },
    #[error("TLS handshake timeout")]
    TlsTimeout,
    #[error("server gave HTTP response to HTTPS client")]
    PlainAnswer,
    #[error("tls")]
    Tls { source: std::io::Error },
    #[error("proxy {proxy} refused the tunnel: {status}")]
    Proxy { proxy: String, status: String },
    #[error("unsupported proxy address {proxy:?}")]
    ProxyAddress { proxy: String },
    #[error("timeout awaiting response")]
    Timeout,
    #[error("connection lost: {detail}")]
    Lost { detail: String },
    #[error("malformed HTTP answer: {detail}")]
    Malformed { detail: String },
    #[error("stopped after {count} redirects")]
    Redirects { count: usize },
}

impl TransportError {
    /// Whether the same request may work a moment later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::DialTimeout { .. } | Self::TlsTimeout | Self::Timeout | Self::Lost { .. } => true,
            Self::Dial { source, .. } | Self::Tls { source } => {
                use std::io::ErrorKind as K;
                matches!(
                    source.kind(),
                    K::ConnectionReset | K::ConnectionAborted | K::BrokenPipe | K::UnexpectedEof | K::TimedOut | K::Interrupted
                )
            }
            _ => false,
        }
    }
}

impl RegistryError {
    /// Whether the same request may work a moment later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => {
                status.is_server_error() || matches!(*status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
            }
            Self::Request { source, .. } => source.is_transient(),
            Self::Authorize { source } | Self::Token { source, .. } | Self::Broken { source, .. } => source.is_transient(),
            Self::Client(fault) => fault.kind().retryable(),
            _ => false,
        }
    }

    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Status { status, .. } => Some(*status),
            Self::Token { source, .. } => source.status(),
            _ => None,
        }
    }

    /// The wait that the registry asked for.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

impl Classified for RegistryError {
    fn kind(&self) -> Kind {
        match self {
            Self::NotFound { .. } => Kind::NotFound,
            Self::Status { status, .. } if status.is_server_error() => Kind::Unavailable,
            Self::Status { status, .. } if *status == StatusCode::FORBIDDEN => Kind::Denied,
            Self::Status { status, .. } if *status == StatusCode::UNAUTHORIZED => Kind::Unauthenticated,
            Self::Status { .. } => Kind::Unknown,
            Self::Request { source, .. } if source.is_transient() => Kind::Unavailable,
            Self::Request { .. } => Kind::Unknown,
            Self::PullDenied { .. } | Self::PushDenied { .. } => Kind::Denied,
            Self::Unauthorized { .. } | Self::AuthScheme => Kind::Unauthenticated,
            Self::Authorize { source } | Self::Token { source, .. } | Self::Broken { source, .. } => source.kind(),
            Self::Client(fault) => fault.kind(),
            Self::Answer { .. } | Self::Mismatch { .. } | Self::Manifest { .. } => Kind::Precondition,
            Self::TooLarge { .. } => Kind::Exhausted,
            Self::Host { .. } | Self::Keypair { .. } => Kind::Invalid,
            Self::ReadFile { source, .. } | Self::Payload { source } => Kind::of_io(source),
        }
    }
}

pub(crate) type Result<T> = std::result::Result<T, RegistryError>;
