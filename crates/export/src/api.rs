//! What every exporter takes and gives.
use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use content::Hold;
use fault::{Fault, Kind, Result};
use futures_core::future::BoxFuture;
use layers::{Compression, Layer};
use oci::{Descriptor, Digest, Platform};
use progress::Reporter;
use session::{Group, Session};
use task::Cancel;

/// A result, ready to leave.
#[derive(Clone, Default)]
pub struct Source {
    /// One entry, or one for each platform in the order of `refs.platforms`. Platforms are normalized.
    pub results: Vec<PlatformResult>,
    /// Whether the frontend gave a map (several platforms, or one that asked to be treated so).
    pub is_map: bool,
    /// What the frontend said of the result. Read here: `containerimage.config[/<platform id>]`, `containerimage.base.config[/…]`,
    /// `source.date.epoch[/…]`, `image.name`, `annotation….`; and `containerimage.inlinecache[/…]`, the inline cache to put into configs.
    pub metadata: BTreeMap<String, Bytes>,
    /// Statements about each platform's result, by platform id.
    pub attestations: BTreeMap<String, Vec<Statement>>,
    /// Who writes the caches that images carry, where they are to.
    pub inline_cache: Option<Arc<dyn CacheAuthor>>,
}

#[derive(Clone)]
pub struct PlatformResult {
    /// The platform id, such as `linux/amd64`.
    pub id: String,
    pub platform: Platform,
    /// `None` is scratch.
    pub layer: Option<Layer>,
}

/// A statement about a result.
#[derive(Clone)]
pub struct Statement {
    pub predicate_type: String,
    pub predicate: Predicate,
    /// File name in local and tar results, such as `provenance.json`.
    pub path: String,
    /// Only attached where the exporter keeps such statements (`attestation-inline`).
    pub inline_only: bool,
    /// Empty: the result itself.
    pub subjects: Vec<Subject>,
    /// The name of the document, among a scanner's, that is about the result as a whole.
    pub sbom_core: Option<String>,
}

/// JSON, or who writes it.
#[derive(Clone)]
pub enum Predicate {
    Given(Bytes),
    /// Asked once the result's layers are packed.
    Late(Arc<dyn Author>),
}

/// What a statement is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// The result itself, under another name as well if there is one.
    Own { name: String },
    /// Something else. Without a name it is called `_`.
    Raw { name: String, digests: Vec<Digest> },
}

/// Writes a predicate that tells of the export too.
#[async_trait]
pub trait Author: Send + Sync {
    async fn predicate(&self) -> Result<Bytes>;
}

/// Writes the cache that an image carries in its config.
#[async_trait]
pub trait CacheAuthor: Send + Sync {
    /// Asked once the layers of the platform's image are packed as `compression` says. `diff_ids` are theirs, lowest first. `None`: nothing of
    /// it can be used again.
    async fn cache(&self, id: &str, diff_ids: &[Digest], compression: Compression, reporter: &Reporter) -> Result<Option<Bytes>>;
}

impl Predicate {
    pub(crate) async fn json(&self) -> Result<Bytes> {
        match self {
            Self::Given(json) => Ok(json.clone()),
            Self::Late(author) => author.predicate().await,
        }
    }
}

/// Where an export happens.
#[derive(Clone)]
pub struct Context {
    pub cancel: Cancel,
    /// Of the export's own vertex.
    pub reporter: Reporter,
    /// For credentials.
    pub sessions: Group,
    /// The client that asked, for results that go to it.
    pub session: Option<Arc<dyn Session>>,
    /// Position among the build's exporters; clients match uploads by it.
    pub index: usize,
}

const SEND: &str = "/moby.filesync.v1.FileSend/diffcopy";

impl Context {
    /// The client, if it is there.
    pub(crate) fn session(&self) -> Result<&Arc<dyn Session>> {
        self.session
            .as_ref()
            .ok_or_else(|| Fault::new(Kind::NotFound, "no active session to export to: the client has gone, or opened none"))
    }

    /// The client, if it is there and takes files.
    pub(crate) fn receiver(&self) -> Result<&Arc<dyn Session>> {
        let session = self.session()?;
        if !session.supports(SEND) {
            return Err(Fault::new(Kind::Unimplemented, format!("method {SEND} not supported by the client")));
        }
        Ok(session)
    }
}

#[async_trait]
pub trait Exporter: Send + Sync {
    /// Name of the export's vertex.
    fn name(&self) -> &'static str;

    async fn export(&self, source: &Source, context: &Context) -> Result<Exported>;
}

/// What an exporter did, and what is left to do once all exporters of the build are done (pushes).
#[derive(Default)]
pub struct Exported {
    pub response: BTreeMap<String, String>,
    /// The image, for the build's record.
    pub descriptor: Option<Descriptor>,
    /// Keeps the image's documents in the content store.
    pub holds: Vec<Hold>,
    pub finalize: Option<BoxFuture<'static, Result<()>>>,
}
