//! What stages build on: images, named contexts, scratch.
use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::future::try_join_all;
use llb::{Graph, Metadata};
use oci::{ImageConfig, Platform, Reference};

use super::ask::{ContextFiles, ImageRequest, LoadedContext};
use super::plan::{NodeId, Planned, State};
use super::{Converter, image, name, validate};
use crate::shell::NoVariables;
use crate::source::{self, describe};
use crate::text::{nearest, quote};
use crate::{Error, Result};

/// What was found out about a base, before it changes anything.
struct Found {
    stage: usize,
    /// Full form, with the digest where it was looked for.
    name: String,
    platform: Platform,
    base: Base,
}

enum Base {
    /// The whole stage is replaced.
    Replaced(LoadedContext),
    Context(LoadedContext),
    Image(Box<ImageConfig>),
    /// Nobody needs it.
    Unneeded,
}

impl Converter<'_> {
    /// All bases at once: each may need a round trip to a registry.
    pub(super) async fn resolve_bases(&mut self, reachable: &BTreeSet<usize>) -> Result<()> {
        let mut wanted = Vec::new();
        for index in 0..self.stages.len() {
            let needed = reachable.contains(&index) || self.options.all_stages;
            let stage = &mut self.stages[index];
            if stage.base.is_some() || stage.dispatched || stage.resolved {
                continue;
            }
            stage.resolved = needed;
            if stage.stage.base == "scratch" && stage.replacement.is_none() {
                stage.state = State::new(None);
                stage.image = image::empty(&self.target_platform);
                stage.platform = Some(self.target_platform.clone());
                stage.dispatched |= stage.unregistered;
                continue;
            }
            wanted.push((index, needed));
        }
        let found = try_join_all(wanted.into_iter().map(|(index, needed)| self.find_base(index, needed))).await?;
        found.into_iter().for_each(|found| self.use_base(found));
        Ok(())
    }

    async fn find_base(&self, index: usize, needed: bool) -> Result<Found> {
        let place = self.stages[index].stage.lines;
        self.look_for_base(index, needed).await.map_err(|e| e.at(place))
    }

    async fn look_for_base(&self, index: usize, needed: bool) -> Result<Found> {
        let stage = &self.stages[index];
        let written = &stage.stage.base;
        let parsed: std::result::Result<Reference, _> = written.parse();
        let reference = parsed.map_err(|e| Error::new(format!("failed to parse stage name {}: {e}", quote(written))))?;
        let tagged = reference.or_latest().to_string();
        let platform = stage.platform.clone().unwrap_or_else(|| self.target_platform.clone());
        let found = |name: &str, platform, base| Ok(Found { stage: index, name: name.to_owned(), platform, base });
        let mode = self.options.resolve_mode;
        if !needed {
            return found(&tagged, platform, Base::Unneeded);
        }
        if let Some(context) = &stage.replacement {
            let wanted = stage.platform.as_ref().or(self.options.target_platform.as_ref());
            let loaded = self.ask.load_context(context, wanted, mode).await.map_err(Error::caused_by)?;
            return found(&tagged, platform, Base::Replaced(loaded));
        }
        if let Some(context) = self.named_context(&tagged, Some(&platform))? {
            let loaded = self.ask.load_context(&context, Some(&platform), mode).await.map_err(Error::caused_by)?;
            return found(&tagged, platform, Base::Context(loaded));
        }
        let shown = if self.options.multi_platform { format!("{platform} ") } else { String::new() };
        let log_name = format!("[{shown}internal] load metadata for {tagged}");
        let request = ImageRequest { reference: &tagged, platform: &platform, mode, log_name };
        let answer = self.ask.image(request).await.map_err(|cause| {
            let options = self.stages.names().into_iter().chain(common_images());
            Error::caused_by(cause).context(written).suggest(nearest(written, options, true))
        })?;
        let parsed: std::result::Result<Reference, _> = answer.reference.parse();
        let reference = parsed.map_err(|e| Error::new(format!("failed to parse ref {}: {e}", quote(&answer.reference))))?;
        let config =
            ImageConfig::parse(&answer.config).map_err(|e| Error::new(format!("failed to parse image config: {}", source_text(&e))))?;
        let platform = match (&stage.platform, &self.options.target_platform) {
            (None, None) => self.detect_platform(&config, platform),
            _ => platform,
        };
        found(&reference.with_digest(answer.digest).to_string(), platform, Base::Image(Box::new(config)))
    }

    /// Without a wish, an image for another platform that the daemon builds for is taken as it is.
    fn detect_platform(&self, config: &ImageConfig, wanted: Platform) -> Platform {
        let fits = |p: &&Platform| p.os == config.os && p.architecture == config.architecture;
        if fits(&&wanted) {
            return wanted;
        }
        self.build_platforms.iter().find(fits).cloned().unwrap_or(wanted)
    }

    fn use_base(&mut self, found: Found) {
        let Found { stage: index, name: base_name, platform, base } = found;
        let written = std::mem::replace(&mut self.stages[index].stage.base, base_name);
        match base {
            Base::Replaced(loaded) => {
                let state = self.context_state(index, &loaded);
                let stage = &mut self.stages[index];
                stage.dispatched = true;
                stage.state = state;
                if let Some(config) = loaded.image {
                    if !config.architecture.is_empty() && !config.os.is_empty() {
                        stage.platform = Some(config.platform());
                    }
                    stage.image = ImageConfig { created: None, ..config };
                }
            }
            Base::Context(loaded) => {
                let state = self.context_state(index, &loaded);
                let config = loaded.image.unwrap_or_else(|| image::empty(&platform));
                let stage = &mut self.stages[index];
                stage.base_image = Some(config.clone());
                stage.image = ImageConfig { created: None, ..config };
                stage.state = State { platform: Some(platform.clone().normalized()), ..state };
                stage.platform = Some(platform);
            }
            Base::Image(config) => {
                let empty = config.rootfs.diff_ids.is_empty() && config.history.iter().all(|h| h.empty_layer);
                let stage = &mut self.stages[index];
                stage.base_image = Some((*config).clone());
                stage.image = ImageConfig { created: None, ..*config };
                self.use_image(index, platform, empty);
                if !empty {
                    let stage = &self.stages[index];
                    let expected = stage.platform.clone().unwrap_or_default();
                    validate::base_platform(&written, &expected, &stage.image.platform(), stage.stage.lines, self.linter);
                }
            }
            Base::Unneeded => self.use_image(index, platform, false),
        }
        let stage = &mut self.stages[index];
        stage.dispatched |= stage.unregistered;
    }

    fn use_image(&mut self, index: usize, platform: Platform, empty: bool) {
        let stage = &mut self.stages[index];
        stage.platform = Some(platform.clone());
        if empty {
            stage.state = State::new(None);
            return;
        }
        let shown = self.options.multi_platform.then_some(&platform);
        let text = format!("FROM {}", stage.stage.base);
        let step_name = name::prefix(stage, &text, shown, &NoVariables);
        let mut source = source::image(&stage.stage.base, Some(platform.clone()), self.options.resolve_mode).named(step_name);
        describe(&mut source.metadata, "com.docker.dockerfile.v1.command", &stage.stage.code);
        let node = self.plan.add_base(source, stage.stage.lines);
        stage.state = State { platform: Some(platform.normalized()), ..State::new(Some(node)) };
    }

    fn context_state(&mut self, index: usize, loaded: &LoadedContext) -> State {
        let (files, platform) = match &loaded.files {
            ContextFiles::Graph(graph) => (self.plan_graph(graph), graph.as_deref().and_then(result_platform)),
            ContextFiles::Local { local, name } => {
                let planned = Planned::Local { local: local.clone(), name: name.clone(), paths: self.stages[index].paths };
                (Some(self.plan.add(planned, Metadata::default(), None)), None)
            }
        };
        let mut state = State { platform, ..State::new(files) };
        let Some(config) = &loaded.image else { return state };
        for entry in &config.config.env {
            let (key, value) = image::split_env(entry);
            if !key.is_empty() {
                state.env.set(key, value);
            }
        }
        let dir = &config.config.working_dir;
        state.dir = if dir.starts_with('/') { dir.clone() } else { patterns::join(&["/", dir]) };
        if !config.architecture.is_empty() && !config.os.is_empty() {
            state.platform = Some(config.platform().normalized());
        }
        state
    }

    fn plan_graph(&mut self, graph: &Option<Arc<Graph>>) -> Option<NodeId> {
        graph.as_ref()?.result.as_ref()?;
        Some(self.plan.add(Planned::Graph(graph.clone()), Metadata::default(), None))
    }
}

fn result_platform(graph: &Graph) -> Option<Platform> {
    let result = graph.result.as_ref()?;
    graph.vertex(&result.vertex)?.platform.clone().map(Platform::normalized)
}

fn source_text(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// What a misspelt base may have been meant to be.
fn common_images() -> impl Iterator<Item = String> {
    ["alpine", "busybox", "centos", "debian", "golang", "ubuntu", "fedora"].into_iter().flat_map(|name| {
        [name.to_owned(), format!("docker.io/library{name}"), format!("{name}:latest"), format!("docker.io/library{name}:latest")]
    })
}
