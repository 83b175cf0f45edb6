use std::collections::{BTreeMap, BTreeSet};

use oci::{ImageConfig, Platform};

use super::ask::NamedContext;
use super::plan::{PathSetId, Plan, State};
use crate::instruction::{Arg, Instruction, Stage};
use crate::{Error, Lines, Result};

/// A stage on its way from text to LLB. Images that only a `--from` names are stages too, without instructions.
#[derive(Debug)]
pub(super) struct StageState {
    pub stage: Stage,
    /// As step names show it; empty if the file has one stage only.
    pub shown_name: String,
    pub platform: Option<Platform>,
    /// The stage that it builds on.
    pub base: Option<usize>,
    pub state: State,
    pub image: ImageConfig,
    /// The config of the image it builds on, untouched.
    pub base_image: Option<ImageConfig>,
    /// Stands in for all of its instructions.
    pub replacement: Option<NamedContext>,
    pub dispatched: bool,
    pub resolved: bool,
    pub triggers_known: bool,
    /// Stages that its instructions use, and where.
    pub deps: Vec<(usize, Lines)>,
    pub args: Vec<Arg>,
    pub steps: Vec<Step>,
    /// Paths of the build context that it uses.
    pub context_paths: PathSetId,
    /// Paths of its base that are used.
    pub paths: PathSetId,
    pub ignore_cache: bool,
    pub unregistered: bool,
    /// How many steps were named, and how many there are.
    pub step: usize,
    pub total: usize,
    pub in_trigger: bool,
    pub workdir_set: bool,
    pub entrypoint_at: Option<Lines>,
    pub cmd_at: Option<Lines>,
    pub healthcheck_at: Option<Lines>,
    pub scan_stage: bool,
    pub scan_context: bool,
    pub outline: Captured,
}

/// One instruction and the stages it takes files from.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub instruction: Instruction,
    pub sources: Vec<usize>,
    pub is_trigger: bool,
}

/// What the outline will tell of a stage.
#[derive(Debug, Clone, Default)]
pub(super) struct Captured {
    pub args: BTreeMap<String, CapturedArg>,
    pub used: BTreeSet<String>,
    pub secrets: BTreeMap<String, CapturedMount>,
    pub ssh: BTreeMap<String, CapturedMount>,
}

#[derive(Debug, Clone)]
pub(super) struct CapturedArg {
    pub value: String,
    pub arg: Arg,
    pub deps: BTreeSet<String>,
    pub lines: Lines,
}

#[derive(Debug, Clone)]
pub(super) struct CapturedMount {
    pub required: bool,
    pub lines: Lines,
}

impl StageState {
    pub fn new(stage: Stage, plan: &mut Plan) -> Self {
        Self {
            shown_name: stage.name.clone(),
            stage,
            platform: None,
            base: None,
            state: State::default(),
            image: ImageConfig::default(),
            base_image: None,
            replacement: None,
            dispatched: false,
            resolved: false,
            triggers_known: false,
            deps: Vec::new(),
            args: Vec::new(),
            steps: Vec::new(),
            context_paths: plan.new_paths(),
            paths: plan.new_paths(),
            ignore_cache: false,
            unregistered: false,
            step: 0,
            total: 0,
            in_trigger: false,
            workdir_set: false,
            entrypoint_at: None,
            cmd_at: None,
            healthcheck_at: None,
            scan_stage: false,
            scan_context: false,
            outline: Captured::default(),
        }
    }

    /// A stage for an image that is only copied or mounted from.
    pub fn unregistered(image: &str, lines: Option<Lines>, plan: &mut Plan) -> Self {
        let stage = Stage {
            name: String::new(),
            base: image.to_owned(),
            platform: String::new(),
            keyword: String::new(),
            code: String::new(),
            lines,
            comments: Vec::new(),
            description: String::new(),
            instructions: Vec::new(),
        };
        Self { unregistered: true, ..Self::new(stage, plan) }
    }

    pub fn depend(&mut self, stage: usize, lines: Lines) {
        match self.deps.iter_mut().find(|(known, _)| *known == stage) {
            Some(known) => known.1 = lines,
            None => self.deps.push((stage, lines)),
        }
    }
}

