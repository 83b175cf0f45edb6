//! Applies policies to a source.
use regex::Regex;

use super::{Action, Condition, Constraint, Matching, Policy, Rule, Selector};
use crate::SourceOp;

/// How often policies may replace one source.
const MAX_CONVERSIONS: usize = 20;

/// Why a source may not be used, or nobody can tell.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error("source {identifier:?} denied by policy: source denied by policy")]
    Denied { identifier: String },
    #[error("too many mutations on a single source: too many operations")]
    TooManyConversions,
    #[error("error mutating source policy: missing destination for convert rule")]
    NoDestination,
    #[error("invalid wildcard {wildcard:?}: \"**\"")]
    Wildcard { wildcard: String },
    #[error("invalid regex {regex:?}")]
    Regex { regex: String, source: regex::Error },
}

/// What the policies make of a source. A conversion starts over with the first policy; in each, the last rule that matches says whether the source is denied.
pub fn evaluate(policies: &[Policy], mut source: SourceOp) -> Result<SourceOp, PolicyError> {
    for _ in 0..=MAX_CONVERSIONS {
        match once(policies, &source)? {
            Some(converted) => source = converted,
            None => return Ok(source),
        }
    }
    Err(PolicyError::TooManyConversions)
}

/// `None`: it stays as it is.
fn once(policies: &[Policy], source: &SourceOp) -> Result<Option<SourceOp>, PolicyError> {
    for policy in policies {
        let mut denied = false;
        for rule in &policy.rules {
            if !matches(&rule.selector, source)? {
                continue;
            }
            match rule.action {
                Action::Allow => denied = false,
                Action::Deny => denied = true,
                Action::Convert => {
                    let converted = convert(rule, source)?;
                    if converted != *source {
                        return Ok(Some(converted));
                    }
                }
            }
        }
        if denied {
            return Err(PolicyError::Denied { identifier: source.identifier.clone() });
        }
    }
    Ok(None)
}

fn convert(rule: &Rule, source: &SourceOp) -> Result<SourceOp, PolicyError> {
    let updates = rule.updates.as_ref().ok_or(PolicyError::NoDestination)?;
    let written = if updates.identifier.is_empty() { &rule.selector.identifier } else { &updates.identifier };
    let identifier = match rule.selector.matching {
        Matching::Exact => written.clone(),
        Matching::Regex => regex(&rule.selector.identifier)?.replace_all(&source.identifier, written.as_str()).into_owned(),
        Matching::Wildcard => fill(&wildcard(&rule.selector.identifier)?, &source.identifier, written),
    };
    let mut converted = source.clone();
    if !identifier.is_empty() {
        converted.identifier = identifier;
    }
    converted.attrs.extend(updates.attrs.iter().map(|(key, value)| (key.clone(), value.clone())));
    Ok(converted)
}

/// `written` with what the wildcards stood for in the places of `$1`, `${2}`, …
fn fill(wildcard: &Regex, identifier: &str, written: &str) -> String {
    let Some(captures) = wildcard.captures(identifier) else { return identifier.to_owned() };
    let mut filled = String::new();
    captures.expand(written, &mut filled);
    filled
}

fn matches(selector: &Selector, source: &SourceOp) -> Result<bool, PolicyError> {
    for constraint in &selector.constraints {
        if !holds(constraint, source)? {
            return Ok(false);
        }
    }
    if selector.identifier == source.identifier {
        return Ok(true);
    }
    Ok(match selector.matching {
        Matching::Exact => false,
        Matching::Regex => regex(&selector.identifier)?.is_match(&source.identifier),
        Matching::Wildcard => wildcard(&selector.identifier)?.is_match(&source.identifier),
    })
}

fn holds(Constraint { key, value, condition }: &Constraint, source: &SourceOp) -> Result<bool, PolicyError> {
    let actual = source.attrs.get(key).map_or("", String::as_str);
    Ok(match condition {
        Condition::Equal => actual == value,
        Condition::NotEqual => actual != value,
        Condition::Matches => regex(value)?.is_match(actual),
    })
}

fn regex(text: &str) -> Result<Regex, PolicyError> {
    Regex::new(text).map_err(|source| PolicyError::Regex { regex: text.to_owned(), source })
}

/// A `*` stands for anything, and is a group.
fn wildcard(text: &str) -> Result<Regex, PolicyError> {
    if text.contains("**") {
        return Err(PolicyError::Wildcard { wildcard: text.to_owned() });
    }
    let parts: Vec<String> = text.split('*').map(regex::escape).collect();
    regex(&format!("^{}$", parts.join("(.*)")))
}

