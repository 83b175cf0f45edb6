//! The statement about where a result came from. It is written while the result is exported, for it may tell of the layers.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use export::{Author, Statement};
use fault::{Detail, Fault, Kind, Result};
use frontend::Outcome;
use oci::{Descriptor, Platform};

use crate::build::Build;
use crate::platforms;
use crate::provenance::capture::Capture;
use crate::provenance::options::Options;
use crate::provenance::predicate::Predicate;
use crate::provenance::scope::Traced;
use crate::provenance::sources::ImageSource;
use crate::provenance::steps::{SourceMap, Steps};
use crate::provenance::usage::Usage;

/// What the results came from: by platform id, or by nothing where there is one result. Those that are scratch are left out.
pub type Captured = BTreeMap<String, (Arc<Traced>, Capture)>;

/// All results are evaluated. What the daemon itself does with them later is not part of it.
pub fn captured(build: &Build, outcome: &Outcome) -> Result<Captured> {
    let is_map = platforms::is_map(outcome);
    let listed = if is_map { platforms::of(outcome).unwrap_or_default() } else { Vec::new() };
    let final_ids: BTreeSet<String> = outcome.every_ref().map(|reference| reference.id().to_owned()).collect();
    let traced = outcome.all().into_iter().filter_map(|(id, reference)| Some((id.to_owned(), build.traced(reference?)?)));
    let captured = traced.map(|(id, traced)| {
        let images = |images| if is_map { of_platform(images, &id, &listed) } else { images };
        let capture = build.scope().provenance(&traced, &final_ids, images);
        let capture = capture.unwrap_or_else(|| Err(Fault::new(Kind::Unknown, format!("could not find request for ref {}", traced.id))))?;
        Ok((id, (traced, capture)))
    });
    captured.collect()
}

/// One statement for each of the platforms whose result is not scratch, by platform id.
pub fn attest(
    build: &Arc<Build>,
    captured: &Captured,
    platforms: &[(String, Platform)],
    options: &Options,
) -> Result<BTreeMap<String, Statement>> {
    let mut all = BTreeMap::new();
    for (id, _) in platforms {
        let Some((traced, capture)) = captured.get(id).or_else(|| captured.get("")) else { continue };
        if options.complete_materials && !capture.has_all_materials() {
            return Err(incomplete(capture));
        }
        if options.filename.is_empty() {
            // BuildKit gives this no code of its own.
            return Err(Fault::new(Kind::Unknown, "attestation does not have set path"));
        }
        let statement = Statement {
            predicate_type: options.version.predicate_type().to_owned(),
            predicate: export::Predicate::Late(Arc::new(Provenance::new(build, capture, traced, options)?)),
            path: options.filename.clone(),
            inline_only: options.inline_only,
            subjects: Vec::new(),
            sbom_core: None,
        };
        all.insert(id.clone(), statement);
    }
    Ok(all)
}

/// Puts the whole truth about each result into the build's record, whatever the client asked to have attested.
pub async fn record(build: &Arc<Build>, captured: &Captured) -> Result<()> {
    let options = Options::of_history(build.attrs());
    for (id, (traced, capture)) in captured {
        let predicate = Provenance::new(build, capture, traced, &options)?.predicate().await?;
        let (build, platform) = (build.clone(), (!id.is_empty()).then(|| id.clone()));
        let kind = options.version.predicate_type();
        task::blocking(move || Ok(build.findings.attest(build.worker.content(), platform.as_deref(), kind, &predicate)?)).await?;
    }
    Ok(())
}

/// Of images that were looked up for every platform of the result, only that for this one.
fn of_platform(images: Vec<ImageSource>, id: &str, platforms: &[(String, Platform)]) -> Vec<ImageSource> {
    let has = |reference: &str, wanted: &Platform| {
        images.iter().any(|image| image.reference == reference && image.platform.as_ref().is_some_and(|p| wanted.matches_strictly(p)))
    };
    let for_all = |image: &ImageSource| platforms.iter().all(|(_, platform)| has(&image.reference, platform));
    let current = platforms.iter().find(|(known, _)| known == id).map(|(_, platform)| platform);
    let concerns = |image: &&ImageSource| match (&image.platform, current) {
        (Some(platform), Some(current)) if for_all(image) => platform.os == current.os && platform.architecture == current.architecture,
        _ => true,
    };
    images.iter().filter(concerns).cloned().collect()
}

/// A predicate that lacks the end of the build and the layers.
struct Provenance {
    build: Arc<Build>,
    predicate: Predicate,
    version: crate::provenance::predicate::Version,
    /// Whether to tell how busy the machine was, and what each step used of it.
    usage: bool,
}

