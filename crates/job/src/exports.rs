//! From a result to what the client asked for: exporters, pushes, the response.
use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use engine::Built;
use export::{CacheAuthor, Context as ExportContext, Exported, Exporter, PlatformResult, Source};
use fault::{Fault, Result};
use frontend::Outcome;
use layers::{Compression, Layer};
use oci::Digest;
use progress::{Reporter, Sink as _, Update, Warning};
use session::Session;
use solver::Key;

use crate::api::{Response, Typed};
use crate::attest::{self, Attests};
use crate::build::{Build, response_metadata};
use crate::caches::{self, Exports};
use crate::platforms::{self, Named};
use crate::provenance::{self, Captured};

/// Solves every ref of the outcome, exports it and the caches, and gives the response. `exporters` are those of the request.
pub async fn run(
    build: &Arc<Build>,
    outcome: Outcome,
    wanted: &Attests,
    exporters: Vec<Box<dyn Exporter>>,
    caches: Exports,
) -> Result<Response> {
    let results = evaluate(build, &outcome).await?;
    let captured = provenance::captured(build, &outcome)?;
    let response = leave(build, Solved { outcome, results, captured: &captured }, wanted, exporters, caches).await;
    // Last, for it tells when the build ended and which layers were packed; and also where an export failed.
    if !build.request.internal
        && let Err(fault) = provenance::record(build, &captured).await
    {
        tracing::error!(%fault, build = build.request.id, "the build's provenance is missing in the history");
    }
    response
}

/// What a frontend gave back, with all its refs solved.
struct Solved<'a> {
    outcome: Outcome,
    /// By platform id.
    results: BTreeMap<String, Built>,
    captured: &'a Captured,
}

async fn leave(
    build: &Arc<Build>,
    solved: Solved<'_>,
    wanted: &Attests,
    mut exporters: Vec<Box<dyn Exporter>>,
    caches: Exports,
) -> Result<Response> {
    let Solved { mut outcome, results, captured } = solved;
    // The history tells of it even if nothing leaves.
    build.findings.metadata(&outcome.metadata);
    let session = build.session().await?;
    let keys: Vec<Vec<Key>> = results.values().map(|built| built.keys.clone()).collect();
    attest::scan(build, &mut outcome, wanted).await?;
    attest::evaluate(build, &outcome).await?;
    let provenance = match &wanted.provenance {
        Some(options) => provenance::attest(build, captured, &platforms::of(&outcome)?, options)?,
        None => BTreeMap::new(),
    };
    exporters.extend(session_exporters(build, session.as_ref(), &outcome).await?);
    warn(build, &outcome, (!exporters.is_empty()).then(|| vertex_of(build, 0)).as_ref()).await?;
    let mut response = response_metadata(&outcome.metadata);
    let mut finalizers = Vec::new();
    // Manifests and configs stay until they are pushed.
    let mut holds = Vec::new();
    if !exporters.is_empty() {
        let inline = caches.inline.then(|| results.iter().map(|(id, built)| (id.clone(), built.keys.clone())).collect());
        let layers = results.into_iter().map(|(id, built)| (id, built.layer)).collect();
        let mut source = source(layers, &outcome, platforms::of(&outcome)?)?;
        source.attestations = attest::statements(build, &outcome, provenance).await?;
        source.inline_cache = inline.map(|keys| Arc::new(InlineCaches { build: build.clone(), keys }) as _);
        let mut running = Vec::new();
        for (index, exporter) in exporters.into_iter().enumerate() {
            running.push(export(build, session.clone(), exporter, &source, index));
        }
        for (index, exported) in join_all(running).await.into_iter().enumerate() {
            let (exported, digest, name) = exported?;
            exported.descriptor.iter().for_each(|descriptor| build.findings.exported(index, descriptor));
            response.extend(exported.response);
            // The same vertex goes on: it is shown as running again.
            finalizers.extend(exported.finalize.map(|finish| build.in_vertex(digest, name, async move |_| finish.await)));
            holds.push(exported.holds);
        }
    }
    // Caches leave beside the images; both find the blobs that the exporters made.
    let cached = join_all(caches.remote.iter().enumerate().map(|(index, exporter)| caches::export(build, exporter, index, &keys)));
    let (finished, cached) = tokio::join!(join_all(finalizers), cached);
    finished.into_iter().collect::<Result<()>>()?;
    for exported in cached {
        response.extend(exported?);
    }
    if let (Some(session), true) = (&session, build.request.session_exporters) {
        match session.finalize_export(&response).await {
            Err(fault) if fault.kind() != fault::Kind::Unimplemented => return Err(fault),
            _ => {}
        }
    }
    Ok(Response { exporter: response })
}

/// Waits for all; the futures run side by side on this task.
async fn join_all<T>(futures: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
    futures_util::future::join_all(futures).await
}

/// The exporters of the request. Bad attributes fail here, before any work.
pub fn resolve(build: &Build) -> Result<Vec<Box<dyn Exporter>>> {
    build.request.exporters.iter().map(|typed| resolve_one(build, typed.clone())).collect()
}

