//! Frontends that are images (`gateway.v0`): a program in a container drives the build, and asks over its own input and output.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use fault::{Context as _, Detail, Fault, Kind, Result};
use frontend::dockerfile::{Replacement, replacement};
use frontend::{Bridge, Outcome, ResolveRequest, SolveRequest};
use layers::Layer;
use llb::{Builder, Graph, Metadata, MountKind, Op, SourceOp};
use oci::{ImageConfig, Reference};
use ops::exec::{self, Prepared, Wanted};
use progress::Reporter;
use sandbox::{Input, Io, Mount, MountSource, Network, Output};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::build::Build;
use crate::driven::Driven;
use crate::gateway::Gateway;

/// What a frontend in a container is served through. The porch knows how.
#[async_trait]
pub trait FrontendDoor: Send + Sync {
    /// Serves the build's gateway to what writes `incoming` and reads `outgoing`, until `incoming` ends.
    async fn serve(&self, gateway: Arc<dyn Gateway>, incoming: mpsc::Receiver<Bytes>, outgoing: mpsc::Sender<Bytes>) -> Result<()>;
}

/// Where the frontend finds the definition of its own image.
const DEFINITION: &str = "/run/config/buildkit/metadata/frontend.bin";
const CAPS_LABEL: &str = "moby.buildkit.frontend.caps";
const NO_NETWORK_LABEL: &str = "moby.buildkit.frontend.network.none";
const INPUTS_CAP: &str = "moby.buildkit.frontend.inputs";
/// Pieces of data on their way in one direction.
const QUEUE: usize = 64;

/// Runs the frontend that the request's `source` option names, and gives what it returns. `bridge` is made for that request.
pub async fn run(build: &Arc<Build>, request: &SolveRequest, bridge: Arc<dyn Bridge>) -> Result<Outcome> {
    let opts = &request.frontend_opts;
    if opts.contains_key("gateway-devel") {
        return Err(Fault::invalid("development gateway is no longer supported"));
    }
    let source = opts.get("source").ok_or_else(|| Fault::invalid("no source specified for gateway"))?;
    check_source(source, &build.settings.gateway_sources)?;
    let (graph, config) = match replacement(&*bridge, source).await? {
        Some(Replacement { graph, config }) => (graph, config.unwrap_or_default()),
        None => {
            let (reference, config) = resolve(&*bridge, source).await?;
            (Some(image(&reference)), config)
        }
    };
    check_caps(&config, opts, !request.frontend_inputs.is_empty())?;

    let root = bridge.solve(SolveRequest { graph, ..SolveRequest::default() }).await?.single_ref()?;
    let root = root.ok_or_else(|| Fault::invalid("gateway source didn't return default result"))?;
    let layer = build.layer_of(&root).await?;
    let definition = root.graph().to_bytes();

    let driven = Arc::new(Driven::of_frontend(build.clone(), bridge));
    let gateway: Arc<dyn Gateway> = driven.clone();
    let exit = execute(build, source, Program { config: &config, opts, layer, definition }, gateway).await;
    match (driven.returned(), exit) {
        // What it said itself counts most; then how it ended.
        (Some(Err(fault)), _) => Err(fault),
        (_, Err(fault)) => Err(fault),
        (Some(Ok(outcome)), Ok(())) => Ok(outcome),
        (None, Ok(())) => Err(Fault::new(Kind::Unknown, "no result for incomplete build")),
    }
}

/// An empty list allows all.
fn check_source(source: &str, allowed: &[String]) -> Result<()> {
    if allowed.is_empty() {
        return Ok(());
    }
    let reference = parse(source)?;
    match allowed.iter().any(|name| *name == reference.name()) {
        true => Ok(()),
        false => Err(Fault::new(Kind::Denied, format!("'{source}' is not an allowed gateway source"))),
    }
}

fn parse(source: &str) -> Result<Reference> {
    source.parse().map_err(|e: oci::ReferenceError| Fault::of(Kind::Invalid, e).context(format!("failed to parse {source}")))
}

