//! Which earlier step is most alike, and what differs.
use std::fmt;

use engine::Ran;

use super::print::{Input, Origin, Print, label};

/// Names that are listed one by one.
const MOST_NAMES: usize = 10;

/// Why a step missed the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The client forbade it.
    NoCache,
    /// A build argument, or what may be one.
    Argument {
        name: String,
        is_sure: bool,
        change: Change,
    },
    Command,
    Secret {
        what: String,
        change: Change,
    },
    Option {
        what: String,
        change: Change,
    },
    /// Something of the op that has no name here.
    Definition,
    Base {
        before: String,
        now: String,
    },
    /// What a step takes from somewhere by content.
    Files {
        of: String,
        changed: Vec<String>,
        added: Vec<String>,
        removed: Vec<String>,
    },
    /// The step before it is not what it was.
    Input {
        before: String,
        now: String,
    },
    /// An input was made without the cache.
    Forced {
        input: String,
    },
    Inputs {
        before: usize,
        now: usize,
    },
    /// Nothing differs: the result is not there any more.
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Changed,
    Added,
    Removed,
}

impl Reason {
    pub fn kind(&self) -> &'static str {
        match self {
            Reason::NoCache => "no-cache",
            Reason::Argument { .. } => "argument",
            Reason::Command => "command",
            Reason::Secret { .. } => "secret",
            Reason::Option { .. } => "option",
            Reason::Definition => "definition",
            Reason::Base { .. } => "base",
            Reason::Files { .. } => "files",
            Reason::Input { .. } | Reason::Inputs { .. } => "input",
            Reason::Forced { .. } => "forced",
            Reason::Gone => "evicted",
        }
    }
}

/// The step of an earlier build that this one is most like to; the newest of those that are equally so.
pub fn like<'a>(print: &Print, known: &'a [Print]) -> Option<&'a Print> {
    let others = known.iter().filter(|other| other.build != print.build);
    others
        .filter_map(|other| Some((likeness(print, other)?, other)))
        .max_by_key(|(score, other)| (*score, other.at))
        .map(|(_, other)| other)
}

/// How much two steps have in common; `None` if they are not about the same thing.
fn likeness(a: &Print, b: &Print) -> Option<usize> {
    let has_equal = |what: &str| a.parts.contains_key(what) && a.parts.get(what) == b.parts.get(what);
    let same_op = a.digest == b.digest;
    let same_place = label(&a.name).is_some_and(|label_of_a| !label_of_a.1.is_empty() && label(&b.name) == Some(label_of_a));
    let same_name = text(&a.name) == text(&b.name);
    let same_work = has_equal("command") || (has_equal("destination") && has_equal("source name"));
    let same_inputs = a.inputs.iter().zip(&b.inputs).filter(|(a, b)| a.is_same(b)).count();
    let all_inputs = !a.inputs.is_empty() && same_inputs == a.inputs.len() && a.inputs.len() == b.inputs.len();
    if !(same_op || same_place || same_name || same_work || all_inputs) {
        return None;
    }
    let parts = a.parts.iter().filter(|(what, value)| b.parts.get(*what) == Some(value)).count();
    let share = 10 * parts / a.parts.len().max(b.parts.len()).max(1);
    let weight = |is: bool, weight: usize| if is { weight } else { 0 };
    Some(weight(same_op, 40) + weight(same_name, 20) + weight(same_work, 20) + weight(same_place, 15) + share + 5 * same_inputs)
}

/// A name without its label.
fn text(name: &str) -> &str {
    if label(name).is_some() { name.split_once("] ").map_or(name, |(_, text)| text) } else { name }
}

/// What differs, in the order in which it helps. Never empty.
pub fn reasons(run: &Ran, print: &Print, like: &Print, is_argument: &dyn Fn(&str) -> bool) -> Vec<Reason> {
    if run.ignore_cache {
        return vec![Reason::NoCache];
    }
    let mut reasons = Vec::new();
    if print.digest != like.digest {
        reasons.extend(of_parts(print, like, is_argument));
        if reasons.is_empty() {
            reasons.push(Reason::Definition);
        }
    }
    if print.inputs.len() != like.inputs.len() {
        reasons.push(Reason::Inputs { before: like.inputs.len(), now: print.inputs.len() });
    }
    for ((input, before), ran) in print.inputs.iter().zip(&like.inputs).zip(&run.inputs) {
        if !input.is_same(before) {
            reasons.push(of_input(input, before));
        } else if ran.forced {
            reasons.push(Reason::Forced { input: input.origin.to_string() });
        }
    }
    if reasons.is_empty() {
        reasons.push(Reason::Gone);
    }
    reasons
}