/// All stages, in the order in which they were met.
#[derive(Debug, Default)]
pub(super) struct Stages {
    all: Vec<StageState>,
    by_name: BTreeMap<String, usize>,
}

impl Stages {
    pub fn add(&mut self, mut stage: StageState) -> usize {
        let index = self.all.len();
        if let Some(base) = self.by_name.get(&stage.stage.base).copied() {
            stage.base = Some(base);
            stage.outline = self.all[base].outline.clone();
        }
        if !stage.stage.name.is_empty() {
            self.by_name.insert(stage.stage.name.to_lowercase(), index);
        }
        self.all.push(stage);
        index
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = &StageState> {
        self.all.iter()
    }

    pub fn by_name(&self, name: &str) -> Option<usize> {
        self.by_name.get(&name.to_lowercase()).copied()
    }

    pub fn by_index(&self, index: i64) -> Result<usize> {
        let found = usize::try_from(index).ok().filter(|i| *i < self.all.len());
        found.ok_or_else(|| Error::new(format!("invalid stage index {index}")))
    }

    /// Names for guesses at what was meant.
    pub fn names(&self) -> Vec<String> {
        self.all.iter().map(|s| s.shown_name.clone()).filter(|n| !n.is_empty()).collect()
    }

    /// What `target` needs, itself included.
    pub fn reachable(&self, target: usize) -> BTreeSet<usize> {
        let mut found = BTreeSet::new();
        let mut next = vec![target];
        while let Some(stage) = next.pop() {
            if found.insert(stage) {
                next.extend(self.all[stage].base);
                next.extend(self.all[stage].deps.iter().map(|(dep, _)| *dep));
            }
        }
        found
    }

    /// Takes over what the base has come to. Called again once the base has run.
    pub fn inherit(&mut self, index: usize) {
        let Some(base) = self.all[index].base else { return };
        let (base, stage) = match self.all.get_disjoint_mut([base, index]) {
            Ok([base, stage]) => (base, stage),
            Err(_) => unreachable!("a stage's base was met before it"),
        };
        stage.state = base.state.clone();
        stage.platform = base.platform.clone();
        stage.image = base.image.clone();
        stage.image.config.on_build.clear();
        stage.base_image = base.base_image.clone();
        stage.paths = base.paths;
        stage.workdir_set = base.workdir_set;
        stage.args.extend(base.args.iter().cloned());
    }

    /// Fails if stages need each other in a circle.
    pub fn check_circles(&self) -> Result<()> {
        let mut visited = vec![false; self.all.len()];
        for (index, stage) in self.all.iter().enumerate() {
            if let Some(circle) = self.circle(index, &mut visited) {
                let error = Error::new(format!("circular dependency detected on stage: {}", stage.shown_name));
                return Err(circle.into_iter().fold(error, |error, lines| error.at(lines)));
            }
        }
        Ok(())
    }

    /// Depth first from `start`; the lines on the way around if there is one. Not recursive: there may be many stages.
    fn circle(&self, start: usize, visited: &mut [bool]) -> Option<Vec<Lines>> {
        if std::mem::replace(&mut visited[start], true) {
            return None;
        }
        // Each stage on the way with its next dependency to look at, and the line that led to it.
        let mut path: Vec<(usize, usize, Option<Lines>)> = vec![(start, 0, None)];
        let mut on_path = std::collections::BTreeSet::from([start]);
        while let Some((stage, next, _)) = path.last_mut() {
            let Some((dep, lines)) = self.all[*stage].deps.get(*next) else {
                on_path.remove(stage);
                path.pop();
                continue;
            };
            *next += 1;
            if on_path.contains(dep) {
                return Some(path.iter().filter_map(|(.., via)| *via).chain([*lines]).collect());
            }
            if !std::mem::replace(&mut visited[*dep], true) {
                on_path.insert(*dep);
                path.push((*dep, 0, Some(*lines)));
            }
        }
        None
    }
}

impl std::ops::Index<usize> for Stages {
    type Output = StageState;
    fn index(&self, index: usize) -> &StageState {
        &self.all[index]
    }
}

impl std::ops::IndexMut<usize> for Stages {
    fn index_mut(&mut self, index: usize) -> &mut StageState {
        &mut self.all[index]
    }
}