/// The image by its digest, and how its containers start.
async fn resolve(bridge: &dyn Bridge, source: &str) -> Result<(String, ImageConfig)> {
    let asked = parse(source)?.to_string();
    let op = SourceOp { identifier: format!("docker-image://{asked}"), ..SourceOp::default() };
    let log_name = format!("resolve image config for {}", op.identifier);
    let meta = bridge.resolve_source(ResolveRequest { op, log_name, ..ResolveRequest::default() }).await?;
    let found = meta.op.identifier.strip_prefix("docker-image://").unwrap_or(&asked).to_owned();
    let image = meta.image.ok_or_else(|| Fault::invalid(format!("{} is not an image", meta.op.identifier)))?;
    let config = ImageConfig::parse(&image.config).map_err(|e| Fault::of(Kind::Invalid, e)).context("invalid image config")?;
    let reference = if found.contains('@') { found } else { format!("{found}@{}", image.digest) };
    Ok((reference, config))
}

fn image(reference: &str) -> Arc<Graph> {
    let mut graph = Builder::new();
    let attrs = BTreeMap::from([("image.recordtype".to_owned(), "frontend".to_owned())]);
    let op = Op::Source(SourceOp { identifier: format!("docker-image://{reference}"), attrs });
    let edge = graph.add(op, Vec::new(), None, Vec::new(), Metadata::default());
    Arc::new(graph.finish(Some(edge)))
}

/// What is asked of the frontend must be among what its image says it can.
fn check_caps(config: &ImageConfig, opts: &BTreeMap<String, String>, has_inputs: bool) -> Result<()> {
    let offered = caps(config.config.labels.get(CAPS_LABEL).map_or("", String::as_str));
    let wanted = caps(opts.get("frontend.caps").map_or("", String::as_str)).into_iter().chain(has_inputs.then_some(INPUTS_CAP));
    match wanted.into_iter().find(|cap| !offered.contains(cap)) {
        None => Ok(()),
        Some(cap) => Err(Fault::new(Kind::Unimplemented, format!("unsupported frontend capability {cap}"))
            .with_detail(Detail::FrontendCap { name: cap.to_owned() })),
    }
}

/// `name+option,…`
fn caps(list: &str) -> BTreeSet<&str> {
    list.split(',').map(|cap| cap.split('+').next().unwrap_or_default()).filter(|cap| !cap.is_empty()).collect()
}

struct Program<'a> {
    config: &'a ImageConfig,
    opts: &'a BTreeMap<String, String>,
    layer: Option<Layer>,
    definition: Bytes,
}

/// Runs the program to its end, served all the while.
async fn execute(build: &Arc<Build>, source: &str, program: Program<'_>, gateway: Arc<dyn Gateway>) -> Result<()> {
    let Program { config, opts, layer, definition } = program;
    let cancel = build.cancel.child();
    if let Some(layer) = &layer {
        layer.realize_with_room(&cancel, &Reporter::silent()).await?;
    }
    let root = llb::Mount {
        dest: "/".into(),
        input: layer.is_some().then_some(0),
        selector: String::new(),
        output: None,
        readonly: false,
        kind: MountKind::Bind,
        content_cache: llb::ContentCache::default(),
        result_id: String::new(),
    };
    let owner = format!("frontend {source}");
    let wanted = Wanted {
        mounts: std::slice::from_ref(&root),
        inputs: &[layer],
        cwd: "/",
        owner: &owner,
        fresh_caches: false,
        sessions: &build.group,
        cancel: &cancel,
    };
    let mut prepared = Prepared::new(build.worker.exec(), &wanted).await?;
    let mut mounts = prepared.take_mounts();
    let definition = MountSource::Secret { data: definition, uid: 0, gid: 0, mode: 0o400 };
    mounts.push(Mount { dest: DEFINITION.into(), source: definition, readonly: true });
    let container = sandbox::Container {
        mounts,
        network: network(config),
        recursive_stubs: true,
        ..sandbox::Container::new(exec::container_id("frontend"), prepared.root())
    };
    let meta = llb::Meta {
        args: if config.config.entrypoint.is_empty() { vec!["/run".to_owned()] } else { config.config.entrypoint.clone() },
        cwd: if config.config.working_dir.is_empty() { "/".to_owned() } else { config.config.working_dir.clone() },
        env: environment(config, opts, build)?,
        ..llb::Meta::default()
    };
    let env = exec::variables(&meta, &[], &[exec::UNIX_PATH], &build.group).await?;
    let process = exec::process(&meta, env, false);

    let ((stdin, to_program), (from_program, stdout)) = (mpsc::channel(QUEUE), mpsc::channel(QUEUE));
    let name = source.to_owned();
    let stderr = Output::Call(Box::new(move |data: Bytes| {
        tracing::info!(frontend = name, "{}", String::from_utf8_lossy(&data).trim_end());
    }));
    let io = Io { stdin: Input::Stream(to_program), stdout: Output::Channel(from_program), stderr };
    let (door, stop) = (build.settings.frontend_door.clone(), cancel.clone());
    let serving = task::spawn("serve frontend", async move {
        let served = door.serve(gateway, stdout, stdin).await;
        // Who is no longer served need not go on.
        if served.is_err() {
            stop.cancel("frontend grpc server closed unexpectedly");
        }
        served
    });
    let exit = build.worker.exec().runtime.run(container, process, io, &cancel).await;
    let served = serving.join().await.and_then(|served| served);
    build.cancel.check()?;
    let exit = match exit {
        Err(_) if served.is_err() => return Err(Fault::new(Kind::Unknown, "frontend grpc server closed unexpectedly")),
        exit => exit?,
    };
    match exit.code {
        0 => Ok(()),
        code => {
            let fault = Fault::new(Kind::Unknown, format!("exit code: {code}"));
            Err(fault.with_detail(Detail::Exit { code: code as u32, error: String::new() }))
        }
    }
}

