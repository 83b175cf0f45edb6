//! Bills of materials: a scanner image runs over what was built, or the daemon reads it itself.
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use dockerfile::source::{self, ResolveMode};
use fault::{Context as _, Fault, Kind, Result};
use llb::{Builder, Edge, ExecOp, Graph, Meta, Metadata, Mount, MountKind, NetMode, Op, SecurityMode, SourceOp};
use oci::{ImageConfig, Platform, Reference};
use patterns::join;

use crate::attestations::{Generator, SbomRequest};
use crate::bridge::{Attestation, AttestationKind, Bridge, Ref, ResolveRequest, SolveRequest};

const SOURCES: &str = "/run/src/";
const RESULTS: &str = "/run/out/";
const CORE: &str = "sbom";
/// The predicate type of the statements that scanners make.
pub const SPDX: &str = "https://spdx.dev/Document";
/// In the metadata of a statement that the daemon makes of its ref's files: why it does so itself. On the wire, clients hand it back with the rest.
pub const SCAN: &str = "kiln.scan";
/// What is run where nobody says anything else.
const USUAL: &str = "docker.io/docker/buildkit-syft-scanner:stable-1";

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

/// Whoever makes the bill of materials, ready to do so.
pub enum Scanner {
    Image(Box<ScannerImage>),
    /// The daemon, for a reason that people may read.
    Builtin {
        why: String,
    },
}

/// A scanner image that is ready to run.
pub struct ScannerImage {
    reference: String,
    platform: Platform,
    config: ImageConfig,
    params: BTreeMap<String, String>,
}

impl Scanner {
    /// Looks an image up for the platform that it is to run on. `mode` is the build's way to resolve images.
    pub async fn prepare(bridge: &dyn Bridge, request: &SbomRequest, platform: &Platform, mode: ResolveMode) -> Result<Self> {
        let (generator, whose) = match &request.generator {
            Generator::Any => (&bridge.build().sbom_generator, "the daemon's configuration"),
            asked => (asked, "the build"),
        };
        let image = match generator {
            Generator::Builtin => return Ok(Self::Builtin { why: format!("{whose} asks for the built-in scanner") }),
            Generator::Image(name) => name,
            Generator::Any => USUAL,
        };
        match ScannerImage::prepare(bridge, image, &request.params, platform, mode).await {
            Ok(found) => Ok(Self::Image(Box::new(found))),
            Err(fault) if *generator == Generator::Any && fault.kind() != Kind::Canceled => {
                let why = format!("{image} cannot be had, so the built-in scanner stands in: {fault}");
                tracing::warn!("{why}");
                Ok(Self::Builtin { why })
            }
            Err(fault) => Err(fault),
        }
    }

    /// Scans a result, and beside it what else may have something to tell, by name. Runs when the statements are wanted.
    pub async fn scan(&self, bridge: &dyn Bridge, subject: &Subject<'_>) -> Result<Vec<Attestation>> {
        let why = match self {
            Self::Image(image) => return Ok(vec![image.scan(bridge, subject).await?]),
            Self::Builtin { why } => why,
        };
        let extras = subject.extras.iter().map(|(name, graph)| (format!("{CORE}-{name}"), &**graph));
        let mut statements = Vec::new();
        for (name, graph) in [(CORE.to_owned(), subject.core)].into_iter().chain(extras) {
            let request = SolveRequest { graph: Some(Arc::new(graph.clone())), ..SolveRequest::default() };
            let reference = bridge.solve(request).await?.single_ref()?;
            let mut statement =
                Attestation { kind: AttestationKind::InToto, path: format!("{name}.spdx.json"), ..statements_of(reference) };
            statement.metadata.insert(SCAN.into(), why.clone().into());
            statements.push(statement);
        }
        Ok(statements)
    }
}

/// What all statements of scanners have in common.
fn statements_of(reference: Option<Arc<dyn Ref>>) -> Attestation {
    let text = |text: &'static str| Bytes::from_static(text.as_bytes());
    Attestation {
        kind: AttestationKind::Bundle,
        metadata: BTreeMap::from([("reason".into(), text("sbom")), ("sbom-core".into(), text(CORE))]),
        reference,
        path: String::new(),
        predicate_type: SPDX.into(),
        subjects: Vec::new(),
    }
}

