use std::sync::Arc;

use fault::Result;
use layers::{Layer, Layers, PinGroup};
use llb::{SourceOp, Vertex};
use oci::{Digest, Platform};
use progress::Reporter;
use session::Group;
use task::Cancel;

use crate::blob;
use crate::error::SourceError;
use crate::git::{self, GitMeta, GitSettings};
use crate::http::{self, HttpMeta};
use crate::image::{self, Chain, ImageConfig};
use crate::key::Key;
use crate::local;
use crate::memo::Memo;
use crate::scheme::{self, Scheme};

/// All sources of a worker. Clones are the same.
#[derive(Clone)]
pub struct Sources(Arc<Shared>);

pub(crate) struct Shared {
    pub layers: Layers,
    pub content: content::Store,
    pub registry: registry::Client,
    pub db: kv::Db,
    pub git: GitSettings,
    /// What vertices were pinned to, from their key to their fetch. No layer is kept here, lest it is never pruned.
    pub images: Memo<Digest, image::Pinned>,
    pub downloads: Memo<Digest, http::Pin>,
    pub commits: Memo<Digest, git::Pin>,
    /// What references were found to stand for, by session and by remote and reference.
    pub references: Memo<(String, String), git::Found>,
    pub indexes: Memo<layers::LayerId, local::Index>,
}

/// On whose behalf and under whose eyes a source is used.
#[derive(Clone)]
pub struct Context {
    pub cancel: Cancel,
    /// Of the vertex.
    pub reporter: Reporter,
    pub sessions: Group,
    /// What names stand for in the builds that use it.
    pub pins: PinGroup,
}

impl Sources {
    pub fn new(layers: Layers, content: content::Store, registry: registry::Client, db: kv::Db, git: GitSettings) -> Self {
        let (images, downloads, commits, references) = (Memo::new(256), Memo::new(256), Memo::new(256), Memo::new(256));
        let indexes = Memo::new(8);
        Self(Arc::new(Shared { layers, content, registry, db, git, images, downloads, commits, references, indexes }))
    }

    /// Pins the source and gives its key. Index 0 always asks anew what a name stands for; a further index is only asked for where
    /// [`Key::more`] said so, and is about the same pin.
    pub async fn cache_key(&self, vertex: &Vertex, op: &SourceOp, index: usize, context: &Context) -> Result<Key> {
        let (scheme, rest) = scheme::split(&op.identifier)?;
        let shared = &self.0;
        match scheme {
            Scheme::Image | Scheme::OciLayout => {
                image::key(shared, vertex, &image::Request::new(scheme, rest, &op.attrs)?, index, context).await
            }
            Scheme::Local => local::key(&local::Request::new(rest, &op.attrs)?, &context.sessions),
            Scheme::Http => http::key(shared, vertex, &http::Request::new(rest, &op.attrs)?, context).await,
            Scheme::ImageBlob | Scheme::LayoutBlob => Ok(blob::Request::new(scheme, rest, &op.attrs)?.key()),
            Scheme::Git => git::key(shared, vertex, &git::Request::new(rest, &op.attrs)?, context).await,
        }
    }

    /// Forgets what images were pinned to, and lets go of their documents.
    pub fn forget(&self) {
        self.0.images.clear();
    }

    /// The pinned content as a layer; `None` for an image without layers. Images come back lazy.
    pub async fn fetch(&self, vertex: &Vertex, op: &SourceOp, context: &Context) -> Result<Option<Layer>> {
        let (scheme, rest) = scheme::split(&op.identifier)?;
        let shared = &self.0;
        match scheme {
            Scheme::Image | Scheme::OciLayout => {
                image::fetch(shared, vertex, &image::Request::new(scheme, rest, &op.attrs)?, context).await
            }
            Scheme::Local => local::fetch(shared, &local::Request::new(rest, &op.attrs)?, context).await.map(Some),
            Scheme::Http => http::fetch(shared, vertex, &http::Request::new(rest, &op.attrs)?, context).await.map(Some),
            Scheme::ImageBlob | Scheme::LayoutBlob => {
                blob::fetch(shared, &blob::Request::new(scheme, rest, &op.attrs)?, context).await.map(Some)
            }
            Scheme::Git => git::fetch(shared, vertex, &git::Request::new(rest, &op.attrs)?, context).await.map(Some),
        }
    }

    /// What an image or OCI layout op stands for, and its config for a platform (the host's where none is given). Without `with_config` only the digest is found out.
    pub async fn image_config(
        &self,
        op: &SourceOp,
        platform: Option<&Platform>,
        with_config: bool,
        context: &Context,
    ) -> Result<ImageConfig> {
        let (scheme, rest) = scheme::split(&op.identifier)?;
        if !matches!(scheme, Scheme::Image | Scheme::OciLayout) {
            return Err(SourceError::Scheme { scheme: op.identifier.clone() }.into());
        }
        image::config(&self.0, &image::Request::new(scheme, rest, &op.attrs)?, platform, with_config, context).await
    }

    /// What is stated about the image that an op stands for on a platform (the host's where none is given), with the statements of these predicate types.
    /// `None` where nothing is.
    pub async fn attestation_chain(
        &self,
        op: &SourceOp,
        platform: Option<&Platform>,
        predicate_types: &[String],
        context: &Context,
    ) -> Result<Option<Chain>> {
        let (scheme, rest) = scheme::split(&op.identifier)?;
        match scheme {
            Scheme::Image => {
                image::chain(&self.0, &image::Request::new(scheme, rest, &op.attrs)?, platform, predicate_types, context).await
            }
            _ => Ok(None),
        }
    }

    /// What a repository holds. `objects` asks for the commit and the tag themselves.
    pub async fn git_meta(&self, op: &SourceOp, objects: bool, context: &Context) -> Result<GitMeta> {
        let (scheme, rest) = scheme::split(&op.identifier)?;
        if scheme != Scheme::Git {
            return Err(SourceError::Scheme { scheme: op.identifier.clone() }.into());
        }
        git::meta(&self.0, &git::Request::new(rest, &op.attrs)?, objects, context).await
    }

    /// What a URL holds now. `checksum` asks for a digest of the body followed by a suffix: (algorithm, suffix).
    pub async fn http_meta(&self, op: &SourceOp, checksum: Option<(&str, &[u8])>, context: &Context) -> Result<HttpMeta> {
        let (scheme, rest) = scheme::split(&op.identifier)?;
        if scheme != Scheme::Http {
            return Err(SourceError::Scheme { scheme: op.identifier.clone() }.into());
        }
        http::meta(&self.0, &http::Request::new(rest, &op.attrs)?, checksum, context).await
    }
}
