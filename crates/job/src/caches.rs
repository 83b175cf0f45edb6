//! The caches that a build brought with it, and those that it leaves behind.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use cache::Import;
use cache::remote::{self, Context, Exporter, OnError, Subject};
use engine::Engine;
use fault::{Context as _, Fault, Result};
use frontend::bridge::CacheImport;
use oci::Digest;
use progress::Reporter;
use solver::{CacheId, Key};
use tokio::sync::watch;

use crate::api::Typed;
use crate::build::Build;

/// The imports of one build, each read once however often it is asked for.
#[derive(Default)]
pub struct Imports(Mutex<HashMap<String, Arc<Importing>>>);

/// An import on its way.
pub struct Importing {
    /// What graphs name it by.
    pub cache: CacheId,
    found: watch::Receiver<Option<BTreeSet<CacheId>>>,
}

impl Importing {
    /// What it gave, once it was read. `None`: it came to its end before.
    pub async fn arrived(&self) -> Option<BTreeSet<CacheId>> {
        self.found.clone().wait_for(Option::is_some).await.ok()?.clone()
    }
}

/// Says that an import has come to its end, however it ends: builds wait for that.
struct Arrival {
    engine: Engine,
    cache: CacheId,
    found: BTreeSet<CacheId>,
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.engine.arrived(self.cache, std::mem::take(&mut self.found));
    }
}

impl Build {
    /// Starts reading caches that are not being read yet.
    pub(crate) fn import(self: &Arc<Self>, wanted: &[CacheImport]) -> Vec<Arc<Importing>> {
        wanted.iter().map(|import| self.import_one(import)).collect()
    }

    fn import_one(self: &Arc<Self>, import: &CacheImport) -> Arc<Importing> {
        let name = remote::name_of(&import.kind, &import.attrs);
        let mut all = self.imports.0.lock().expect("no holder of this lock panics");
        if let Some(importing) = all.get(&name) {
            return importing.clone();
        }
        let engine = self.worker.engine().clone();
        let (sender, found) = watch::channel(None);
        let importing = Arc::new(Importing { cache: engine.expect(), found });
        all.insert(name.clone(), importing.clone());
        let (build, import, cache) = (self.clone(), import.clone(), importing.cache);
        task::spawn("cache import", async move {
            let mut arrival = Arrival { engine, cache, found: BTreeSet::new() };
            arrival.found = build.read_cache(&name, &import).await;
            sender.send_replace(Some(arrival.found.clone()));
        });
        importing
    }

    /// Without the cache the build is slower, but a build.
    async fn read_cache(&self, name: &str, import: &CacheImport) -> BTreeSet<CacheId> {
        let title = format!("importing cache manifest from {name}");
        let reading = self.in_vertex(self.vertex_digest(&title), &title, async |reporter| {
            let importer = self.worker.remotes().importer(&import.kind, &import.attrs)?;
            let context = self.cache_context(reporter).await?;
            self.cancel.run(importer.import(&context)).await
        });
        match reading.await {
            Ok(found) => {
                let caches = self.worker.engine().caches();
                let ids: BTreeSet<CacheId> =
                    found.into_iter().filter(|c| !c.is_empty()).map(|cache| caches.add(cache as Arc<dyn Import>)).collect();
                // The build may have ended meanwhile; then nobody else takes them out.
                if self.cancel.is_cancelled() {
                    ids.iter().for_each(|id| caches.remove(*id));
                    return BTreeSet::new();
                }
                ids
            }
            Err(fault) => {
                tracing::debug!(cache = name, %fault, "a cache could not be imported");
                BTreeSet::new()
            }
        }
    }

    pub(crate) async fn cache_context(&self, reporter: Reporter) -> Result<Context> {
        let session = self.session().await?;
        Ok(Context { cancel: self.cancel.child(), reporter, sessions: self.group.clone(), session })
    }

