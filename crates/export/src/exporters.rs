use std::collections::BTreeMap;

use content::Store;
use fault::{Fault, Result};
use registry::Client;

use crate::api::Exporter;
use crate::attrs::Attrs;
use crate::image::{ArchiveExporter, ImageExporter};
use crate::local::LocalExporter;
use crate::tarball::TarExporter;

/// Knows every kind of exporter.
#[derive(Clone)]
pub struct Exporters {
    store: Store,
    client: Client,
}

impl Exporters {
    /// `store` is where layers have their blobs and where images go.
    pub fn new(store: Store, client: Client) -> Self {
        Self { store, client }
    }

    /// Bad attributes fail here, before any work is done. `compatibility` decides defaults; it is 30 unless the client asks for older ones.
    pub fn resolve(&self, kind: &str, attrs: &BTreeMap<String, String>, compatibility: u32) -> Result<Box<dyn Exporter>> {
        let attrs = Attrs::new(attrs);
        let store = self.store.clone();
        Ok(match kind {
            "image" => Box::new(ImageExporter::resolve(attrs, compatibility, store, self.client.clone())?),
            "oci" => Box::new(ArchiveExporter::resolve(attrs, compatibility, store, false)?),
            "docker" => Box::new(ArchiveExporter::resolve(attrs, compatibility, store, true)?),
            "local" => Box::new(LocalExporter::resolve(attrs)?),
            "tar" => Box::new(TarExporter::resolve(attrs)?),
            _ => return Err(Fault::new(fault::Kind::NotFound, format!("exporter {kind:?} could not be found"))),
        })
    }
}
