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

/// One statement for each platform whose result is not scratch, by platform id. All results are evaluated.
pub fn attest(
    build: &Arc<Build>,
    outcome: &Outcome,
    platforms: &[(String, Platform)],
    options: &Options,
) -> Result<BTreeMap<String, Statement>> {
    let mut all = BTreeMap::new();
    for (id, traced) in traced(build, outcome, platforms) {
        let capture = capture(build, outcome, platforms, &id, &traced)?;
        if options.complete_materials && !capture.has_all_materials() {
            return Err(incomplete(&capture));
        }
        let statement = Statement {
            predicate_type: options.version.predicate_type().to_owned(),
            predicate: export::Predicate::Late(Arc::new(Provenance::new(build, &capture, &traced, options)?)),
            path: options.filename.clone(),
            inline_only: options.inline_only,
            subjects: Vec::new(),
            sbom_core: None,
        };
        all.insert(id, statement);
    }
    Ok(all)
}

/// The result of each platform that has one.
fn traced(build: &Build, outcome: &Outcome, platforms: &[(String, Platform)]) -> Vec<(String, Arc<Traced>)> {
    platforms.iter().filter_map(|(id, _)| Some((id.clone(), build.traced(outcome.reference(id)?)?))).collect()
}

fn capture(build: &Build, outcome: &Outcome, listed: &[(String, Platform)], id: &str, traced: &Traced) -> Result<Capture> {
    let final_ids: BTreeSet<String> = outcome.every_ref().map(|reference| reference.id().to_owned()).collect();
    let is_map = platforms::is_map(outcome);
    let images = |images| if is_map { of_platform(images, id, listed) } else { images };
    build
        .scope()
        .provenance(traced, &final_ids, images)
        .unwrap_or_else(|| Err(Fault::new(Kind::Unknown, format!("could not find request for ref {}", traced.id))))
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
        Ok(Self { build: build.clone(), predicate, version: options.version })
    }

    /// The layers of every step whose result is packed by now.
    async fn layers(&self, steps: &Steps) -> Result<BTreeMap<String, Vec<Vec<Descriptor>>>> {
        let mut layers = BTreeMap::new();
        for (vertex, output, layer) in self.build.job.outputs().await? {
            let (Some(step), Some(layer)) = (steps.name(&vertex), layer) else { continue };
            let blobs: Option<Vec<Descriptor>> = layer.chain().iter().map(|layer| layer.known_blobs().into_iter().next()).collect();
            if let Some(blobs) = blobs.filter(|blobs| !blobs.is_empty()) {
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
    let names: Vec<_> = capture.sources.local.iter().map(|l| serde_json::json!({"name": l.name, "reason": "local_source"})).collect();
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
