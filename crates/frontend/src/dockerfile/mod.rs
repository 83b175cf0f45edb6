//! The built-in Dockerfile frontend, `dockerfile.v0`: reads the file and what goes with it through the [`Bridge`], converts it for each platform,
//! and hands the graphs back to be solved.
//!
//! The language is the room `dockerfile`; here is what surrounds it: options, where the file and the context come from, named contexts,
//! subrequests, the result's metadata, and warnings.
mod answers;
mod archive;
mod context;
mod faults;
mod named;
mod opts;
mod proto_json;
mod subrequest;
mod table;

use std::collections::BTreeMap;
use std::sync::Arc;

use ::dockerfile::lint::{Linter, Warning};
use ::dockerfile::{Converted, syntax};
use bytes::Bytes;
use fault::{Context as _, Detail, Fault, Kind, Result};
use futures_util::future::try_join_all;
use oci::{Digest, Platform};
use serde::Serialize;

use crate::bridge::{Bridge, Outcome, Ref, Refs, SolveRequest};
use crate::sbom::{Scanner, Subject};
use answers::Answers;
use context::{BuildContext, Entrypoint};
use opts::Config;

pub use named::{Replacement, is_replaced, replacement};

/// Builds as the request's options say.
pub async fn build(bridge: &dyn Bridge) -> Result<Outcome> {
    let config = Config::parse(bridge.build())?;
    let missing_cap = opts::check_frontend_caps(config.opt("frontend.caps"));
    if let Err(missing) = &missing_cap
        && !missing.forward
    {
        return Err(missing.fault.clone());
    }
    let context = BuildContext::open(bridge, &config).await?;
    let entrypoint = Entrypoint::read(bridge, &config, &context).await?;
    if !config.opts.contains_key("cmdline")
        && let Some(outcome) = forward(bridge, &config, &entrypoint).await
    {
        return outcome;
    }
    missing_cap.map_err(|missing| missing.fault)?;

    let frontend = Frontend { bridge, config: &config, context: &context, entrypoint: &entrypoint };
    if let Some(id) = config.opts.get("requestid") {
        return subrequest::answer(&frontend, id).await;
    }
    frontend.build().await.map_err(|error| error.into_fault(Some(&entrypoint)))
}

/// Another frontend is asked for: by an argument, or by the file itself. `None`: it is ours.
async fn forward(bridge: &dyn Bridge, config: &Config, entrypoint: &Entrypoint) -> Option<Result<Outcome>> {
    let (image, cmdline, place) = match config.opts.get("build-arg:BUILDKIT_SYNTAX") {
        Some(cmdline) => (first_word(cmdline.trim()).to_owned(), cmdline.clone(), None),
        None => {
            let directive = syntax::find_syntax(&entrypoint.data)?;
            (first_word(&directive.value).to_owned(), directive.value.clone(), Some(directive.line))
        }
    };
    let outcome = run_gateway(bridge, config, image, cmdline.clone()).await;
    Some(outcome.map_err(|fault| {
        let has_source = fault.details().iter().any(|detail| matches!(detail, Detail::Source { .. }));
        match place {
            _ if has_source => fault,
            Some(line) => fault.with_detail(entrypoint.detail(Some(line))),
            None => fault.context(format!("failed with build-arg:BUILDKIT_SYNTAX = {cmdline}")),
        }
    }))
}

fn first_word(text: &str) -> &str {
    text.split(' ').next().unwrap_or_default()
}

async fn run_gateway(bridge: &dyn Bridge, config: &Config, image: String, cmdline: String) -> Result<Outcome> {
    let mut opts = config.opts.clone();
    opts.insert("cmdline".into(), cmdline);
    opts.insert("source".into(), image);
    let inputs = match bridge.build().gateway_caps.contains("frontend.inputs") {
        true => bridge.inputs().await.context("failed to get frontend inputs")?,
        false => BTreeMap::new(),
    };
    let request = SolveRequest { frontend: "gateway.v0".into(), frontend_opts: opts, frontend_inputs: inputs, ..SolveRequest::default() };
    bridge.solve(request).await
}

/// One build: everything that does not depend on the platform.
struct Frontend<'a> {
    bridge: &'a dyn Bridge,
    config: &'a Config,
    context: &'a BuildContext,
    entrypoint: &'a Entrypoint,
}

