//! Dockerfile to LLB: stages, scopes of variables, steps, and the image config that comes with the files.
//!
//! [`convert`] is the whole way. Vertices, names, metadata, image config and history are those that BuildKit's own frontend makes, because their
//! digests are cache keys. What a conversion must ask, it asks an [`Ask`].
mod args;
mod ask;
mod base;
mod copy;
mod dispatch;
mod env;
mod epoch;
mod expose;
mod image;
mod name;
mod options;
mod outline;
mod paths;
mod plan;
mod run;
mod stage;
mod validate;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use llb::Graph;
use oci::{ImageConfig, Platform, Timestamp};
use patterns::Matcher;

pub use ask::{Ask, ContextFiles, Image, ImageRequest, LoadedContext, NamedContext};
pub use env::Env;
pub use options::{NoCache, Options};
pub use outline::{Outline, OutlineArg, OutlineMount};

use crate::instruction::{self, Command, Dockerfile, RunSecurity, Stage};
use crate::lint::{self, Linter};
use crate::shell::{ExpandError, Expanded, Lexer, Variables};
use crate::text::nearest;
use crate::{Error, Result, syntax};
use plan::{Encoder, NodeId, Plan};
use stage::{StageState, Stages, Step};

/// A stage as LLB.
#[derive(Debug, Clone)]
pub struct Converted {
    pub graph: Arc<Graph>,
    pub image: ImageConfig,
    /// The config of the base image, if there is one.
    pub base_image: Option<ImageConfig>,
    /// What else to look through for a bill of materials, by name.
    pub scan: BTreeMap<String, Arc<Graph>>,
    /// Stands for "now".
    pub epoch: Option<Timestamp>,
    /// A stage that is looked through runs again each time.
    pub ignore_cache: bool,
}

/// Converts the stage that `options` ask for. Warnings collect in `linter`, also if the conversion fails.
pub async fn convert(data: &[u8], options: &Options, ask: &dyn Ask, linter: &mut Linter) -> Result<Converted> {
    let (converter, target) = Converter::run(data, options, ask, linter).await?;
    converter.finish(target).await
}

/// What the target can be given: arguments, secrets, ssh agents.
pub async fn outline(data: &[u8], options: &Options, ask: &dyn Ask, linter: &mut Linter) -> Result<Outline> {
    let (converter, target) = Converter::run(data, options, ask, linter).await?;
    let outline = converter.outline(target);
    converter.finish(target).await?;
    Ok(outline)
}

struct Converter<'a> {
    options: Options,
    ask: &'a dyn Ask,
    linter: &'a Linter,
    lexer: Lexer,
    /// Native platform first.
    build_platforms: Vec<Platform>,
    target_platform: Platform,
    global: Env,
    epoch: Option<Timestamp>,
    stages: Stages,
    plan: Plan,
    context: NodeId,
    ignore: Option<Matcher>,
    captured: stage::Captured,
}

impl<'a> Converter<'a> {
    async fn run(data: &[u8], options: &Options, ask: &'a dyn Ask, linter: &'a mut Linter) -> Result<(Self, usize)> {
        if data.is_empty() {
            return Err(Error::new("the Dockerfile cannot be empty"));
        }
        linter.set_config(lint_config(data, options)?);
        let linter: &Linter = linter;
        let document = syntax::parse(data)?;
        for lines in &document.empty_continuations {
            linter.warn(&lint::NO_EMPTY_CONTINUATION, *lines, || "Empty continuation line".into());
        }
        let file = instruction::parse(&document, linter)?;
        let Some(last) = file.stages.last() else { return Err(Error::new("dockerfile contains no stages to build")) };
        validate::stage_names(&file.stages, linter);
        validate::casing(&file.stages, linter);

        let target_name = if options.target.is_empty() { last.name.clone() } else { options.target.clone() };
        let mut converter = Self::new(options, ask, linter, Lexer::new(document.escape), &target_name);
        validate::default_base_names(&file, &converter.lexer, &converter.global, linter);
        let args = args::global(&converter.global, &converter.lexer, &file.global_args, &converter.options.build_args)?;
        (converter.global, converter.captured.args) = args;
        converter.resolve_epoch(&file.stages).await?;

        converter.build_stages(file)?;
        let target = converter.target()?;
        converter.connect_stages()?;
        let reachable = converter.resolve_stages(target).await?;
        converter.dispatch_stages(&reachable, target).await?;
        Ok((converter, target))
    }

