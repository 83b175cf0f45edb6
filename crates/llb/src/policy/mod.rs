//! Source policies: which sources a build may use, and what they are replaced by.
mod evaluate;

pub use evaluate::{PolicyError, evaluate};

/// Rules in order. The last rule of a policy that matches decides between allow and deny; a convert starts over with the new source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    pub version: i64,
    pub rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub action: Action,
    pub selector: Selector,
    /// Only for [`Action::Convert`].
    pub updates: Option<Update>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Allow,
    Deny,
    Convert,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    pub identifier: String,
    pub matching: Matching,
    pub constraints: Vec<Constraint>,
}

/// How [`Selector::identifier`] is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Matching {
    #[default]
    Wildcard,
    Exact,
    Regex,
}

/// A condition on one attribute of the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constraint {
    pub key: String,
    pub value: String,
    pub condition: Condition,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    Equal,
    NotEqual,
    /// `value` is a regular expression.
    Matches,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Update {
    /// `${1}`-style captures are filled in; empty keeps the identifier.
    pub identifier: String,
    pub attrs: std::collections::BTreeMap<String, String>,
}
