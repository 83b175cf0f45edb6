//! Small messages and their typed forms.
use std::time::{Duration, SystemTime};

use job::{PruneRule, UsageRecord, Version, Worker};
use llb::policy::{Action, Condition, Constraint, Matching, Policy, Rule, Selector, Update};
use prost_types::Timestamp;
use proto::moby::buildkit::v1 as control;
use proto::moby::buildkit::v1::sourcepolicy as pb;
use proto::moby::buildkit::v1::types;
use proto::pb::{Position, Range, SourceInfo};
use tonic::Status;

pub fn timestamp(at: SystemTime) -> Timestamp {
    Timestamp::from(at)
}

/// Wire durations are nanoseconds; negative ones mean none.
pub fn duration(nanos: i64) -> Duration {
    Duration::from_nanos(nanos.try_into().unwrap_or(0))
}

pub fn usage_record(record: UsageRecord) -> control::UsageRecord {
    control::UsageRecord {
        id: record.id,
        mutable: record.mutable,
        in_use: record.in_use,
        size: record.size,
        parent: String::new(),
        created_at: Some(timestamp(record.created_at)),
        last_used_at: record.last_used_at.map(timestamp),
        usage_count: record.usage_count.try_into().unwrap_or(i64::MAX),
        description: record.description,
        record_type: record.record_type,
        shared: record.shared,
        parents: record.parents,
        deduplicated: record.deduplicated,
    }
}

pub fn version(version: Version) -> types::BuildkitVersion {
    types::BuildkitVersion {
        package: version.package,
        version: version.version,
        revision: version.revision,
        dockerfile_version: version.dockerfile,
    }
}

pub fn worker_record(worker: Worker, version: types::BuildkitVersion) -> types::WorkerRecord {
    types::WorkerRecord {
        id: worker.id,
        labels: worker.labels,
        platforms: worker.platforms.iter().map(llb::parts::platform_message).collect(),
        gc_policy: worker.gc_policy.into_iter().map(gc_policy).collect(),
        buildkit_version: Some(version),
        cdi_devices: worker
            .devices
            .into_iter()
            .map(|d| types::CdiDevice { name: d.name, auto_allow: d.auto_allow, annotations: d.annotations, on_demand: d.on_demand })
            .collect(),
    }
}

fn gc_policy(rule: PruneRule) -> types::GcPolicy {
    types::GcPolicy {
        all: rule.all,
        keep_duration: rule.keep_duration.as_nanos().try_into().unwrap_or(i64::MAX),
        filters: rule.filters,
        reserved_space: rule.reserved_space,
        max_used_space: rule.max_used_space,
        min_free_space: rule.min_free_space,
    }
}

pub fn policies(policies: Vec<pb::Policy>) -> Result<Vec<Policy>, Status> {
    policies.into_iter().map(policy).collect()
}

pub fn policy(policy: pb::Policy) -> Result<Policy, Status> {
    Ok(Policy { version: policy.version, rules: policy.rules.into_iter().map(rule).collect::<Result<_, _>>()? })
}

fn rule(rule: pb::Rule) -> Result<Rule, Status> {
    let unknown = |what: &str, value: i32| Status::invalid_argument(format!("source policy has unknown {what} {value}"));
    let action = match pb::PolicyAction::try_from(rule.action) {
        Ok(pb::PolicyAction::Allow) => Action::Allow,
        Ok(pb::PolicyAction::Deny) => Action::Deny,
        Ok(pb::PolicyAction::Convert) => Action::Convert,
        Err(_) => return Err(Status::unknown(format!("source policy: rule of unknown type {}", rule.action))),
    };
    let selector = rule.selector.ok_or_else(|| Status::unknown("invalid nil selector in policy"))?;
    if action == Action::Convert && rule.updates.is_none() {
        return Err(Status::unknown("missing destination for convert rule"));
    }
    let matching = match pb::MatchType::try_from(selector.match_type) {
        Ok(pb::MatchType::Wildcard) => Matching::Wildcard,
        Ok(pb::MatchType::Exact) => Matching::Exact,
        Ok(pb::MatchType::Regex) => Matching::Regex,
        Err(_) => return Err(unknown("match type", selector.match_type)),
    };
    let constraint = |c: pb::AttrConstraint| {
        let condition = match pb::AttrMatch::try_from(c.condition) {
            Ok(pb::AttrMatch::Equal) => Condition::Equal,
            Ok(pb::AttrMatch::Notequal) => Condition::NotEqual,
            Ok(pb::AttrMatch::Matches) => Condition::Matches,
            Err(_) => return Err(unknown("condition", c.condition)),
        };
        Ok(Constraint { key: c.key, value: c.value, condition })
    };
    let constraints = selector.constraints.into_iter().map(constraint).collect::<Result<_, _>>()?;
    let updates = rule.updates.map(|u| Update { identifier: u.identifier, attrs: u.attrs });
    Ok(Rule { action, selector: Selector { identifier: selector.identifier, matching, constraints }, updates })
}

/// A place in a user's file, as warnings carry it.
pub fn source_range(source: &progress::SourceRange) -> (SourceInfo, Vec<Range>) {
    let info = SourceInfo {
        filename: source.filename.clone(),
        data: source.data.to_vec(),
        language: source.language.clone(),
        ..Default::default()
    };
    let line = |line: u32| Some(Position { line: line as i32, character: 0 });
    (info, source.lines.iter().map(|(first, last)| Range { start: line(*first), end: line(*last) }).collect())
}

/// The way back from [`source_range`].
pub fn into_source_range(info: SourceInfo, ranges: &[Range]) -> progress::SourceRange {
    let line = |position: &Option<Position>| position.as_ref().map_or(0, |p| p.line.max(0) as u32);
    let lines = ranges.iter().map(|range| (line(&range.start), line(&range.end))).collect();
    progress::SourceRange { filename: info.filename, language: info.language, data: info.data.into(), lines }
}