    fn new(options: &Options, ask: &'a dyn Ask, linter: &'a Linter, lexer: Lexer, target_name: &str) -> Self {
        let build_platforms = match options.build_platforms.as_slice() {
            [] => vec![options.build_platform()],
            known => known.to_vec(),
        };
        let target_platform = options.target_or_build_platform();
        let global = args::automatic(&build_platforms[0], &target_platform, &options.build_args, target_name);
        let mut plan = Plan::default();
        let context = plan.add(plan::Planned::Context, llb::Metadata::default(), None);
        Self {
            options: options.clone(),
            ask,
            linter,
            lexer,
            build_platforms,
            target_platform,
            global,
            epoch: None,
            stages: Stages::default(),
            plan,
            context,
            ignore: None,
            captured: stage::Captured::default(),
        }
    }

    /// Expands what FROM lines say and finds out which stages build on which.
    fn build_stages(&mut self, file: Dockerfile) -> Result<()> {
        for (index, stage) in file.stages.into_iter().enumerate() {
            let place = stage.lines;
            self.build_stage(index, stage).map_err(|e| if e.locations().is_empty() && e.cause().is_none() { e.at(place) } else { e })?;
        }
        Ok(())
    }

    fn build_stage(&mut self, index: usize, mut from: Stage) -> Result<()> {
        let linter = self.linter.below(&from.comments);
        let declared: BTreeSet<String> =
            self.captured.args.keys().cloned().chain(self.global.names().into_iter().map(str::to_owned)).collect();
        let base = self.lexer.expand(&from.base, &self.global);
        validate::undeclared_in_from(&declared, unmatched(&base), from.lines, &linter);
        let base = base?;
        if base.text.is_empty() {
            return Err(Error::new(format!("base name ({}) should not be blank", from.base)));
        }
        let mut used = base.matched;
        from.base = base.text;
        let mut platform = None;
        if !from.platform.is_empty() {
            let (parsed, names) = self.stage_platform(&from, &declared, &linter)?;
            used.extend(names);
            platform = Some(parsed);
        }
        let name = from.name.clone();
        let mut stage = StageState::new(from, &mut self.plan);
        stage.outline = self.captured.clone();
        stage.platform = platform;
        if !name.is_empty()
            && let Some(context) = self.named_context(&name, stage.platform.as_ref())?
        {
            stage.replacement = Some(context);
            let added = self.stages.add(stage);
            self.stages[added].base = None;
            return Ok(());
        }
        if name.is_empty() {
            stage.shown_name = format!("stage-{index}");
        }
        let added = self.stages.add(stage);
        let stage = &mut self.stages[added];
        stage.outline.used.extend(used);
        let steps = stage.stage.instructions.iter().filter(|i| i.command.is_step()).count();
        stage.total = steps + usize::from(stage.stage.base != "scratch" && stage.base.is_none());
        stage.ignore_cache = self.options.no_cache.holds(&name);
        Ok(())
    }

    fn stage_platform(&self, from: &Stage, declared: &BTreeSet<String>, linter: &Linter) -> Result<(Platform, BTreeSet<String>)> {
        let found = self.lexer.expand(&from.platform, &self.global);
        validate::undeclared_in_from(declared, unmatched(&found), from.lines, linter);
        // BuildKit names the expanded platform here, of which nothing is known.
        let found = found.map_err(|e| Error::from(e).context("failed to process arguments for platform "))?;
        validate::redundant_platform(&from.platform, &found, from.lines, &self.global, linter);
        validate::constant_platform(&from.name, &found, from.lines, linter);
        let names = self.global.names();
        let guess = || found.unmatched.iter().find_map(|name| nearest(name, names.iter(), true));
        if found.text.is_empty() {
            return Err(Error::new(format!("empty platform value from expression {}", from.platform)).suggest(guess()));
        }
        let platform = crate::parse_platform(&found.text).map_err(|e| {
            let error = Error::new(e.to_string()).at(from.lines).suggest(guess());
            error.context(format!("failed to parse platform {}", from.platform)).at(from.lines)
        })?;
        Ok((platform, found.matched))
    }