    /// What imports that were read gave.
    pub(crate) fn imported(&self) -> BTreeSet<CacheId> {
        let all = self.imports.0.lock().expect("no holder of this lock panics");
        all.values().flat_map(|importing| importing.found.borrow().clone().unwrap_or_default()).collect()
    }

    /// Nobody looks into the build's caches any more.
    pub(crate) fn drop_imports(&self) {
        let engine = self.worker.engine();
        self.imported().into_iter().for_each(|id| engine.caches().remove(id));
        let all = self.imports.0.lock().expect("no holder of this lock panics");
        all.values().for_each(|importing| engine.dismiss(importing.cache));
    }
}

/// The caches that a build is to leave behind.
pub struct Exports {
    pub remote: Vec<Exporter>,
    /// Images get theirs inside.
    pub inline: bool,
}

impl Exports {
    /// Bad attributes fail before anything runs.
    pub fn resolve(build: &Build) -> Result<Self> {
        let wanted = &build.request.cache_exports;
        let inline = wanted.iter().any(|w| w.kind == "inline");
        let rest: Vec<&Typed> = wanted.iter().filter(|w| w.kind != "inline").collect();
        let twice: BTreeSet<&str> =
            rest.iter().enumerate().filter(|(n, a)| rest[..*n].iter().any(|b| is_same(a, b))).map(|(_, a)| a.kind.as_str()).collect();
        if !twice.is_empty() {
            let kinds: Vec<&str> = twice.into_iter().collect();
            return Err(Fault::invalid(format!("duplicate cache exports [{}]", kinds.join(" "))));
        }
        let remotes = build.worker.remotes();
        let remote = rest.into_iter().map(|w| remotes.exporter(&w.kind, &w.attrs)).collect::<Result<_>>()?;
        Ok(Self { remote, inline })
    }
}

fn is_same(a: &Typed, b: &Typed) -> bool {
    let reference = |t: &Typed| t.attrs.get("ref").filter(|r| !r.is_empty()).cloned();
    match (a.kind.as_str(), reference(a), reference(b)) {
        ("registry", Some(one), Some(other)) if b.kind == "registry" => one == other,
        _ => a == b,
    }
}

/// Exports one cache as a vertex of its own.
pub async fn export(build: &Build, exporter: &Exporter, index: usize, keys: &[Vec<Key>]) -> Result<BTreeMap<String, String>> {
    let digest = Digest::of(format!("{}-cache-{index}", build.request.session));
    let exported = build
        .in_vertex(digest, exporter.name(), async |reporter| {
            let context = build.cache_context(reporter.clone()).await?;
            let imports = build.imported();
            let subject = Subject { keys, caches: build.worker.engine().caches(), imports: &imports };
            let outcome = exporter.export(&subject, &context).await;
            if let (Err(fault), OnError::Warn) = (&outcome, exporter.on_error()) {
                reporter.warn(format!("the cache was not exported: {fault}"), Vec::new());
            }
            outcome
        })
        .await;
    match (exported, exporter.on_error()) {
        (Err(fault), OnError::Fail) => Err(fault),
        (Err(fault), _) if build.cancel.is_cancelled() => Err(fault),
        (Err(fault), _) => {
            tracing::warn!(%fault, "{} failed", exporter.name());
            Ok(BTreeMap::new())
        }
        (Ok(response), _) => Ok(response),
    }
}

/// The inline cache for an image of one result, whose layers have these diff ids.
pub async fn inline(
    build: &Build,
    keys: &[Key],
    diff_ids: &[Digest],
    compression: layers::Compression,
    reporter: &Reporter,
) -> Result<Option<bytes::Bytes>> {
    let context = build.cache_context(reporter.clone()).await?;
    let imports = build.imported();
    let subject = Subject { keys: &[keys.to_vec()], caches: build.worker.engine().caches(), imports: &imports };
    build.worker.remotes().inline().of(&subject, diff_ids, compression, &context).await.context("failed to make the inline cache")
}