impl Provenance {
    fn new(build: &Arc<Build>, capture: &Capture, traced: &Traced, options: &Options) -> Result<Self> {
        let mut predicate = Predicate::new(capture)?;
        predicate.started = Some(build.started().into());
        predicate.invocation = build.unique_id().to_owned();
        predicate.builder_id = options.builder_id.clone();
        predicate.reproducible = options.reproducible;
        predicate.request.compatibility = build.request.compatibility;
        predicate.custom = build.settings.provenance_env.clone();
        if predicate.request.frontend == "dockerfile.v0" {
            predicate.dockerfile_version = build.settings.version.dockerfile.clone();
        }
        if options.minimal {
            predicate.request_complete &= !predicate.request.scrub();
        } else {
            let steps = Steps::of(&traced.graph)?;
            predicate.metadata.source = SourceMap::of(&traced.graph, &steps)?;
            predicate.steps = Some(steps);
        }
        Ok(Self { build: build.clone(), predicate, version: options.version, usage: options.usage })
    }

    /// The layers of every step whose result is packed by now.
    async fn layers(&self, steps: &Steps) -> Result<BTreeMap<String, Vec<Vec<Descriptor>>>> {
        let mut layers = BTreeMap::new();
        for (vertex, output, layer) in self.build.job.outputs().await? {
            let (Some(step), Some(layer)) = (steps.name(&vertex), layer) else { continue };
            if let Some(blobs) = layer.packed().filter(|blobs| !blobs.is_empty()) {
                let chain = blobs.iter().map(export::without_internals).collect();
                layers.entry(format!("{step}:{output}")).or_insert_with(Vec::new).push(chain);
            }
        }
        Ok(layers)
    }
}

#[async_trait]
impl Author for Provenance {
    async fn predicate(&self) -> Result<Bytes> {
        let mut predicate = self.predicate.clone();
        predicate.finished = Some(self.build.finished().into());
        if let Some(steps) = &predicate.steps {
            predicate.metadata.layers = self.layers(steps).await?;
        }
        if self.usage {
            predicate.metadata.usage = self.build.machine().samples().await;
            for step in predicate.steps.iter_mut().flat_map(|steps| &mut steps.steps) {
                let samples = step.vertex.as_ref().and_then(|vertex| self.build.worker.used(vertex));
                step.usage = samples.and_then(|samples| Usage::of(&samples, self.build.started()));
            }
        }
        Ok(predicate.to_json(self.version).into())
    }
}

fn incomplete(capture: &Capture) -> Fault {
    let mut text = String::from(
        "provenance materials are incomplete\n\nThe build requested complete provenance materials, but not all dependencies could be captured.",
    );
    if !capture.sources.local.is_empty() {
        text.push_str("\n\nUncaptured local sources:");
    }
    for local in &capture.sources.local {
        let name = if local.name.is_empty() { "<unnamed>" } else { &local.name };
        text.push_str(&format!("\n  - {name}\n    reason: local_source"));
    }
    let mut names: Vec<_> = capture.sources.local.iter().map(|l| serde_json::json!({"name": l.name, "reason": "local_source"})).collect();
    if !capture.uncaptured.is_empty() {
        text.push_str("\n\nUncaptured requests:");
    }
    for request in &capture.uncaptured {
        let name = if request.name.is_empty() { &request.op } else { &request.name };
        text.push_str(&format!("\n  - {name}\n    method: {}\n    url: {}\n    reason: {}", request.method, request.uri, request.reason));
        names.push(serde_json::json!(request));
    }
    Fault::new(Kind::Unknown, text).with_detail(Detail::Other {
        type_url: "github.com/moby/buildkit/errdefs.ProvenanceMaterialsIncomplete+json".into(),
        value: serde_json::json!({"incomplete": names}).to_string().into_bytes(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_for_every_platform_counts_once_for_each() {
        let image = |reference: &str, platform: &str| ImageSource {
            reference: reference.into(),
            platform: Some(platform.parse().unwrap()),
            digest: None,
            local: false,
        };
        let platforms: Vec<(String, Platform)> =
            ["linux/amd64", "linux/arm64"].map(|p| (p.to_owned(), p.parse::<Platform>().unwrap().normalized())).into();
        let images = vec![image("a", "linux/amd64"), image("a", "linux/arm64"), image("tool", "linux/amd64")];
        let shown = of_platform(images, "linux/arm64", &platforms);
        assert_eq!(shown, [image("a", "linux/arm64"), image("tool", "linux/amd64")]);
    }

    #[test]
    fn what_is_missing_is_listed() {
        let mut capture = Capture::default();
        capture.sources.add_local("context");
        let fault = incomplete(&capture);
        let want = "not all dependencies could be captured.\n\nUncaptured local sources:\n  - context\n    reason: local_source";
        assert!(fault.to_string().ends_with(want), "{fault}");
        let Some(Detail::Other { value, .. }) = fault.details().first() else { panic!("a detail") };
        assert_eq!(value, br#"{"incomplete":[{"name":"context","reason":"local_source"}]}"#);
    }
}