    fn named_context(&self, name: &str, platform: Option<&Platform>) -> Result<Option<NamedContext>> {
        if name.eq_ignore_ascii_case("scratch") || name.eq_ignore_ascii_case("context") {
            return Ok(None);
        }
        self.ask.named_context(name, platform.or(self.options.target_platform.as_ref())).map_err(Error::caused_by)
    }

    fn target(&self) -> Result<usize> {
        let target = &self.options.target;
        if target.is_empty() {
            return Ok(self.stages.len() - 1);
        }
        self.stages.by_name(target).ok_or_else(|| {
            let text = crate::text::quote(target);
            Error::new(format!("target stage {text} could not be found")).suggest(nearest(target, self.stages.names(), true))
        })
    }

    /// Finds the stages and images that instructions take files from.
    fn connect_stages(&mut self) -> Result<()> {
        for index in 0..self.stages.len() {
            let instructions = std::mem::take(&mut self.stages[index].stage.instructions);
            for instruction in instructions {
                let step = self.connect(index, instruction, false)?;
                self.stages[index].steps.push(step);
            }
        }
        self.stages.check_circles()?;
        if self.stages.len() == 1 {
            self.stages[0].shown_name.clear();
        }
        Ok(())
    }

    fn connect(&mut self, index: usize, instruction: instruction::Instruction, is_trigger: bool) -> Result<Step> {
        let lines = instruction.lines;
        let sources = match &instruction.command {
            Command::Copy(copy) if !copy.from.is_empty() => vec![self.copy_source(&copy.from, lines)?],
            Command::Run(run) => run.mounts.iter().map(|mount| self.mount_source(&mount.from)).collect(),
            _ => Vec::new(),
        };
        for source in &sources {
            self.stages[index].depend(*source, lines);
        }
        Ok(Step { instruction, sources, is_trigger })
    }

    fn copy_source(&mut self, from: &str, lines: crate::Lines) -> Result<usize> {
        let expanded = self.lexer.expand(from, &crate::shell::NoVariables)?;
        if expanded.text != from {
            let why = "define a new stage with FROM using ARG from global scope as a workaround";
            return Err(Error::new(format!("variable expansion is not supported for --from, {why}")));
        }
        if let Ok(index) = from.parse() {
            return self.stages.by_index(index);
        }
        Ok(match self.stages.by_name(from) {
            Some(stage) => stage,
            None => self.stages.add(StageState::unregistered(from, Some(lines), &mut self.plan)),
        })
    }

    /// A mount without `from` has a source too, which nobody looks at.
    fn mount_source(&mut self, from: &str) -> usize {
        let from = if from.is_empty() { "scratch" } else { from };
        match self.stages.by_name(from) {
            Some(stage) => stage,
            None => self.stages.add(StageState::unregistered(from, None, &mut self.plan)),
        }
    }

    /// Resolves the bases of all stages that are needed. Triggers of base images may need more stages.
    async fn resolve_stages(&mut self, target: usize) -> Result<BTreeSet<usize>> {
        loop {
            let reachable = self.stages.reachable(target);
            self.resolve_bases(&reachable).await?;
            let mut more = false;
            for index in &reachable {
                more |= self.take_triggers(*index)?;
            }
            if !more {
                return Ok(reachable);
            }
        }
    }

