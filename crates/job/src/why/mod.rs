//! Why a step ran although an earlier build had run its like.
//!
//! The engine tells an [`Inquiry`] what ran for a build, and as what; nothing is told of what was found in a cache. At the end of the build each step that ran is
//! compared with what earlier builds left: a [`Print`] for each step, kept under what stays the same when a step changes (the project, the stage, the kind
//! of step). The one that is most alike is its like, and what differs between the two is why it missed.
//!
//! Start at [`Inquiry::conclude`]. `print` says what is remembered of a step, `compare` finds the like and the reasons, `likes` is where prints are kept.
//! Invariants: values of arguments and variables are remembered as digests only; what is kept is bounded, for each build, each stage and in all;
//! a step that nothing is like to is new, and has no reason.
mod compare;
mod files;
mod likes;
mod print;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use engine::{Ran, Witness};
use llb::Op;
use serde::{Deserialize, Serialize};

pub use compare::Reason;
pub use likes::Likes;
pub use print::Print;

/// Under which the reasons are found in the response of a build's record: a list of [`Miss`]es as JSON.
pub const RESPONSE_KEY: &str = "kiln.misses";

/// Steps of one build that are looked at.
const MOST_STEPS: usize = 512;

/// A step that ran although its like had run before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Miss {
    /// What progress calls it.
    pub step: String,
    pub vertex: String,
    /// The build that ran its like.
    pub before: String,
    pub reasons: Vec<Said>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// `argument`, `files`, `base`, …: see [`Reason`].
    pub kind: String,
    pub text: String,
}

/// What one build ran.
pub struct Inquiry {
    build: String,
    steps: Mutex<Vec<Arc<Ran>>>,
}

/// What is known of the build as a whole.
#[derive(Debug, Default)]
pub struct Circumstances<'a> {
    /// What tells the project from others on the same daemon.
    pub project: String,
    pub attrs: Option<&'a BTreeMap<String, String>>,
}

impl Inquiry {
    pub fn new(build: &str) -> Self {
        Self { build: build.to_owned(), steps: Mutex::default() }
    }

    /// Explains every step that ran and remembers those that succeeded. Reads and writes the database, but waits for no disk to sync; for a
    /// thread that may block.
    pub fn conclude(&self, likes: &Likes, circumstances: &Circumstances<'_>) -> Vec<Miss> {
        let steps = std::mem::take(&mut *self.steps.lock().expect("no holder of this lock panics"));
        let mut files = files::Listings::default();
        let mut prints: Vec<(String, Print, Arc<Ran>)> = Vec::with_capacity(steps.len());
        for run in steps {
            let print = Print::of(&run, &self.build, &mut files);
            prints.push((print::place(&run.vertex, &circumstances.project), print, run));
        }
        let is_argument = |name: &str| circumstances.attrs.is_some_and(|attrs| attrs.contains_key(&format!("build-arg:{name}")));
        let (mut misses, mut known) = (Vec::new(), BTreeMap::new());
        for (place, print, run) in &prints {
            let known: &mut Vec<Print> = known.entry(place).or_insert_with(|| likes.at(place));
            let Some(like) = compare::like(print, known) else { continue };
            let reasons = compare::reasons(run, print, like, &is_argument);
            let said: Vec<Said> = reasons.iter().map(|r| Said { kind: r.kind().to_owned(), text: r.to_string() }).collect();
            let text = said.iter().map(|s| s.text.as_str()).collect::<Vec<_>>().join("; ");
            tracing::debug!(build = self.build, step = print.name, before = like.build, reason = text, "a step missed the cache");
            let vertex = run.vertex.digest.to_string();
            misses.push(Miss { step: print.name.clone(), vertex, before: like.build.clone(), reasons: said });
        }
        likes.add(prints.into_iter().filter(|(.., run)| run.succeeded).map(|(place, print, _)| (place, print)));
        misses
    }
}

impl Witness for Inquiry {
    fn ran(&self, run: &Arc<Ran>) {
        // A source that is fetched again is seen by what is made of it.
        if matches!(run.vertex.op, Op::Source(_)) {
            return;
        }
        let mut steps = self.steps.lock().expect("no holder of this lock panics");
        if steps.len() < MOST_STEPS {
            steps.push(run.clone());
        }
    }
}
