use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_core::Stream;
use kv::Json;
use oci::{Descriptor, Digest, Timestamp};
use progress::Reporter;

use crate::error::Result;
use crate::node::{Kind, Layer, State};
use crate::record::BLOB_CHAINS;
use crate::store::{Layers, Loaded};
use crate::{LayerId, Properties};

/// One layer of an image or of an imported cache.
#[derive(Debug, Clone)]
pub struct ImageLayer {
    pub descriptor: Descriptor,
    /// Digest of the uncompressed tar, as the image's config says.
    pub diff_id: Digest,
    /// Now, if not given.
    pub created: Option<Timestamp>,
    pub properties: Properties,
}

pub type ByteStream = Pin<Box<dyn Stream<Item = fault::Result<Bytes>> + Send>>;

/// Where the blobs of lazy layers come from: a registry with the client's credentials, an OCI layout at the client, …
#[async_trait]
pub trait BlobSource: Send + Sync + 'static {
    /// The bytes of `blob` from `offset` on. A failure with a retryable kind, also in the stream, is tried again from where it came to.
    async fn fetch(&self, blob: &Descriptor, offset: u64) -> fault::Result<ByteStream>;

    /// Whose work the download is: the vertex of the source, even if a later step asks for the files. By default the asker's.
    fn reporter(&self) -> Option<Reporter> {
        None
    }
}

impl Layers {
    /// The layer that the last of `layers` (lowest first) is, its files and blobs still elsewhere. Layers that are known already, by the
    /// blobs and diff ids of their whole chain, are used again; `source` then serves what they miss. `None` for an image without layers.
    pub fn from_image(&self, layers: Vec<ImageLayer>, source: Arc<dyn BlobSource>) -> Result<Option<Layer>> {
        let mut below: Option<Layer> = None;
        let mut chains: Option<(Digest, Digest)> = None;
        for layer in layers {
            let blob_id = chained(&layer.descriptor.digest, &layer.diff_id);
            let (chain_id, blob_chain_id) = match &chains {
                None => (layer.diff_id.clone(), blob_id),
                Some((chain, blob_chain)) => (chained(chain, &layer.diff_id), chained(blob_chain, &blob_id)),
            };
            let known = self.by_blob_chain(&blob_chain_id)?;
            let next = match known {
                Some(known) => known,
                None => self.add_image_layer(below.as_ref(), layer, &chain_id, &blob_chain_id),
            };
            let blob = next.0.state().blobs.first().map(|blob| blob.digest.clone());
            let here = blob.map_or(Ok(None), |blob| self.content().has(&blob))?.is_some();
            // A source keeps sessions and connections: no longer than needed. A blob that is here may still turn out to be damaged.
            let mut state = next.0.state();
            state.source = (!here || state.tree.is_none()).then(|| source.clone());
            drop(state);
            chains = Some((chain_id, blob_chain_id));
            below = Some(next);
        }
        Ok(below)
    }

    fn by_blob_chain(&self, blob_chain_id: &Digest) -> Result<Option<Layer>> {
        let mut loaded = Loaded::default();
        // Under the lock, so that no prune comes between looking it up and keeping it.
        let mut live = self.live();
        let Some(Json(id)) = self.0.db.get::<_, Json<LayerId>>(&BLOB_CHAINS, blob_chain_id.as_str())? else { return Ok(None) };
        let node = self.load(&mut live, &id, &mut loaded)?;
        drop(live);
        Ok(node.map(Layer::over))
    }

    fn add_image_layer(&self, parent: Option<&Layer>, layer: ImageLayer, chain_id: &Digest, blob_chain_id: &Digest) -> Layer {
        let state = State {
            blobs: vec![layer.descriptor],
            diff_id: Some(layer.diff_id),
            chain_id: Some(chain_id.clone()),
            blob_chain_id: Some(blob_chain_id.clone()),
            ..State::default()
        };
        let kind = Kind::Layer { parent: parent.map(|p| p.0.clone()) };
        Layer::over(self.create(kind, layer.properties, layer.created, state))
    }
}

/// The id of a chain with one more link, as the OCI image specification has it.
pub(crate) fn chained(below: &Digest, next: &Digest) -> Digest {
    Digest::of(format!("{below} {next}"))
}