impl ScannerImage {
    async fn prepare(
        bridge: &dyn Bridge,
        name: &str,
        params: &BTreeMap<String, String>,
        platform: &Platform,
        mode: ResolveMode,
    ) -> Result<Self> {
        let question = ResolveRequest {
            op: SourceOp { identifier: format!("{IMAGE}{name}"), ..SourceOp::default() },
            platform: Some(platform.clone()),
            resolve_mode: mode.as_str().to_owned(),
            ..ResolveRequest::default()
        };
        let found = bridge.resolve_source(question).await;
        let found = found.with_context(|| format!("failed to resolve source metadata for {name}"))?;
        let updated = found.op.identifier.strip_prefix(IMAGE).unwrap_or(&found.op.identifier).to_owned();
        let Some(image) = found.image else {
            return Err(invalid(format!("ref {name} resolved to non-image {updated}")));
        };
        let config = ImageConfig::parse(&image.config).map_err(|e| invalid(e.to_string()))?;
        if config.config.entrypoint.is_empty() && config.config.cmd.is_empty() {
            return Err(invalid(format!("scanner {updated} does not have cmd")));
        }
        Ok(Self { reference: updated, platform: platform.clone(), config, params: params.clone() })
    }

    async fn scan(&self, bridge: &dyn Bridge, subject: &Subject<'_>) -> Result<Attestation> {
        let graph = self.graph(subject)?;
        let request = SolveRequest { graph: Some(Arc::new(graph)), ..SolveRequest::default() };
        Ok(statements_of(bridge.solve(request).await?.single_ref()?))
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

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use progress::Warning;

    use crate::bridge::{Build, Outcome, SourceMeta};

    /// A build on a machine that no registry can be reached from.
    #[derive(Default)]
    struct Alone(Build);

    #[async_trait]
    impl Bridge for Alone {
        fn build(&self) -> &Build {
            &self.0
        }

        async fn resolve_source(&self, _: ResolveRequest) -> Result<SourceMeta> {
            Err(Fault::new(Kind::Unavailable, "no route to host"))
        }

        async fn solve(&self, _: SolveRequest) -> Result<Outcome> {
            Ok(Outcome::single(None))
        }

        async fn inputs(&self) -> Result<BTreeMap<String, Arc<Graph>>> {
            Ok(BTreeMap::new())
        }

        async fn warn(&self, _: Warning) -> Result<()> {
            Ok(())
        }
    }

    async fn prepare(bridge: &Alone, generator: Generator) -> Result<Scanner> {
        let request = SbomRequest { generator, params: BTreeMap::new() };
        Scanner::prepare(bridge, &request, &Platform::host(), ResolveMode::Default).await
    }

    #[tokio::test]
    async fn the_daemon_scans_where_the_usual_image_cannot_be_had() {
        let scanner = prepare(&Alone::default(), Generator::Any).await.unwrap();
        let graph = Graph::default();
        let subject = Subject {
            platform_id: "linux/amd64",
            core: &graph,
            extras: &BTreeMap::from([("base".into(), Arc::default())]),
            ignore_cache: false,
        };
        let statements = scanner.scan(&Alone::default(), &subject).await.unwrap();
        let paths: Vec<&str> = statements.iter().map(|statement| statement.path.as_str()).collect();
        assert_eq!(paths, ["sbom.spdx.json", "sbom-base.spdx.json"]);
        let why = String::from_utf8_lossy(&statements[0].metadata[SCAN]).into_owned();
        assert!(why.starts_with(USUAL) && why.ends_with("no route to host"), "{why}");
    }

    #[tokio::test]
    async fn a_scanner_that_somebody_names_is_not_replaced() {
        let image = || Generator::Image("r.io/s:1".into());
        assert!(prepare(&Alone::default(), image()).await.is_err());
        let with = |sbom_generator| Alone(Build { sbom_generator, ..Build::default() });
        assert!(prepare(&with(image()), Generator::Any).await.is_err(), "the operator's");
        assert!(matches!(prepare(&with(Generator::Builtin), Generator::Any).await, Ok(Scanner::Builtin { .. })));
    }
}
