//! Warnings about Dockerfiles that build, but perhaps not as meant.
mod config;
mod rules;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

pub use config::Config;
pub(crate) use rules::*;
pub use rules::{ALL, Rule};

use crate::{Error, Lines};

/// A rule that a Dockerfile breaks.
#[derive(Debug, Clone, PartialEq)]
pub struct Warning {
    pub rule: &'static Rule,
    pub message: String,
    pub lines: Option<Lines>,
}

impl Warning {
    /// `Rule: message (line 3)`
    pub fn short(&self) -> String {
        match self.lines {
            Some(lines) if lines.first > 0 => format!("{}: {} (line {})", self.rule.name, self.message, lines.first),
            _ => format!("{}: {}", self.rule.name, self.message),
        }
    }
}

/// Collects warnings. Clones collect in the same place.
#[derive(Debug, Clone, Default)]
pub struct Linter {
    config: Config,
    /// `None`: nobody listens, so no rule counts.
    found: Option<Arc<Mutex<Vec<Warning>>>>,
}

impl Linter {
    pub fn new(config: Config) -> Self {
        Self { config, found: Some(Arc::default()) }
    }

    /// Runs no rules.
    pub fn silent() -> Self {
        Self::default()
    }

    pub fn is_silent(&self) -> bool {
        self.found.is_none()
    }

    /// What was found so far, in order.
    pub fn warnings(&self) -> Vec<Warning> {
        self.found.as_ref().map_or_else(Vec::new, |f| f.lock().expect("no holder of this lock panics").clone())
    }

    pub(crate) fn set_config(&mut self, config: Config) {
        self.config = config;
    }

    pub(crate) fn warn(&self, rule: &'static Rule, lines: impl Into<Option<Lines>>, message: impl FnOnce() -> String) {
        let Some(found) = self.found.as_ref().filter(|_| self.config.allows(rule)) else { return };
        let warning = Warning { rule, message: message(), lines: lines.into() };
        found.lock().expect("no holder of this lock panics").push(warning);
    }

    /// With what a `# check=` comment right above an instruction adds.
    pub(crate) fn below(&self, comments: &[String]) -> Self {
        let extra = comments.iter().find_map(|comment| {
            let directive = crate::syntax::DirectiveParser::new("").line(comment).ok()??;
            (directive.name == "check").then(|| Config::parse(first_word(&directive.value)))
        });
        let mut linter = self.clone();
        if let Some(Ok(extra)) = extra {
            linter.config.extend(extra);
        }
        linter
    }

    /// The failure of a Dockerfile that asks for warnings to be errors.
    pub(crate) fn violation(&self) -> Option<Error> {
        let rules: BTreeSet<_> = self.warnings().into_iter().map(|w| w.rule.name).collect();
        if !self.config.error || rules.is_empty() {
            return None;
        }
        let names: Vec<_> = rules.into_iter().collect();
        Some(Error::new(format!("lint violation found for rules: {}", names.join(", "))))
    }
}

/// What counts of the value of a `check` directive.
pub(crate) fn first_word(value: &str) -> &str {
    value.split(' ').next().unwrap_or_default()
}
