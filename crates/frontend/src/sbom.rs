//! Bills of materials: a scanner image runs over what was built.
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use dockerfile::source::{self, ResolveMode};
use fault::{Context as _, Fault, Kind, Result};
use llb::{Builder, Edge, ExecOp, Graph, Meta, Metadata, Mount, MountKind, NetMode, Op, SecurityMode, SourceOp};
use oci::{ImageConfig, Platform, Reference};
use patterns::join;

use crate::attestations::SbomRequest;
use crate::bridge::{Attestation, AttestationKind, Bridge, ResolveRequest, SolveRequest};

const SOURCES: &str = "/run/src/";
const RESULTS: &str = "/run/out/";
const CORE: &str = "sbom";
/// The predicate type of the statements that scanners make.
pub const SPDX: &str = "https://spdx.dev/Document";

const IMAGE: &str = "docker-image://";

/// What is scanned.
pub struct Subject<'a> {
    pub platform_id: &'a str,
    pub core: &'a Graph,
    /// By name.
    pub extras: &'a BTreeMap<String, Arc<Graph>>,
    /// Scans again even if that was done before.
    pub ignore_cache: bool,
}

/// A scanner image that is ready to run.
pub struct Scanner {
    reference: String,
    platform: Platform,
    config: ImageConfig,
    params: BTreeMap<String, String>,
}

impl Scanner {
    /// Looks the image up for the platform that it is to run on. `mode` is the build's way to resolve images.
    pub async fn prepare(bridge: &dyn Bridge, request: &SbomRequest, platform: &Platform, mode: ResolveMode) -> Result<Self> {
        let question = ResolveRequest {
            op: SourceOp { identifier: format!("{IMAGE}{}", request.generator), ..SourceOp::default() },
            platform: Some(platform.clone()),
            resolve_mode: mode.as_str().to_owned(),
            ..ResolveRequest::default()
        };
        let found = bridge.resolve_source(question).await;
        let found = found.with_context(|| format!("failed to resolve source metadata for {}", request.generator))?;
        let updated = found.op.identifier.strip_prefix(IMAGE).unwrap_or(&found.op.identifier).to_owned();
        let Some(image) = found.image else {
            return Err(invalid(format!("ref {} resolved to non-image {updated}", request.generator)));
        };
        let config = ImageConfig::parse(&image.config).map_err(|e| invalid(e.to_string()))?;
        if config.config.entrypoint.is_empty() && config.config.cmd.is_empty() {
            return Err(invalid(format!("scanner {updated} does not have cmd")));
        }
        Ok(Self { reference: updated, platform: platform.clone(), config, params: request.params.clone() })
    }

    /// Scans a result, and beside it what else may have something to tell, by name. Runs when the statements are wanted.
    pub async fn scan(&self, bridge: &dyn Bridge, subject: &Subject<'_>) -> Result<Attestation> {
        let graph = self.graph(subject)?;
        let request = SolveRequest { graph: Some(Arc::new(graph)), ..SolveRequest::default() };
        let reference = bridge.solve(request).await?.single_ref()?;
        let text = |text: &'static str| Bytes::from_static(text.as_bytes());
        Ok(Attestation {
            kind: AttestationKind::Bundle,
            metadata: BTreeMap::from([("reason".into(), text("sbom")), ("sbom-core".into(), text(CORE))]),
            reference,
            path: String::new(),
            predicate_type: SPDX.into(),
            subjects: Vec::new(),
        })
    }

    fn graph(&self, subject: &Subject<'_>) -> Result<Graph> {
        let full: Reference = self.reference.parse().map_err(|e: oci::ReferenceError| invalid(e.to_string()))?;
        let image = source::image(&full.or_latest().to_string(), Some(self.platform.clone()), ResolveMode::Default).into_graph();
        let mut builder = Builder::new();
        let mut inputs: Vec<Edge> = builder.graft(&image).into_iter().collect();
        let mut input = |builder: &mut Builder, graph: &Graph| {
            let edge = builder.graft(graph)?;
            let at = inputs.iter().position(|known| *known == edge).unwrap_or_else(|| {
                inputs.push(edge);
                inputs.len() - 1
            });
            Some(at as u32)
        };
        let mut mounts = vec![mount("/", Some(0), Some(0), MountKind::Bind), mount(RESULTS, None, Some(1), MountKind::Bind)];
        let core = input(&mut builder, subject.core);
        mounts.push(mount(&join(&[SOURCES, "core", CORE]), core, None, MountKind::Bind));
        for (name, graph) in subject.extras {
            let extra = input(&mut builder, graph);
            mounts.push(mount(&join(&[SOURCES, "extras", &format!("{CORE}-{name}")]), extra, None, MountKind::Bind));
        }
        // Windows has no tmpfs; there the scanner's own files have to do.
        if self.platform.os != "windows" {
            mounts.push(mount("/tmp", None, None, MountKind::Tmpfs { size: 0 }));
        }
        mounts.sort_by(|a, b| a.dest.cmp(&b.dest));
        let op = ExecOp {
            meta: self.meta(!subject.extras.is_empty()),
            mounts,
            network: NetMode::Unset,
            security: SecurityMode::Sandbox,
            ..ExecOp::default()
        };
        let mut metadata = Metadata { ignore_cache: subject.ignore_cache, ..Metadata::default() };
        metadata.description.insert("llb.customname".into(), format!("[{}] generating sbom using {}", subject.platform_id, self.reference));
        for cap in ["exec.meta.base", "exec.mount.bind", "exec.mount.tmpfs"] {
            metadata.caps.insert(cap.into(), true);
        }
        let platform = Some(self.platform.clone().normalized());
        let run = builder.add(Op::Exec(Box::new(op)), inputs, platform, Vec::new(), metadata);
        Ok(builder.finish(Some(run.with_output(1))))
    }

    fn meta(&self, has_extras: bool) -> Meta {
        let config = &self.config.config;
        let mut env: Vec<(String, String)> = Vec::new();
        let mut set = |key: &str, value: &str| {
            env.retain(|(known, _)| known != key);
            env.push((key.to_owned(), value.to_owned()));
        };
        for entry in &config.env {
            let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
            set(key, value);
        }
        set("BUILDKIT_SCAN_DESTINATION", RESULTS);
        set("BUILDKIT_SCAN_SOURCE", &join(&[SOURCES, "core", CORE]));
        if has_extras {
            set("BUILDKIT_SCAN_SOURCE_EXTRAS", &join(&[SOURCES, "extras/"]));
        }
        for (key, value) in &self.params {
            set(&format!("BUILDKIT_SCAN_{key}"), value);
        }
        Meta {
            args: config.entrypoint.iter().chain(&config.cmd).cloned().collect(),
            env: env.into_iter().map(|(key, value)| format!("{key}={value}")).collect(),
            cwd: join(&["/", &config.working_dir]),
            remove_mount_stubs_recursive: true,
            ..Meta::default()
        }
    }
}

fn mount(dest: &str, input: Option<u32>, output: Option<u32>, kind: MountKind) -> Mount {
    let readonly = output.is_none() && kind == MountKind::Bind;
    Mount {
        dest: dest.to_owned(),
        input,
        selector: String::new(),
        output,
        readonly,
        kind,
        content_cache: Default::default(),
        result_id: String::new(),
    }
}

fn invalid(message: impl Into<String>) -> Fault {
    // BuildKit gives these no code of their own.
    Fault::new(Kind::Unknown, message)
}
