use kv::Batch;
use oci::{Descriptor, Digest, Timestamp};
use snapshot::{MountSpec, Top, TreeId};

use crate::LayerId;
use crate::error::Result;
use crate::node::{Kind, Layer};
use crate::record::META;
use crate::store::meta_key;

impl Layer {
    pub fn id(&self) -> LayerId {
        self.0.id
    }

    /// The layers this one is made on or of.
    pub fn parents(&self) -> Vec<Layer> {
        self.0.parents().into_iter().map(|node| Layer::glance(node.clone())).collect()
    }

    pub fn description(&self) -> String {
        self.0.state().description.clone()
    }

    pub fn created_at(&self) -> Timestamp {
        self.0.created
    }

    /// As clients name it: `regular`, `internal`, `frontend`, `source.local`, `source.git.checkout`, `exec.cachemount`.
    pub fn record_type(&self) -> &str {
        if self.0.record_type.is_empty() { "regular" } else { &self.0.record_type }
    }

    /// The members of the image that this layer is: each layer with a diff of its own, lowest first.
    pub fn chain(&self) -> Vec<Layer> {
        self.0.chain().into_iter().map(|element| Layer::glance(element.node)).collect()
    }

    /// The digest of the layer's own uncompressed tar, if it was ever computed or came with an image.
    pub fn diff_id(&self) -> Option<Digest> {
        self.0.state().diff_id.clone()
    }

    /// Blobs known to hold this layer's diff; the first is the one to export.
    pub fn known_blobs(&self) -> Vec<Descriptor> {
        self.0.state().blobs.clone()
    }

    /// The blobs of the image that this layer is, lowest first, if all of it is packed by now; of a layer that was only packed with other times,
    /// the last such blob.
    pub fn packed(&self) -> Option<Vec<Descriptor>> {
        // What lies on top is packed last and mostly tells at once: chains may be thousands of layers long.
        let first = |layer: &Layer| {
            let own = layer.0.state().blobs.first().cloned();
            own.or_else(|| layer.last_retimed())
        };
        if matches!(self.0.kind, Kind::Layer { .. }) && first(self).is_none() {
            return None;
        }
        self.chain().iter().map(first).collect()
    }

    /// Whether the files of this layer and all below it are here.
    pub fn is_realized(&self) -> bool {
        self.0.is_whole() || self.0.stack().is_ok()
    }

    /// Blobs that [`Layer::realize`] would need and cannot get: they are neither here nor is it known where they are. Not empty only for
    /// layers that came back from the database lazy; going through their source again cures them.
    pub fn missing(&self) -> Result<Vec<Digest>> {
        let mut missing = Vec::new();
        if self.0.is_whole() {
            return Ok(missing);
        }
        for element in self.0.chain() {
            let state = element.node.state();
            let (None, None, Some(blob)) = (&state.tree, &state.source, state.blobs.first()) else { continue };
            if self.0.home.content().has(&blob.digest)?.is_none() {
                missing.push(blob.digest.clone());
            }
        }
        Ok(missing)
    }

    /// The trees to stack, lowest first. Fails if the layer is not realized.
    pub fn stack(&self) -> Result<Vec<TreeId>> {
        self.0.stack()
    }

    /// How to mount this layer read-only. Fails if it is not realized.
    pub fn mount_spec(&self) -> Result<MountSpec> {
        Ok(self.0.home.trees().mount_spec(&crate::flatten::shallow(&self.0)?, Top::ReadOnly)?)
    }

    /// A small record attached to this layer, removed with it.
    pub fn meta_get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.0.home.0.db.get(&META, meta_key(&self.0.id, key).as_slice())?)
    }

    pub fn meta_put(&self, key: &str, value: &[u8]) {
        let mut batch = Batch::new();
        batch.put(&META, meta_key(&self.0.id, key).as_slice(), &value.to_vec());
        self.0.home.0.db.submit(batch);
    }

    pub fn set_description(&self, description: &str) {
        self.0.home.change(&self.0, |state| state.description = description.to_owned());
    }
}
