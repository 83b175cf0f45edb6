//! From a name to a manifest, a config and layers, reading what is here already from the content store.
use bytes::Bytes;
use content::Hold;
use fault::Result;
use oci::{Descriptor, Digest, Document, Manifest, Platform};

use super::origin::{Kind, Origin};
use super::request::Request;
use crate::error::SourceError;
use crate::store::Shared;

/// An image for one platform.
pub(crate) struct Pinned {
    /// What the name stands for: an index, or the manifest itself.
    pub root: Descriptor,
    pub config: Bytes,
    /// Lowest first, with their uncompressed digests.
    pub layers: Vec<(Descriptor, Digest)>,
    /// Keeps the documents in the content store for whoever asks next.
    _holds: Vec<Hold>,
}

/// How much of an image is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    Config,
    Layers,
}

/// Indexes in indexes are unusual; more than this many are refused.
const MAX_DEPTH: usize = 4;

pub(crate) async fn pin(shared: &Shared, origin: &Origin, request: &Request, platform: &Platform, depth: Depth) -> Result<Pinned> {
    let root = root(shared, origin, request).await?;
    let mut reader = Reader::new(shared, origin);
    let (manifest, config) = reader.select(&root, platform).await?;
    let layers = if depth == Depth::Layers { with_diff_ids(&manifest, &config, origin)? } else { Vec::new() };
    Ok(Pinned { root, config, layers, _holds: reader.holds })
}

/// What the name stands for. A digest whose document was read from the same place before is not asked for again.
pub(crate) async fn root(shared: &Shared, origin: &Origin, request: &Request) -> Result<Descriptor> {
    if let Some(digest) = request.reference.digest()
        && let Some(bytes) = local(shared, origin, digest).await?
        && let Ok(document) = Document::parse("", &bytes)
    {
        return Ok(Descriptor::new(document.media_type(), digest.clone(), bytes.len() as u64));
    }
    origin.resolve(&request.reference).await
}

/// Reads documents of one origin, and keeps them in the content store as long as it lives.
pub(super) struct Reader<'a> {
    shared: &'a Shared,
    origin: &'a Origin,
    holds: Vec<Hold>,
}

impl<'a> Reader<'a> {
    pub fn new(shared: &'a Shared, origin: &'a Origin) -> Self {
        Self { shared, origin, holds: Vec::new() }
    }

    /// The manifest for the platform below `root`, and its config.
    async fn select(&mut self, root: &Descriptor, platform: &Platform) -> Result<(Manifest, Bytes)> {
        // Depth first: the candidates of an index in their order, before those of the level above.
        let mut pending = vec![(root.clone(), 0)];
        while let Some((descriptor, depth)) = pending.pop() {
            match self.document(&descriptor).await? {
                Document::Index(index) => {
                    if depth >= MAX_DEPTH {
                        return Err(SourceError::Nested { digest: descriptor.digest }.into());
                    }
                    pending.extend(index.matching(platform).into_iter().rev().map(|d| (d.clone(), depth + 1)));
                }
                Document::Manifest(manifest) => {
                    let config = self.read(&manifest.config, Kind::Config).await?;
                    // A manifest that an index lists without a platform may be anything.
                    let unknown = depth > 0 && descriptor.platform.is_none();
                    let fits = |c: oci::ImageConfig| platform.rank(&c.platform()).is_some();
                    if !unknown || oci::ImageConfig::parse(&config).is_ok_and(fits) {
                        return Ok((manifest, config));
                    }
                }
            }
        }
        Err(SourceError::Platform { digest: root.digest.clone() }.into())
    }

    async fn document(&mut self, descriptor: &Descriptor) -> Result<Document> {
        let bytes = self.read(descriptor, Kind::Manifest).await?;
        let wrong = |source| SourceError::Manifest { digest: descriptor.digest.clone(), source };
        Ok(Document::parse(&descriptor.media_type, &bytes).map_err(wrong)?)
    }

    /// From the content store, or from the origin into it.
    pub async fn read(&mut self, descriptor: &Descriptor, kind: Kind) -> Result<Bytes> {
        let content = &self.shared.content;
        if let Some(bytes) = local(self.shared, self.origin, &descriptor.digest).await? {
            self.holds.extend(content.hold(&descriptor.digest)?);
            return Ok(bytes);
        }
        let bytes = self.origin.document(descriptor, kind).await?;
        let (store, data, label) = (content.clone(), bytes.clone(), self.origin.source_label());
        let hold = task::blocking(move || {
            let hold = store.put(&data)?;
            if let Some((key, repository)) = label {
                add_source(&store, hold.digest(), &key, &repository)?;
            }
            Ok(hold)
        });
        self.holds.push(hold.await?);
        Ok(bytes)
    }
}

/// A document in the content store that came from this very repository. Content from elsewhere does not count: having its digest is no proof that the
/// client may read it there, nor that its layout has it.
async fn local(shared: &Shared, origin: &Origin, digest: &Digest) -> Result<Option<Bytes>> {
    let (store, digest, label) = (shared.content.clone(), digest.clone(), origin.source_label());
    task::blocking(move || {
        let Some(size) = store.has(&digest)? else { return Ok(None) };
        let Some((key, repository)) = label else { return Ok(None) };
        let known = store.label(&digest, &key)?.unwrap_or_default();
        if !known.split(',').any(|r| r == repository) {
            return Ok(None);
        }
        if size > registry::MAX_MANIFEST * 4 {
            return Ok(None);
        }
        match store.read(&digest) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(content::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    })
    .await
}

fn add_source(store: &content::Store, digest: &Digest, key: &str, repository: &str) -> Result<()> {
    let known = store.label(digest, key)?.unwrap_or_default();
    let mut all: Vec<&str> = known.split(',').filter(|r| !r.is_empty()).collect();
    if !all.contains(&repository) {
        all.push(repository);
        all.sort_unstable();
        store.set_label(digest, key, &all.join(","));
    }
    Ok(())
}

fn with_diff_ids(manifest: &Manifest, config: &[u8], origin: &Origin) -> Result<Vec<(Descriptor, Digest)>> {
    let parsed = oci::ImageConfig::parse(config).map_err(|source| SourceError::Config { source })?;
    let diff_ids = parsed.rootfs.diff_ids;
    if diff_ids.len() != manifest.layers.len() {
        return Err(SourceError::Mismatched { diff_ids: diff_ids.len(), layers: manifest.layers.len() }.into());
    }
    let label = origin.source_label();
    let described = manifest.layers.iter().map(|layer| {
        let mut layer = layer.clone();
        layer.annotations.extend(label.clone());
        layer
    });
    Ok(described.zip(diff_ids).collect())
}
