//! What is known of a build while it is shown: steps, their rows, logs and times. No terminal, no output.
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use prost_types::Timestamp;
use proto::moby::buildkit::v1 as pb;

/// Nanoseconds since the epoch, by the daemon's clock.
pub type Time = i128;

fn time(at: &Timestamp) -> Time {
    i128::from(at.seconds) * 1_000_000_000 + i128::from(at.nanos)
}

/// Lines of a failed step that are repeated at the end.
const TAIL: usize = 10;

#[derive(Default)]
pub struct Model {
    pub steps: Vec<Step>,
    /// By vertex digest; a vertex in a group leads to the group.
    by_digest: HashMap<String, usize>,
    groups: HashMap<String, usize>,
    /// Steps that changed and were not printed since.
    pub changed: Vec<usize>,
    pub first_start: Option<Time>,
    pub latest: Time,
    started: usize,
}

#[derive(Default)]
pub struct Step {
    pub name: String,
    pub cached: bool,
    pub error: String,
    /// Start and stop of each run.
    pub runs: BTreeMap<Time, Option<Time>>,
    pub rows: Vec<Row>,
    pub warnings: Vec<String>,
    /// Whole lines that were not printed yet, with the time into the step in front.
    pub lines: Vec<String>,
    /// The start of a line whose end has not come.
    pub partial: Option<String>,
    /// The last lines.
    pub tail: VecDeque<String>,
    pub log_bytes: usize,
    /// In a group: digest to its state. Such a step is hidden until a member that is not weak has started.
    members: Option<HashMap<String, Member>>,
    pub hidden: bool,
    /// Place in the order of starts.
    pub order: Option<usize>,
    pub changed: bool,
}

struct Member {
    cached: bool,
    error: String,
}

#[derive(Default, Clone)]
pub struct Row {
    pub id: String,
    pub current: i64,
    pub total: i64,
    pub at: Time,
    pub started: Option<Time>,
    pub completed: Option<Time>,
    pub changed: bool,
}

impl Step {
    pub fn is_started(&self) -> bool {
        !self.runs.is_empty()
    }

    pub fn is_completed(&self) -> bool {
        self.is_started() && self.runs.values().all(Option::is_some)
    }

    /// The start of the last run.
    pub fn last_start(&self) -> Option<Time> {
        self.runs.keys().next_back().copied()
    }

    pub fn last_stop(&self) -> Time {
        self.runs.values().flatten().max().copied().unwrap_or(Time::MAX)
    }

    pub fn is_canceled(&self) -> bool {
        self.error.ends_with("context canceled")
    }

    /// Time spent, overlaps counted once; what still runs counts up to `now`.
    pub fn duration(&self, now: Time) -> Duration {
        let (mut total, mut end) = (0, Time::MIN);
        for (start, stop) in &self.runs {
            let stop = stop.unwrap_or(now.max(*start));
            let start = (*start).max(end);
            if stop > start {
                total += stop - start;
                end = stop;
            }
        }
        Duration::from_nanos(total.try_into().unwrap_or(u64::MAX))
    }
}

impl Model {
    pub fn apply(&mut self, part: pb::StatusResponse) {
        for vertex in part.vertexes {
            self.vertex(vertex);
        }
        for status in part.statuses {
            self.status(status);
        }
        for warning in part.warnings {
            if let Some(step) = self.by_digest.get(&warning.vertex).copied() {
                self.steps[step].warnings.push(String::from_utf8_lossy(&warning.short).into_owned());
                self.touch(step);
            }
        }
        for log in part.logs {
            self.log(log);
        }
    }

    /// Steps that are shown, and how many of them have ended.
    pub fn counts(&self) -> (usize, usize) {
        let shown = self.steps.iter().filter(|step| !step.hidden);
        (shown.clone().filter(|step| step.is_completed()).count(), shown.count())
    }

    /// Started steps in the order of their starts.
    pub fn in_order(&self) -> Vec<&Step> {
        let mut steps: Vec<&Step> = self.steps.iter().filter(|step| step.order.is_some()).collect();
        steps.sort_by_key(|step| step.order);
        steps
    }