/// The image's own variables, and what the frontend is asked.
fn environment(config: &ImageConfig, opts: &BTreeMap<String, String>, build: &Build) -> Result<Vec<String>> {
    let facts = build.worker.facts(false);
    let worker = WorkerEntry { id: &facts.id, labels: &facts.labels, platforms: &facts.platforms };
    let workers = serde_json::to_string(&[worker]).map_err(|e| Fault::of(Kind::Internal, e))?;
    let mut env = config.config.env.clone();
    env.extend(opts.iter().enumerate().map(|(index, (key, value))| format!("BUILDKIT_FRONTEND_OPT_{index}={key}={value}")));
    env.push(format!("BUILDKIT_SESSION_ID={}", build.request.session));
    env.push(format!("BUILDKIT_WORKERS={workers}"));
    env.push("BUILDKIT_EXPORTEDPRODUCT=buildkit".to_owned());
    Ok(env)
}

#[derive(Serialize)]
struct WorkerEntry<'a> {
    id: &'a str,
    labels: &'a BTreeMap<String, String>,
    platforms: &'a [oci::Platform],
}

fn network(config: &ImageConfig) -> Network {
    let none = config.config.labels.get(NO_NETWORK_LABEL).is_some_and(|v| matches!(v.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True"));
    if none { Network::None } else { Network::Default }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_allowed_by_repository() {
        let allowed = ["docker.io/docker/dockerfile".to_owned()];
        assert!(check_source("docker/dockerfile:1.2", &allowed).is_ok());
        assert!(check_source("example.com/any", &[]).is_ok());
        let error = check_source("example.com/docker/dockerfile", &allowed).unwrap_err();
        assert_eq!(error.to_string(), "'example.com/docker/dockerfile' is not an allowed gateway source");
    }

    #[test]
    fn a_frontend_must_offer_what_is_asked() {
        let mut config = ImageConfig::default();
        let wants = |caps: &str| BTreeMap::from([("frontend.caps".to_owned(), caps.to_owned())]);
        assert!(check_caps(&config, &BTreeMap::new(), false).is_ok());
        let missing = check_caps(&config, &wants("a+forward"), false).unwrap_err();
        assert_eq!(missing.details(), [&Detail::FrontendCap { name: "a".into() }]);
        config.config.labels.insert(CAPS_LABEL.into(), format!("a,{INPUTS_CAP}+x"));
        assert!(check_caps(&config, &wants("a"), true).is_ok());
        assert!(check_caps(&config, &wants("a,b"), true).is_err());
    }
}
