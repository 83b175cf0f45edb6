//! What every kind of cache location can do.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use fault::Result;
use layers::{Compression, Layer};
use oci::{Descriptor, Digest};
use progress::Reporter;
use session::{Group, Session};
use solver::{CacheId, Key};
use task::Cancel;

use super::attrs::OnError;
use super::chains::{Chains, Marshaled, Piece};
use super::collect::{Collector, Mode};
use super::document::CacheConfig;
use super::import::RemoteCache;
use crate::Caches;

/// Where an export or an import happens.
#[derive(Clone)]
pub struct Context {
    pub cancel: Cancel,
    /// Of the export's or import's own vertex.
    pub reporter: Reporter,
    /// For credentials.
    pub sessions: Group,
    /// The client that asked, for caches in its directories.
    pub session: Option<Arc<dyn Session>>,
}

/// What is exported.
pub struct Subject<'a> {
    /// What each of the build's results is known by.
    pub keys: &'a [Vec<Key>],
    pub caches: &'a Caches,
    /// The imported caches that the build used.
    pub imports: &'a BTreeSet<CacheId>,
}

/// A place where caches are written.
pub struct Exporter {
    pub(super) name: &'static str,
    pub(super) mode: Mode,
    pub(super) compression: Compression,
    pub(super) on_error: OnError,
    pub(super) layers: layers::Layers,
    pub(super) target: Box<dyn Target>,
}

/// How a cache gets to one kind of place.
#[async_trait]
pub(super) trait Target: Send + Sync {
    /// Sends what is not there. Returns what the client is told.
    async fn send(&self, cache: Outgoing, context: &Context) -> Result<BTreeMap<String, String>>;
}

/// A cache that is ready to leave.
pub(super) struct Outgoing {
    pub config: CacheConfig,
    pub blobs: BTreeMap<Digest, Piece<Layer>>,
}

impl Outgoing {
    /// The layers' blobs in the order of the config, each once.
    pub fn distinct(&self) -> Vec<Piece<Layer>> {
        self.blobs.values().cloned().collect()
    }

    /// The layers' descriptors in the order of the config.
    pub fn descriptors(&self) -> Vec<Descriptor> {
        self.config.layers.iter().filter_map(|l| Some(self.blobs.get(&l.blob)?.descriptor.clone())).collect()
    }
}

impl Exporter {
    /// Name of the export's vertex.
    pub fn name(&self) -> &'static str {
        self.name
    }

    pub fn on_error(&self) -> OnError {
        self.on_error
    }

    /// Exports everything that leads to the subject's results.
    pub async fn export(&self, subject: &Subject<'_>, context: &Context) -> Result<BTreeMap<String, String>> {
        let outgoing = {
            let _row = context.reporter.row("preparing build cache for export", "", 0);
            let chains = gather(subject, &self.layers, self.compression, self.mode, context).await?;
            let Marshaled { config, blobs } = chains.marshal();
            Outgoing { config, blobs }
        };
        let _row = context.reporter.row("sending cache export", "", 0);
        if outgoing.config.layers.is_empty() {
            tracing::warn!("failed to match any cache with layers");
            drop(context.reporter.row("skipping cache export for empty result", "", 0));
            return Ok(BTreeMap::new());
        }
        context.cancel.run(self.target.send(outgoing, context)).await
    }
}

pub(super) async fn gather(
    subject: &Subject<'_>,
    layers: &layers::Layers,
    compression: Compression,
    mode: Mode,
    context: &Context,
) -> Result<Chains<Layer>> {
    let collector = Collector {
        caches: subject.caches.clone(),
        imports: subject.imports.clone(),
        layers: layers.clone(),
        compression,
        mode,
        sessions: context.sessions.clone(),
        cancel: context.cancel.clone(),
        reporter: context.reporter.clone(),
    };
    let mut chains = Chains::default();
    for keys in subject.keys {
        collector.collect(keys, &mut chains).await?;
    }
    Ok(chains)
}

/// Caches found at one place; images for several platforms have several.
pub type Found = Vec<Arc<RemoteCache>>;

/// A place where caches are read.
#[async_trait]
pub trait Importer: Send + Sync {
    /// Reads the keys; blobs stay where they are.
    async fn import(&self, context: &Context) -> Result<Found>;
}