fn of_parts(print: &Print, like: &Print, is_argument: &dyn Fn(&str) -> bool) -> Vec<Reason> {
    let changed = print.parts.iter().filter_map(|(what, value)| match like.parts.get(what) {
        None => Some((what, Change::Added)),
        Some(before) if before != value => Some((what, Change::Changed)),
        Some(_) => None,
    });
    let removed = like.parts.keys().filter(|what| !print.parts.contains_key(*what)).map(|what| (what, Change::Removed));
    let reason = |(what, change): (&String, Change)| {
        if let Some(name) = what.strip_prefix("env ") {
            return Reason::Argument { name: name.to_owned(), is_sure: is_argument(name), change };
        }
        match what.as_str() {
            "command" => Reason::Command,
            what if what.starts_with("secret ") || what.starts_with("ssh ") => Reason::Secret { what: what.to_owned(), change },
            what => Reason::Option { what: what.to_owned(), change },
        }
    };
    let mut reasons: Vec<Reason> = changed.chain(removed).map(reason).collect();
    reasons.sort_by_key(|reason| !matches!(reason, Reason::Argument { .. } | Reason::Command));
    reasons
}

fn of_input(input: &Input, before: &Input) -> Reason {
    if !input.files.is_empty() && !before.files.is_empty() && input.files != before.files {
        return of_files(input, before);
    }
    match (&input.origin, &before.origin) {
        (Origin::Image(now), Origin::Image(before)) if now != before => Reason::Base { before: before.clone(), now: now.clone() },
        (now, before) => Reason::Input { before: before.to_string(), now: now.to_string() },
    }
}

fn of_files(input: &Input, before: &Input) -> Reason {
    let (mut changed, mut added) = (Vec::new(), Vec::new());
    for (path, digest) in &input.files {
        match before.files.get(path) {
            None => added.push(path.clone()),
            Some(old) if old != digest => changed.push(path.clone()),
            Some(_) => {}
        }
    }
    let removed = before.files.keys().filter(|path| !input.files.contains_key(*path)).cloned().collect();
    // The base of a copy and its context may swap places; what changed is what we compare now.
    Reason::Files { of: input.origin.to_string(), changed, added, removed }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Image(reference) => write!(f, "the image {reference}"),
            Origin::Local(name) if name == "context" => f.write_str("the build context"),
            Origin::Local(name) => write!(f, "the local directory {name:?}"),
            Origin::Source(identifier) => write!(f, "the source {identifier}"),
            Origin::Step(name) => write!(f, "the step \"{name}\""),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Change::Changed => "has changed",
            Change::Added => "is new",
            Change::Removed => "is gone",
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::NoCache => f.write_str("the build forbids the cache for it (no-cache)"),
            Reason::Argument { name, is_sure: true, change } => write!(f, "build argument {name} {change}"),
            Reason::Argument { name, is_sure: false, change } => write!(f, "argument or environment variable {name} {change}"),
            Reason::Command => f.write_str("its command has changed"),
            Reason::Secret { what, change } | Reason::Option { what, change } => write!(f, "{what} {change}"),
            Reason::Definition => f.write_str("its definition has changed"),
            Reason::Base { before, now } => write!(f, "its base image has changed from {before} to {now}"),
            Reason::Files { of, changed, added, removed } => {
                write!(f, "files of {of}")?;
                let lists = [("changed", changed), ("new", added), ("gone", removed)];
                let mut before = ":";
                for (what, names) in lists.into_iter().filter(|(_, names)| !names.is_empty()) {
                    write!(f, "{before} {what} {}", listed(names))?;
                    before = ";";
                }
                Ok(())
            }
            Reason::Input { before, now } if before == now => write!(f, "{now} gave another result"),
            Reason::Input { before, now } => write!(f, "it follows {now} now, and followed {before}"),
            Reason::Forced { input } => write!(f, "{input} was made without the cache"),
            Reason::Inputs { before, now } => write!(f, "it has {now} inputs now, and had {before}"),
            Reason::Gone => f.write_str("its earlier result is not in the cache any more (pruned or evicted)"),
        }
    }
}

fn listed(names: &[String]) -> String {
    let shown = names.iter().take(MOST_NAMES).map(|name| name.strip_prefix('/').filter(|n| !n.is_empty()).unwrap_or(name));
    let text = shown.collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(MOST_NAMES) {
        Some(more) if more > 0 => format!("{text} and {more} more"),
        _ => text,
    }
}
