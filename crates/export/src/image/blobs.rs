//! Where the blobs of an image are, and how they come here.
use std::collections::BTreeMap;

use content::{Hold, Store};
use fault::{Fault, Result};
use futures_util::future::try_join_all;
use layers::Layer;
use oci::Digest;
use progress::Reporter;
use task::Cancel;

use crate::image::assemble::Image;

/// The content store, and the layers that know where blobs are that it lacks.
#[derive(Clone)]
pub struct Blobs {
    store: Store,
    layers: BTreeMap<Digest, Layer>,
}

impl Blobs {
    pub fn new(store: Store, layers: BTreeMap<Digest, Layer>) -> Self {
        Self { store, layers }
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Keeps the blob here, downloading it if need be.
    pub async fn hold(&self, digest: &Digest, cancel: &Cancel, reporter: &Reporter) -> Result<Hold> {
        if let Some(hold) = self.store.hold(digest)? {
            return Ok(hold);
        }
        match self.layers.get(digest) {
            Some(layer) => layer.fetch_blob(digest, cancel, reporter).await,
            None => Err(content::Error::NotFound { digest: digest.clone() }.into()),
        }
    }

    /// [`Blobs::hold`] for everything that an image names.
    pub async fn hold_all(&self, image: &Image, cancel: &Cancel, reporter: &Reporter) -> Result<Vec<Hold>, Fault> {
        let digests: std::collections::BTreeSet<&Digest> = image.documents().flat_map(|d| d.blobs.iter().map(|b| &b.digest)).collect();
        try_join_all(digests.into_iter().map(|digest| self.hold(digest, cancel, reporter))).await
    }
}
