//! From a result to what the client asked for: exporters, pushes, the response.
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use export::{Context as ExportContext, Exported, Exporter, PlatformResult, Source};
use fault::{Fault, Result};
use frontend::{Outcome, Refs};
use layers::Layer;
use oci::{Digest, Platform};
use serde::Deserialize;
use session::Session;

use crate::api::{Response, Typed};
use crate::build::{Build, response_metadata};

/// Solves every ref of the outcome, exports it, and gives the response.
pub async fn run(build: &Arc<Build>, outcome: Outcome) -> Result<Response> {
    let session = build.session().await?;
    let exporters = resolve(build, session.as_ref(), &outcome).await?;
    let results = evaluate(build, &outcome).await?;
    let mut response = response_metadata(&outcome.metadata);
    if !exporters.is_empty() {
        let source = source(results, &outcome)?;
        let mut finalizers = Vec::new();
        // Manifests and configs stay until they are pushed.
        let mut holds = Vec::new();
        let mut running = Vec::new();
        for (index, exporter) in exporters.into_iter().enumerate() {
            running.push(export(build, session.clone(), exporter, &source, index));
        }
        for exported in join_all(running).await {
            let (exported, digest, name) = exported?;
            response.extend(exported.response);
            // The same vertex goes on: it is shown as running again.
            finalizers.extend(exported.finalize.map(|finish| build.in_vertex(digest, name, async move |_| finish.await)));
            holds.push(exported.holds);
        }
        for finished in join_all(finalizers).await {
            finished?;
        }
    }
    if let (Some(session), true) = (&session, build.request.session_exporters) {
        match session.finalize_export(&response).await {
            Err(fault) if fault.kind() != fault::Kind::Unimplemented => return Err(fault),
            _ => {}
        }
    }
    // What the client is told of survives a kill from here on.
    build.worker.layers().flush().await?;
    Ok(Response { exporter: response })
}

/// Waits for all; the futures run side by side on this task.
async fn join_all<T>(futures: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
    futures_util::future::join_all(futures).await
}

async fn resolve(build: &Build, session: Option<&Arc<dyn Session>>, outcome: &Outcome) -> Result<Vec<Box<dyn Exporter>>> {
    let mut asked: Vec<Typed> = build.request.exporters.clone();
    if let (Some(session), true) = (session, build.request.session_exporters) {
        // The client may look into the results by these ids before it answers.
        let refs: Vec<String> = outcome.all().into_iter().filter_map(|(_, reference)| Some(reference?.id().to_owned())).collect();
        match session.find_exporters(&outcome.metadata, &refs).await {
            Ok(found) => asked.extend(found.into_iter().map(|e| Typed { kind: e.kind, attrs: e.attrs })),
            Err(fault) if matches!(fault.kind(), fault::Kind::Unimplemented | fault::Kind::Unavailable) => {}
            Err(fault) => return Err(fault),
        }
    }
    let epoch = build.attrs().get("build-arg:SOURCE_DATE_EPOCH").filter(|v| v.is_empty() || v.parse::<i64>().is_ok());
    asked
        .into_iter()
        .map(|mut typed| {
            if let Some(epoch) = epoch {
                typed.attrs.entry("source-date-epoch".to_owned()).or_insert_with(|| epoch.clone());
            }
            build.worker.exporters().resolve(&typed.kind, &typed.attrs, build.request.compatibility)
        })
        .collect()
}

/// Every ref's layer, by platform id.
async fn evaluate(build: &Arc<Build>, outcome: &Outcome) -> Result<BTreeMap<String, Option<Layer>>> {
    let refs: Vec<_> = outcome.all().into_iter().map(|(id, reference)| (id.to_owned(), reference.cloned())).collect();
    let solved = join_all(refs.into_iter().map(|(id, reference)| async move {
        let layer = match reference {
            Some(reference) => build.layer_of(&reference).await?,
            None => None,
        };
        Ok((id, layer))
    }))
    .await;
    solved.into_iter().collect()
}

#[derive(Deserialize)]
struct Platforms {
    #[serde(rename = "Platforms")]
    platforms: Vec<PlatformEntry>,
}

#[derive(Deserialize)]
struct PlatformEntry {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Platform")]
    platform: Platform,
}

fn source(mut results: BTreeMap<String, Option<Layer>>, outcome: &Outcome) -> Result<Source> {
    let is_map = matches!(outcome.refs, Refs::Map(_));
    let listed = match outcome.metadata.get("refs.platforms") {
        Some(json) => {
            serde_json::from_slice::<Platforms>(json)
                .map_err(|e| Fault::invalid(format!("failed to parse platforms passed to exporter: {e}")))?
                .platforms
        }
        None if is_map => return Err(Fault::invalid("unable to export multiple refs, missing platforms mapping")),
        None => {
            let platform = platform_of_config(outcome.metadata.get("containerimage.config")).unwrap_or_else(Platform::host);
            vec![PlatformEntry { id: platform.to_string(), platform }]
        }
    };
    let results = listed
        .into_iter()
        .map(|entry| {
            let key = if is_map { entry.id.as_str() } else { "" };
            let layer = results.remove(key).ok_or_else(|| Fault::invalid(format!("failed to find ref for ID {}", entry.id)))?;
            Ok(PlatformResult { id: entry.id, platform: entry.platform.normalized(), layer })
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Source { results, is_map, metadata: outcome.metadata.clone(), attestations: BTreeMap::new() })
}

fn platform_of_config(config: Option<&Bytes>) -> Option<Platform> {
    let platform: Platform = serde_json::from_slice(config?).ok()?;
    (!platform.os.is_empty() && !platform.architecture.is_empty()).then(|| platform.normalized())
}

/// Runs one exporter as a vertex of its own, whose digest and name come back too.
async fn export(
    build: &Arc<Build>,
    session: Option<Arc<dyn Session>>,
    exporter: Box<dyn Exporter>,
    source: &Source,
    index: usize,
) -> Result<(Exported, Digest, &'static str)> {
    let digest = Digest::of(format!("{}-export-{index}", build.request.session));
    let name = exporter.name();
    let exported = build
        .in_vertex(digest.clone(), name, async |reporter| {
            let context = ExportContext { cancel: build.cancel.child(), reporter, sessions: build.group.clone(), session, index };
            exporter.export(source, &context).await
        })
        .await?;
    Ok((exported, digest, name))
}
