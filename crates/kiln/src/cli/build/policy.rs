//! Source policies as JSON files.
use proto::moby::buildkit::v1::sourcepolicy as pb;
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize, Default)]
#[serde(default)]
struct Policy {
    version: i64,
    rules: Vec<Rule>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Rule {
    action: Value,
    selector: Option<Selector>,
    updates: Option<Update>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Selector {
    identifier: String,
    #[serde(alias = "matchType")]
    match_type: Value,
    constraints: Vec<Constraint>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Constraint {
    key: String,
    value: String,
    condition: Value,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Update {
    identifier: String,
    attrs: std::collections::BTreeMap<String, String>,
}

pub fn read(path: &str) -> Result<pb::Policy, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("failed to read {path}: {e}"))?;
    parse(&text).map_err(|e| format!("failed to unmarshal source-policy-file {path:?}: {e}"))
}

fn parse(text: &str) -> Result<pb::Policy, String> {
    let policy: Policy = serde_json::from_str(text).map_err(|e| e.to_string())?;
    Ok(pb::Policy { version: policy.version, rules: policy.rules.into_iter().map(rule).collect::<Result<_, _>>()? })
}

fn rule(rule: Rule) -> Result<pb::Rule, String> {
    let constraint = |c: Constraint| {
        let condition = number(&c.condition, |name| pb::AttrMatch::from_str_name(name).map(|c| c as i32))?;
        Ok(pb::AttrConstraint { key: c.key, value: c.value, condition })
    };
    let selector = rule.selector.map(|s| -> Result<_, String> {
        Ok(pb::Selector {
            identifier: s.identifier,
            match_type: number(&s.match_type, |name| pb::MatchType::from_str_name(name).map(|m| m as i32))?,
            constraints: s.constraints.into_iter().map(constraint).collect::<Result<_, String>>()?,
        })
    });
    Ok(pb::Rule {
        action: number(&rule.action, |name| pb::PolicyAction::from_str_name(name).map(|a| a as i32))?,
        selector: selector.transpose()?,
        updates: rule.updates.map(|u| pb::Update { identifier: u.identifier, attrs: u.attrs }),
    })
}

/// Enums are names or numbers; missing is 0.
fn number(value: &Value, named: impl Fn(&str) -> Option<i32>) -> Result<i32, String> {
    let found = match value {
        Value::Null => Some(0),
        Value::Number(number) => number.as_i64().and_then(|n| n.try_into().ok()),
        Value::String(name) => named(name),
        _ => None,
    };
    found.ok_or_else(|| format!("unknown enum value {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let policy = parse(
            r#"{"version": 1, "rules": [
                {"action": "CONVERT", "selector": {"identifier": "docker-image://a", "matchType": "EXACT"}, "updates": {"identifier": "docker-image://b"}},
                {"action": 1, "selector": {"identifier": "x", "constraints": [{"key": "k", "value": "v", "condition": "MATCHES"}]}}
            ]}"#,
        )
        .unwrap();
        assert_eq!((policy.rules[0].action, policy.rules[1].action), (2, 1));
        assert_eq!(policy.rules[0].selector.as_ref().unwrap().match_type, 1);
        assert_eq!(policy.rules[1].selector.as_ref().unwrap().constraints[0].condition, 2);
        assert!(parse(r#"{"rules": [{"action": "SOMETIMES"}]}"#).unwrap_err().contains("SOMETIMES"));
    }
}