    fn vertex(&mut self, vertex: pb::Vertex) {
        let (started, completed) = (vertex.started.as_ref().map(time), vertex.completed.as_ref().map(time));
        if let Some(start) = started {
            self.first_start.get_or_insert(start);
            self.latest = self.latest.max(completed.unwrap_or(start));
        }
        let at = match &vertex.progress_group {
            Some(group) => *self.groups.entry(group.id.clone()).or_insert_with(|| {
                self.steps.push(Step { name: group.name.clone(), hidden: true, members: Some(HashMap::new()), ..Step::default() });
                self.steps.len() - 1
            }),
            None => *self.by_digest.entry(vertex.digest.clone()).or_insert_with(|| {
                self.steps.push(Step::default());
                self.steps.len() - 1
            }),
        };
        self.by_digest.insert(vertex.digest.clone(), at);
        let step = &mut self.steps[at];
        let before = (step.runs.len(), step.cached, step.error.clone(), step.is_completed(), step.hidden);
        if let Some(start) = started {
            step.runs.insert(start, completed);
        }
        match &mut step.members {
            None => {
                // A repeated announcement does not take back what is known.
                if started.is_some() || step.runs.is_empty() {
                    (step.name, step.cached, step.error) = (vertex.name, vertex.cached, vertex.error);
                }
            }
            Some(members) => {
                let weak = vertex.progress_group.as_ref().is_some_and(|group| group.weak);
                if started.is_some() && (!weak || !vertex.error.is_empty()) {
                    step.hidden = false;
                }
                members.insert(vertex.digest, Member { cached: vertex.cached, error: vertex.error });
                step.cached = members.values().all(|member| member.cached);
                step.error =
                    members.values().find(|member| !member.error.is_empty()).map(|member| member.error.clone()).unwrap_or_default();
            }
        }
        let after = (step.runs.len(), step.cached, step.error.clone(), step.is_completed(), step.hidden);
        if step.is_started() && !step.hidden {
            if step.order.is_none() {
                step.order = Some(self.started);
                self.started += 1;
            }
            if before != after {
                self.touch(at);
            }
        }
    }

    fn status(&mut self, status: pb::VertexStatus) {
        let Some(at) = self.by_digest.get(&status.vertex).copied() else { return };
        let rows = &mut self.steps[at].rows;
        let place = rows.iter().position(|row| row.id == status.id).unwrap_or_else(|| {
            rows.push(Row { id: status.id.clone(), ..Row::default() });
            rows.len() - 1
        });
        let row = &mut rows[place];
        (row.current, row.total, row.changed) = (status.current, status.total, true);
        row.at = status.timestamp.as_ref().map(time).unwrap_or_default();
        row.started = status.started.as_ref().map(time);
        row.completed = status.completed.as_ref().map(time);
        self.latest = self.latest.max(row.at);
        self.touch(at);
    }

    fn log(&mut self, log: pb::VertexLog) {
        let Some(at) = self.by_digest.get(&log.vertex).copied() else { return };
        let step = &mut self.steps[at];
        step.log_bytes += log.msg.len();
        let since = step.last_start().map_or(0, |start| log.timestamp.as_ref().map_or(start, time) - start);
        let stamp = stamp(since as f64 / 1e9);
        let text = String::from_utf8_lossy(&log.msg);
        for part in text.split_inclusive('\n') {
            let whole = part.ends_with('\n');
            let line = step.partial.take().unwrap_or_else(|| format!("{stamp} ")) + part.trim_end_matches('\n');
            if whole {
                step.tail.push_back(line.clone());
                if step.tail.len() > TAIL {
                    step.tail.pop_front();
                }
                step.lines.push(line);
            } else {
                step.partial = Some(line);
            }
        }
        self.touch(at);
    }

    fn touch(&mut self, at: usize) {
        if !std::mem::replace(&mut self.steps[at].changed, true) {
            self.changed.push(at);
        }
    }
}

/// Seconds with as many digits as keep the width.
fn stamp(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.3}"),
        s if s < 100.0 => format!("{s:.2}"),
        s => format!("{s:.1}"),
    }
}