#[cfg(test)]
mod tests {
    use super::super::Update;
    use super::*;

    fn source(identifier: &str, attrs: &[(&str, &str)]) -> SourceOp {
        SourceOp { identifier: identifier.into(), attrs: attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect() }
    }

    fn rule(action: Action, matching: Matching, identifier: &str, to: Option<&str>) -> Rule {
        let updates = to.map(|to| Update { identifier: to.into(), attrs: Default::default() });
        Rule { action, selector: Selector { identifier: identifier.into(), matching, constraints: Vec::new() }, updates }
    }

    fn run(rules: Vec<Rule>, identifier: &str) -> Result<String, String> {
        let policy = Policy { version: 1, rules };
        evaluate(&[policy], source(identifier, &[])).map(|op| op.identifier).map_err(|e| e.to_string())
    }

    #[test]
    fn the_last_rule_that_matches_decides() {
        use Action::{Allow, Deny};
        use Matching::{Exact, Regex, Wildcard};
        let image = "docker-image://docker.io/library/alpine:3";
        let denied = format!("source {image:?} denied by policy: source denied by policy");
        let all = || rule(Deny, Wildcard, "*", None);
        assert_eq!(run(vec![all(), rule(Allow, Wildcard, "docker-image://*alpine*", None)], image), Ok(image.into()));
        assert_eq!(run(vec![rule(Allow, Exact, image, None), all()], image), Err(denied.clone()));
        assert_eq!(run(vec![all(), rule(Allow, Exact, "docker-image://docker.io/library/alpine", None)], image), Err(denied.clone()));
        assert_eq!(run(vec![rule(Deny, Regex, r"alpine:\d", None)], image), Err(denied));
        assert_eq!(run(vec![rule(Deny, Wildcard, "*.*", None)], "local://x"), Ok("local://x".into()));
    }

    #[test]
    fn conversions_fill_in_what_matched() {
        use Action::{Convert, Deny};
        use Matching::{Exact, Regex, Wildcard};
        let golang = "docker-image://docker.io/library/golang:1.19";
        let to = "docker-image://docker.io/library/golang:${1}-alpine";
        assert_eq!(
            run(vec![rule(Convert, Wildcard, "docker-image://docker.io/library/golang:1.19", Some("a://b"))], golang),
            Ok("a://b".into())
        );
        let error = run(vec![rule(Convert, Wildcard, "docker-image://docker.io/library/golang:*", Some(to))], golang).unwrap_err();
        assert_eq!(error, "too many mutations on a single source: too many operations");
        let once = rule(Convert, Regex, r"^(.*golang):(\d)\.19$", Some("${1}:$2"));
        assert_eq!(run(vec![once], golang), Ok("docker-image://docker.io/library/golang:1".into()));
        // What it became is judged too.
        let chain = vec![rule(Convert, Exact, golang, Some("docker-image://x")), rule(Deny, Exact, "docker-image://x", None)];
        assert_eq!(run(chain, golang).unwrap_err(), "source \"docker-image://x\" denied by policy: source denied by policy");
    }

    #[test]
    fn attributes_constrain_and_are_updated() {
        let constraint = |condition| Constraint { key: "k".into(), value: "v.".into(), condition };
        for (condition, value, want) in [
            (Condition::Equal, "v.", true),
            (Condition::Equal, "vx", false),
            (Condition::NotEqual, "vx", true),
            (Condition::Matches, "vx", true),
            (Condition::Matches, "x", false),
        ] {
            assert_eq!(holds(&constraint(condition), &source("a", &[("k", value)])).unwrap(), want, "{condition:?} {value}");
        }
        let mut pinned = rule(Action::Convert, Matching::Exact, "https://x", Some("https://x"));
        pinned.updates.as_mut().unwrap().attrs.insert("http.checksum".into(), "sha256:1".into());
        let policy = Policy { version: 1, rules: vec![pinned] };
        assert_eq!(evaluate(&[policy], source("https://x", &[])).unwrap(), source("https://x", &[("http.checksum", "sha256:1")]));
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(run(vec![rule(Action::Deny, Matching::Wildcard, "a**", None)], "x").unwrap_err(), "invalid wildcard \"a**\": \"**\"");
        assert_eq!(run(vec![rule(Action::Deny, Matching::Regex, "(", None)], "x").unwrap_err(), "invalid regex \"(\"");
        assert!(run(vec![rule(Action::Convert, Matching::Exact, "x", None)], "x").unwrap_err().contains("missing destination"));
    }
}