/// What one platform came to.
struct Built {
    reference: Option<Arc<dyn Ref>>,
    converted: Converted,
    export: ExportPlatform,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct ExportPlatform {
    #[serde(rename = "ID")]
    id: String,
    platform: Platform,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ExportPlatforms<'a> {
    platforms: Vec<&'a ExportPlatform>,
}

impl Frontend<'_> {
    fn answers(&self) -> Answers<'_> {
        Answers::new(self.bridge, self.config, self.context, self.entrypoint)
    }

    async fn build(&self) -> Result<Outcome, faults::Failure> {
        self.bridge.expect_imports(&self.config.cache_imports);
        let scanner = match &self.config.sbom {
            Some(request) => {
                let (platform, mode) = (self.config.native_platform(), self.config.resolve_mode());
                Some(Scanner::prepare(self.bridge, request, platform, mode).await?)
            }
            None => None,
        };
        let platforms: Vec<Option<&Platform>> = match self.config.target_platforms.as_slice() {
            [] => vec![None],
            some => some.iter().map(Some).collect(),
        };
        let answers = self.answers();
        let builds = platforms.into_iter().enumerate().map(|(index, platform)| self.build_platform(&answers, platform, index == 0));
        let built = try_join_all(builds).await?;
        let mut outcome = self.outcome(&built);
        if let Some(scanner) = scanner {
            for built in &built {
                let converted = &built.converted;
                let subject = Subject {
                    platform_id: &built.export.id,
                    core: &converted.graph,
                    extras: &converted.scan,
                    ignore_cache: converted.ignore_cache,
                };
                let statements = scanner.scan(self.bridge, &subject).await?;
                outcome.attestations.entry(built.export.id.clone()).or_default().extend(statements);
            }
        }
        Ok(outcome)
    }

    async fn build_platform(&self, answers: &Answers<'_>, platform: Option<&Platform>, warns: bool) -> Result<Built, faults::Failure> {
        let options = self.config.options(platform, self.entrypoint, self.bridge.build());
        let mut linter = if warns { Linter::new(Default::default()) } else { Linter::silent() };
        let converted = ::dockerfile::convert(&self.entrypoint.data, &options, answers, &mut linter).await;
        for warning in linter.warnings() {
            self.warn(&warning).await?;
        }
        let converted = converted?;
        let graph = converted.graph.result.is_some().then(|| converted.graph.clone());
        let request = SolveRequest { graph, cache_imports: self.config.cache_imports.clone(), ..SolveRequest::default() };
        let reference = self.bridge.solve(request).await?.single_ref()?;
        let export = export_platform(platform, &converted.image.platform());
        Ok(Built { reference, converted, export })
    }

    async fn warn(&self, warning: &Warning) -> Result<()> {
        let lines = warning.lines.into_iter().flat_map(|lines| (lines.first..=lines.last).map(|line| (line, line)));
        self.bridge
            .warn(progress::Warning {
                vertex: self.entrypoint.vertex.clone(),
                level: 1,
                short: warning.short().into(),
                detail: vec![Bytes::from_static(warning.rule.description.as_bytes())],
                url: warning.rule.url.to_owned(),
                source: Some(progress::SourceRange {
                    filename: self.entrypoint.filename.clone(),
                    language: context::LANGUAGE.to_owned(),
                    data: self.entrypoint.data.clone(),
                    lines: lines.collect(),
                }),
            })
            .await
    }

    fn outcome(&self, built: &[Built]) -> Outcome {
        let mut outcome = Outcome::default();
        let mut refs = BTreeMap::new();
        for Built { reference, converted, export } in built {
            let suffix = if self.config.multi_platform { format!("/{}", export.id) } else { String::new() };
            let mut put = |key: &str, value: Vec<u8>| _ = outcome.metadata.insert(format!("{key}{suffix}"), value.into());
            put("containerimage.config", converted.image.to_bytes());
            if let Some(base) = &converted.base_image {
                put("containerimage.base.config", base.to_bytes());
            }
            if let Some(epoch) = converted.epoch {
                put("source.date.epoch", epoch.unix_seconds().to_string().into_bytes());
            }
            refs.insert(export.id.clone(), reference.clone());
        }
        let platforms = ExportPlatforms { platforms: built.iter().map(|b| &b.export).collect() };
        outcome.metadata.insert("refs.platforms".into(), oci::gojson::to_vec(&platforms).into());
        outcome.refs = match (self.config.multi_platform, built) {
            (false, [only]) => Refs::Single(only.reference.clone()),
            _ => Refs::Map(refs),
        };
        outcome
    }
}

/// The platform that a result is for. A Windows image may say more about it than the request.
fn export_platform(wanted: Option<&Platform>, image: &Platform) -> ExportPlatform {
    let mut platform = wanted.cloned().unwrap_or_else(Platform::host).normalized();
    let id = platform.to_string();
    if platform.os == "windows" && image.os == platform.os {
        if platform.os_version.is_empty() {
            platform.os_version = image.os_version.clone();
        }
        if platform.os_features.is_empty() {
            platform.os_features = image.os_features.clone();
        }
        platform = platform.normalized();
    }
    ExportPlatform { id, platform }
}

/// The digest of the vertex that a graph's result is an output of.
fn head(graph: &llb::Graph) -> Result<Digest> {
    let result = graph.result.as_ref().ok_or_else(|| Fault::new(Kind::Unknown, "empty definition"))?;
    Ok(result.vertex.clone())
}
