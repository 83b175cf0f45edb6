//! From a kind and attributes to a place.
use std::collections::BTreeMap;

use fault::{Context as _, Fault, Kind, Result};
use layers::Layers;
use oci::{Digest, gojson};
use registry::Client;

use super::attrs::Attrs;
use super::exporter::{Exporter, Importer};
use super::inline::InlineCache;
use super::object::{Environment, Stores};
use super::{local, registry_cache};

/// Knows every kind of cache location.
#[derive(Clone)]
pub struct Remotes {
    layers: Layers,
    client: Client,
    stores: Stores,
}

impl Remotes {
    /// `environment` is what object stores may take their defaults and credentials from.
    pub fn new(layers: Layers, client: Client, environment: Environment) -> Self {
        let stores = Stores { layers: layers.clone(), client: client.clone(), environment: environment.into() };
        Self { layers, client, stores }
    }

    /// Bad attributes fail here, before any work is done. Not for `inline`, which is the business of images ([`Remotes::inline`]).
    pub fn exporter(&self, kind: &str, attrs: &BTreeMap<String, String>) -> Result<Exporter> {
        let attrs = Attrs::new(attrs);
        let exporter = match kind {
            "registry" => registry_cache::exporter(&attrs, &self.layers, &self.client),
            "local" => local::exporter(&attrs, &self.layers),
            _ => match self.stores.exporter(kind, &attrs).transpose() {
                Some(exporter) => exporter,
                None => return Err(Fault::new(Kind::Invalid, format!("unknown cache exporter: {kind:?}"))),
            },
        };
        exporter.with_context(|| format!("failed to configure {kind} cache exporter"))
    }

    pub fn importer(&self, kind: &str, attrs: &BTreeMap<String, String>) -> Result<Box<dyn Importer>> {
        let attrs = Attrs::new(attrs);
        let importer: Result<Box<dyn Importer>> = match kind {
            "registry" => registry_cache::importer(&attrs, &self.layers, &self.client).map(boxed),
            "local" => local::importer(&attrs, &self.layers).map(boxed),
            _ => match self.stores.importer(kind, &attrs).transpose() {
                Some(importer) => importer.map(boxed),
                None => return Err(Fault::new(Kind::Invalid, format!("unknown cache importer: {kind}"))),
            },
        };
        importer.with_context(|| format!("failed to configure {kind} cache importer"))
    }

    pub fn inline(&self) -> InlineCache {
        InlineCache { layers: self.layers.clone() }
    }
}

fn boxed(importer: impl Importer + 'static) -> Box<dyn Importer> {
    Box::new(importer)
}

/// What users see of an import.
pub fn name_of(kind: &str, attrs: &BTreeMap<String, String>) -> String {
    match attrs.get("ref").filter(|r| kind == "registry" && !r.is_empty()) {
        Some(reference) => reference.clone(),
        None => {
            let digest = Digest::of(gojson::to_vec(attrs));
            let number = u64::from_str_radix(&digest.hex()[..16], 16).unwrap_or_default();
            format!("{kind}:{number}")
        }
    }
}
