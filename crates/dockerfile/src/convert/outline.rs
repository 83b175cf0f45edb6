//! What a target can be given, for `docker build --call=outline`.
use std::collections::BTreeSet;

use super::Converter;
use super::stage::{Captured, StageState, Stages};
use crate::Lines;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outline {
    pub name: String,
    pub description: String,
    pub args: Vec<OutlineArg>,
    pub secrets: Vec<OutlineMount>,
    pub ssh: Vec<OutlineMount>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlineArg {
    pub name: String,
    pub description: String,
    pub value: String,
    pub lines: Lines,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlineMount {
    pub name: String,
    pub required: bool,
    pub lines: Lines,
}

impl Converter<'_> {
    pub(super) fn outline(&self, target: usize) -> Outline {
        let stage = &self.stages[target];
        let mut outline = Outline { name: stage.stage.name.clone(), description: stage.stage.description.clone(), ..Outline::default() };
        let mut seen = Seen::default();
        collect(&self.stages, target, &mut seen, &mut outline);
        outline.args.sort_by_key(|arg| arg.lines.first);
        outline.secrets.sort_by_key(|secret| secret.lines.first);
        outline.ssh.sort_by_key(|ssh| ssh.lines.first);
        outline
    }
}

#[derive(Default)]
struct Seen {
    stages: BTreeSet<usize>,
    args: BTreeSet<String>,
    secrets: BTreeSet<String>,
    ssh: BTreeSet<String>,
}

/// The stage first, then what it builds on, then what it takes files from: the first to name something says what it is.
fn collect(stages: &Stages, target: usize, seen: &mut Seen, outline: &mut Outline) {
    let mut next = vec![target];
    while let Some(index) = next.pop() {
        if !seen.stages.insert(index) {
            continue;
        }
        let stage: &StageState = &stages[index];
        take(&stage.outline, seen, outline);
        next.extend(stage.deps.iter().rev().map(|(dep, _)| *dep).chain(stage.base));
    }
}

fn take(captured: &Captured, seen: &mut Seen, outline: &mut Outline) {
    for name in used_args(captured) {
        let Some(found) = captured.args.get(&name).filter(|_| seen.args.insert(name.clone())) else { continue };
        let (name, description) = (found.arg.key.clone(), found.arg.description.clone());
        outline.args.push(OutlineArg { name, description, value: found.value.clone(), lines: found.lines });
    }
    for (name, found) in &captured.secrets {
        if seen.secrets.insert(name.clone()) {
            outline.secrets.push(OutlineMount { name: name.clone(), required: found.required, lines: found.lines });
        }
    }
    for (name, found) in &captured.ssh {
        if seen.ssh.insert(name.clone()) {
            outline.ssh.push(OutlineMount { name: name.clone(), required: found.required, lines: found.lines });
        }
    }
}

/// Arguments that are used, and those that their defaults used.
fn used_args(captured: &Captured) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut next: Vec<&String> = captured.used.iter().collect();
    while let Some(name) = next.pop() {
        if found.insert(name.clone()) {
            next.extend(captured.args.get(name).into_iter().flat_map(|arg| &arg.deps));
        }
    }
    found
}
