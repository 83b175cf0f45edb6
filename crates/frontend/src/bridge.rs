//! What a frontend may ask of the daemon that runs it. `job` implements it; the built-in frontend and the gateway service call it.
use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use fault::{Fault, Kind, Result};
use llb::policy::Policy;
use llb::{Graph, SourceOp};
use oci::{Digest, Platform};

use crate::attestations::Generator;

/// One build, seen from its frontend.
#[async_trait]
pub trait Bridge: Send + Sync {
    /// Facts that do not change during the build.
    fn build(&self) -> &Build;

    /// Pins a source (after source policy) without fetching it.
    async fn resolve_source(&self, request: ResolveRequest) -> Result<SourceMeta>;

    /// Solves a graph, or runs another frontend. Lazy unless [`SolveRequest::evaluate`] is set: refs come back before anything ran.
    async fn solve(&self, request: SolveRequest) -> Result<Outcome>;

    /// Says early which caches later requests will name, so that they can be read meanwhile.
    fn expect_imports(&self, _imports: &[CacheImport]) {}

    /// The graphs that the client handed to the frontend, by name.
    async fn inputs(&self) -> Result<BTreeMap<String, Arc<Graph>>>;

    async fn warn(&self, warning: progress::Warning) -> Result<()>;
}

#[derive(Debug, Clone, Default)]
pub struct Build {
    /// Frontend attributes of the request.
    pub opts: BTreeMap<String, String>,
    pub session_id: String,
    /// The default worker comes first.
    pub workers: Vec<WorkerPlatforms>,
    pub product: String,
    /// LLB capabilities that the daemon supports, such as `mergeop`.
    pub llb_caps: Caps,
    /// Gateway capabilities, such as `frontend.inputs`.
    pub gateway_caps: Caps,
    /// Whom the operator has make bills of materials where nobody is named.
    pub sbom_generator: Generator,
}

#[derive(Debug, Clone, Default)]
pub struct WorkerPlatforms {
    pub id: String,
    pub labels: BTreeMap<String, String>,
    /// Native one first.
    pub platforms: Vec<Platform>,
}

/// A set of capability ids.
#[derive(Debug, Clone, Default)]
pub struct Caps(Arc<std::collections::BTreeSet<String>>);

impl Caps {
    pub fn contains(&self, id: &str) -> bool {
        self.0.contains(id)
    }

    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl<S: Into<String>> FromIterator<S> for Caps {
    fn from_iter<I: IntoIterator<Item = S>>(ids: I) -> Self {
        Self(Arc::new(ids.into_iter().map(Into::into).collect()))
    }
}

/// A question about one source. Only the options for the op's own scheme count.
#[derive(Debug, Clone, Default)]
pub struct ResolveRequest {
    pub op: SourceOp,
    pub platform: Option<Platform>,
    /// Name of the vertex shown while resolving.
    pub log_name: String,
    /// Images: `default`, `pull` or `local`; empty is `default`.
    pub resolve_mode: String,
    /// Images: the digest is enough.
    pub no_config: bool,
    /// Images: return the attestation chain, with the blobs of these predicate types.
    pub attestation_chain: bool,
    pub resolve_attestations: Vec<String>,
    /// Git: return the commit and tag objects too.
    pub git_objects: bool,
    /// HTTP: also digest the body followed by this suffix, with this algorithm.
    pub http_checksum: Option<HttpChecksumRequest>,
    /// On top of the build's own.
    pub source_policies: Vec<Policy>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpChecksumRequest {
    /// `sha256`, `sha384` or `sha512`.
    pub algorithm: String,
    pub suffix: Bytes,
}

#[derive(Debug, Clone, Default)]
pub struct SourceMeta {
    /// The source as policy left it.
    pub op: SourceOp,
    pub image: Option<ImageMeta>,
    pub git: Option<GitMeta>,
    pub http: Option<HttpMeta>,
}

#[derive(Debug, Clone)]
pub struct ImageMeta {
    pub digest: Digest,
    /// Empty if it was not asked for.
    pub config: Bytes,
    pub attestations: Option<AttestationChain>,
}

#[derive(Debug, Clone)]
pub struct AttestationChain {
    pub root: Digest,
    pub image_manifest: Option<Digest>,
    pub attestation_manifest: Option<Digest>,
    pub signature_manifests: Vec<Digest>,
    /// Descriptor (as OCI JSON) and data, by digest.
    pub blobs: BTreeMap<Digest, (Bytes, Bytes)>,
}

#[derive(Debug, Clone, Default)]
pub struct GitMeta {
    pub checksum: String,
    pub reference: String,
    pub commit_checksum: String,
    /// Raw git objects; empty if they were not asked for.
    pub commit_object: Bytes,
    pub tag_object: Bytes,
}

#[derive(Debug, Clone)]
pub struct HttpMeta {
    pub digest: Digest,
    pub filename: String,
    /// Unix seconds.
    pub last_modified: Option<i64>,
    /// Digest and suffix of [`ResolveRequest::http_checksum`].
    pub checksum: Option<(String, Bytes)>,
}

#[derive(Debug, Clone, Default)]
pub struct SolveRequest {
    /// `None` is scratch, unless `frontend` is set.
    pub graph: Option<Arc<Graph>>,
    /// Run this frontend (`dockerfile.v0`, `gateway.v0`) instead of a graph.
    pub frontend: String,
    pub frontend_opts: BTreeMap<String, String>,
    pub frontend_inputs: BTreeMap<String, Arc<Graph>>,
    pub evaluate: bool,
    pub cache_imports: Vec<CacheImport>,
    /// On top of the build's own.
    pub source_policies: Vec<Policy>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheImport {
    pub kind: String,
    pub attrs: BTreeMap<String, String>,
}

/// A solved graph, or one on its way: it runs when somebody needs it. Paths are absolute or relative to the root.
#[async_trait]
pub trait Ref: Send + Sync {
    /// Unique within the build.
    fn id(&self) -> &str;