fn resolve_one(build: &Build, mut typed: Typed) -> Result<Box<dyn Exporter>> {
    let epoch = build.attrs().get("build-arg:SOURCE_DATE_EPOCH").filter(|v| v.is_empty() || v.parse::<i64>().is_ok());
    if let Some(epoch) = epoch {
        typed.attrs.entry("source-date-epoch".to_owned()).or_insert_with(|| epoch.clone());
    }
    build.worker.exporters().resolve(&typed.kind, &typed.attrs, build.request.compatibility)
}

/// Those that the client adds now that it knows of the result.
async fn session_exporters(build: &Build, session: Option<&Arc<dyn Session>>, outcome: &Outcome) -> Result<Vec<Box<dyn Exporter>>> {
    let (Some(session), true) = (session, build.request.session_exporters) else { return Ok(Vec::new()) };
    // The client may look into the results by these ids before it answers.
    let refs: Vec<String> = outcome.all().into_iter().filter_map(|(_, reference)| Some(reference?.id().to_owned())).collect();
    match session.find_exporters(&outcome.metadata, &refs).await {
        Ok(found) => found.into_iter().map(|e| resolve_one(build, Typed { kind: e.kind, attrs: e.attrs })).collect(),
        Err(fault) if matches!(fault.kind(), fault::Kind::Unimplemented | fault::Kind::Unavailable) => Ok(Vec::new()),
        Err(fault) => Err(fault),
    }
}

/// Every ref's layer, by platform id.
async fn evaluate(build: &Arc<Build>, outcome: &Outcome) -> Result<BTreeMap<String, Built>> {
    let refs: Vec<_> = outcome.all().into_iter().map(|(id, reference)| (id.to_owned(), reference.cloned())).collect();
    let solved = join_all(refs.into_iter().map(|(id, reference)| async move {
        let built = match reference {
            Some(reference) => build.result_of(&reference).await?,
            None => Built { layer: None, keys: Vec::new() },
        };
        Ok((id, built))
    }))
    .await;
    solved.into_iter().collect()
}

fn source(results: BTreeMap<String, Option<Layer>>, outcome: &Outcome, platforms: Named) -> Result<Source> {
    let is_map = platforms::is_map(outcome);
    let results = platforms.into_iter().map(|(id, platform)| {
        let key = if is_map { id.as_str() } else { "" };
        let layer = results.get(key).cloned().ok_or_else(|| Fault::invalid(format!("failed to find ref for ID {id}")))?;
        Ok(PlatformResult { id, platform, layer })
    });
    let results = results.collect::<Result<Vec<_>>>()?;
    Ok(Source { results, is_map, metadata: outcome.metadata.clone(), ..Source::default() })
}

/// Tells the user where a result is not for the platforms that were asked for, at the first exporter's vertex.
async fn warn(build: &Build, outcome: &Outcome, first: Option<&Digest>) -> Result<()> {
    let warnings = platforms::mismatches(build.attrs().get("platform").map(String::as_str), outcome)?;
    if warnings.is_empty() {
        return Ok(());
    }
    let emit = |vertex: &Digest| {
        for text in &warnings {
            build.hub().emit(Update::Warning(Warning {
                vertex: vertex.clone(),
                level: 0,
                short: text.clone().into(),
                detail: Vec::new(),
                url: String::new(),
                source: None,
            }));
        }
    };
    match first {
        Some(vertex) => emit(vertex),
        None => {
            let vertex = build.vertex_digest("Verifying build result");
            let tell = async |_| {
                emit(&vertex);
                Ok(())
            };
            build.in_vertex(vertex.clone(), "Verifying build result", tell).await?;
        }
    }
    Ok(())
}

fn vertex_of(build: &Build, index: usize) -> Digest {
    Digest::of(format!("{}-export-{index}", build.request.session))
}

/// Runs one exporter as a vertex of its own, whose digest and name come back too.
async fn export(
    build: &Arc<Build>,
    session: Option<Arc<dyn Session>>,
    exporter: Box<dyn Exporter>,
    source: &Source,
    index: usize,
) -> Result<(Exported, Digest, &'static str)> {
    let digest = vertex_of(build, index);
    let name = exporter.name();
    let exported = build
        .in_vertex(digest.clone(), name, async |reporter| {
            let context = ExportContext { cancel: build.cancel.child(), reporter, sessions: build.group.clone(), session, index };
            exporter.export(source, &context).await
        })
        .await?;
    Ok((exported, digest, name))
}

/// Writes the caches that images carry.
struct InlineCaches {
    build: Arc<Build>,
    /// Of each result; the only one has an empty id.
    keys: BTreeMap<String, Vec<Key>>,
}

#[async_trait]
impl CacheAuthor for InlineCaches {
    async fn cache(&self, id: &str, diff_ids: &[Digest], compression: Compression, reporter: &Reporter) -> Result<Option<Bytes>> {
        let Some(keys) = self.keys.get(id).or_else(|| self.keys.get("")) else { return Ok(None) };
        caches::inline(&self.build, keys, diff_ids, compression, reporter).await
    }
}