    /// Puts what ONBUILD of the base says in front of the stage's own instructions. Says whether that needs other stages.
    fn take_triggers(&mut self, index: usize) -> Result<bool> {
        self.stages.inherit(index);
        let stage = &mut self.stages[index];
        let mut triggers = std::mem::take(&mut stage.image.config.on_build);
        if let Some(base) = stage.base
            && !std::mem::replace(&mut stage.triggers_known, true)
        {
            triggers.extend(self.stages[base].steps.iter().filter_map(|step| match &step.instruction.command {
                Command::OnBuild(trigger) => Some(trigger.clone()),
                _ => None,
            }));
        }
        let place = self.stages[index].stage.lines;
        let mut steps = Vec::new();
        for trigger in &triggers {
            steps.push(self.trigger(index, trigger).map_err(|e| e.moved_to(place))?);
        }
        let more = steps.iter().any(|step| !step.sources.is_empty());
        let stage = &mut self.stages[index];
        stage.total += steps.len();
        stage.steps.splice(0..0, steps);
        Ok(more)
    }

    fn trigger(&mut self, index: usize, trigger: &str) -> Result<Step> {
        let mut document = syntax::parse(trigger.as_bytes())?;
        let Some(mut node) = document.nodes.pop().filter(|_| document.nodes.is_empty()) else {
            return Err(Error::new("onbuild trigger should be a single expression"));
        };
        // It counts as written where the stage begins.
        node.lines = self.stages[index].stage.lines.unwrap_or(crate::Lines::single(0));
        let instruction = instruction::parse_one(&node)?;
        self.connect(index, instruction, true)
    }

    async fn finish(self, target: usize) -> Result<Converted> {
        let mut image = self.stages[target].image.clone();
        image.config.labels.extend(self.options.labels.clone());
        if let Some(error) = self.linter.violation() {
            return Err(error);
        }
        let mut paths: BTreeSet<String> = BTreeSet::new();
        let mut whole = false;
        for stage in self.stages.iter().filter(|stage| stage.dispatched) {
            let (all, some) = self.plan.paths(stage.context_paths);
            whole |= all;
            paths.extend(some);
        }
        let paths: Vec<String> = if whole { Vec::new() } else { paths.into_iter().collect() };
        let context = self.ask.main_context(&paths).await.map_err(Error::caused_by)?;
        if self.options.target_platform.is_some() {
            image::set_target(&mut image, &self.target_platform);
        }
        let platform = image.platform().normalized();
        image.set_platform(&platform);

        let mut encoder = Encoder::new(self.plan, context.as_ref(), &self.target_platform, self.options.source.clone());
        if !self.options.has_cap("exec.meta.setsdefaultpath") {
            encoder = encoder.without_default_path();
        }
        let stage = &self.stages[target];
        let result = stage.state.files.and_then(|node| encoder.edge(node));
        let mut scan = BTreeMap::new();
        if stage.scan_context {
            scan.insert("context".to_owned(), Arc::new(encoder.graph(Some(self.context))));
        }
        let mut ignore_cache = stage.ignore_cache;
        for index in self.stages.reachable(target) {
            let other = &self.stages[index];
            if index != target && other.scan_stage {
                scan.insert(other.shown_name.clone(), Arc::new(encoder.graph(other.state.files)));
                ignore_cache |= other.ignore_cache;
            }
        }
        let graph = Arc::new(encoder.into_graph(result));
        Ok(Converted { graph, image, base_image: stage.base_image.clone(), scan, epoch: self.epoch, ignore_cache })
    }
}

/// Variables that a word asked for in vain, whether it could be expanded or not.
fn unmatched(expanded: &std::result::Result<Expanded, ExpandError>) -> &BTreeSet<String> {
    match expanded {
        Ok(expanded) => &expanded.unmatched,
        Err(error) => &error.unmatched,
    }
}

fn lint_config(data: &[u8], options: &Options) -> Result<lint::Config> {
    if let Some(config) = &options.lint {
        return Ok(config.clone());
    }
    let directive = syntax::find_directive("check", data);
    let text = directive.as_ref().map_or("", |d| lint::first_word(&d.value));
    lint::Config::parse(text).map_err(|e| e.context("failed to parse check options"))
}

impl From<RunSecurity> for llb::SecurityMode {
    fn from(security: RunSecurity) -> Self {
        match security {
            RunSecurity::Sandbox => Self::Sandbox,
            RunSecurity::Insecure => Self::Insecure,
        }
    }
}