    /// What was asked for; lets a frontend build on it.
    fn graph(&self) -> &Arc<Graph>;

    async fn evaluate(&self) -> Result<()>;

    /// `range` is offset and length; length 0 means to the end.
    async fn read_file(&self, path: &str, range: Option<(u64, u64)>) -> Result<Bytes>;

    /// An empty `include` matches every entry.
    async fn read_dir(&self, path: &str, include: &str) -> Result<Vec<session::Stat>>;

    async fn stat_file(&self, path: &str) -> Result<session::Stat>;
}

/// What a frontend gives back.
#[derive(Clone, Default)]
pub struct Outcome {
    pub refs: Refs,
    /// `containerimage.config`, `refs.platforms`, … and what exporters define.
    pub metadata: BTreeMap<String, Bytes>,
    /// By platform id.
    pub attestations: BTreeMap<String, Vec<Attestation>>,
}

/// `None` in the place of a ref is scratch.
#[derive(Clone)]
pub enum Refs {
    Single(Option<Arc<dyn Ref>>),
    /// By platform id, such as `linux/amd64`.
    Map(BTreeMap<String, Option<Arc<dyn Ref>>>),
}

impl Default for Refs {
    fn default() -> Self {
        Self::Single(None)
    }
}

impl Outcome {
    pub fn single(reference: Option<Arc<dyn Ref>>) -> Self {
        Self { refs: Refs::Single(reference), ..Self::default() }
    }

    /// The one ref of an outcome that is not a map.
    pub fn single_ref(&self) -> Result<Option<Arc<dyn Ref>>> {
        match &self.refs {
            Refs::Single(reference) => Ok(reference.clone()),
            Refs::Map(_) => Err(Fault::new(Kind::Invalid, "failed to get single ref, map result")),
        }
    }

    /// The ref of one platform's result; that of a result which is no map is every platform's.
    pub fn reference(&self, platform_id: &str) -> Option<&Arc<dyn Ref>> {
        match &self.refs {
            Refs::Single(reference) => reference.as_ref(),
            Refs::Map(map) => map.get(platform_id).and_then(Option::as_ref),
        }
    }

    /// Every ref, those of statements too.
    pub fn every_ref(&self) -> impl Iterator<Item = &Arc<dyn Ref>> {
        let stated = self.attestations.values().flatten().filter_map(|statement| statement.reference.as_ref());
        self.all().into_iter().filter_map(|(_, reference)| reference).chain(stated)
    }

    /// Every ref with its platform id (empty for a single one).
    pub fn all(&self) -> Vec<(&str, Option<&Arc<dyn Ref>>)> {
        match &self.refs {
            Refs::Single(reference) => vec![("", reference.as_ref())],
            Refs::Map(map) => map.iter().map(|(id, reference)| (id.as_str(), reference.as_ref())).collect(),
        }
    }
}

/// A statement about a result, to be attached to it on export.
#[derive(Clone)]
pub struct Attestation {
    pub kind: AttestationKind,
    pub metadata: BTreeMap<String, Bytes>,
    /// Where the content is: a path in a ref.
    pub reference: Option<Arc<dyn Ref>>,
    pub path: String,
    pub predicate_type: String,
    pub subjects: Vec<Subject>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttestationKind {
    InToto,
    /// A directory of in-toto statements.
    Bundle,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    pub kind: SubjectKind,
    pub name: String,
    pub digests: Vec<Digest>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubjectKind {
    /// The result itself.
    Own,
    Raw,
}
