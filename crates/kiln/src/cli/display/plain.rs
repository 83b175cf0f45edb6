//! Progress as lines for logs and files: one step at a time, each line with its step's number.
use std::collections::HashMap;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use super::model::{Model, Row, Time};
use crate::cli::text::bytes;

/// Another step is shown when the present one was for this long and is not the only one.
const TURN: Duration = Duration::from_secs(5);
/// A row is repeated when it moved on by this part of its total, or after so long.
const ROW_STEP: f64 = 0.05;
const ROW_PAUSE: Time = 5_000_000_000;

#[derive(Default)]
pub struct Plain {
    /// Number of each step that was shown.
    numbers: HashMap<usize, usize>,
    current: Option<usize>,
    since: Option<Instant>,
    rows: HashMap<(usize, String), (i64, Time)>,
    /// Characters of the present line that are out already.
    partial: usize,
    warnings: HashMap<usize, usize>,
    begun: bool,
}

impl Plain {
    /// Prints what changed; at the end everything.
    pub fn print(&mut self, model: &mut Model, out: &mut dyn Write, end: bool) -> io::Result<()> {
        let changed: Vec<usize> =
            model.changed.iter().copied().filter(|at| !model.steps[*at].hidden && model.steps[*at].is_started()).collect();
        let (mut completed, open): (Vec<usize>, Vec<usize>) = changed.into_iter().partition(|at| model.steps[*at].is_completed());
        completed.sort_by_key(|at| (Some(*at) != self.current, model.steps[*at].last_stop()));
        for at in completed {
            self.step(model, at, out)?;
        }
        let next = match self.current {
            // The present step keeps its turn while it has something to say.
            Some(at) if open.contains(&at) && !self.turn_is_over() => Some(at),
            Some(at) if !self.turn_is_over() && !end => (open.contains(&at)).then_some(at),
            _ => open.iter().copied().find(|at| Some(*at) != self.current).or_else(|| open.first().copied()),
        };
        if let Some(at) = next {
            self.step(model, at, out)?;
        }
        if end {
            for at in open {
                if model.steps[at].changed {
                    self.step(model, at, out)?;
                }
            }
        }
        out.flush()
    }

    fn turn_is_over(&self) -> bool {
        self.since.is_none_or(|since| since.elapsed() > TURN)
    }

    fn step(&mut self, model: &mut Model, at: usize, out: &mut dyn Write) -> io::Result<()> {
        let next = self.numbers.len() + 1;
        let number = *self.numbers.entry(at).or_insert(next);
        let (latest, step) = (model.latest, &mut model.steps[at]);
        if self.current != Some(at) {
            self.leave(out)?;
            if std::mem::replace(&mut self.begun, true) {
                writeln!(out)?;
            }
            writeln!(out, "#{number} {}", step.name)?;
            (self.current, self.since) = (Some(at), Some(Instant::now()));
        }
        let mut open_row = false;
        for row in &mut step.rows {
            if !std::mem::take(&mut row.changed) {
                continue;
            }
            open_row |= row.completed.is_none();
            if self.is_due(at, row) {
                self.rows.insert((at, row.id.clone()), (row.current, row.at));
                writeln!(out, "#{number} {}", describe(row))?;
            }
        }
        let warned = self.warnings.entry(at).or_default();
        for warning in &step.warnings[*warned..] {
            writeln!(out, "#{number} WARN: {warning}")?;
        }
        *warned = step.warnings.len();
        for line in step.lines.drain(..) {
            match std::mem::take(&mut self.partial) {
                0 => writeln!(out, "#{number} {line}")?,
                shown => writeln!(out, "{}", &line[shown..])?,
            }
        }
        if let Some(partial) = &step.partial {
            match self.partial {
                0 => write!(out, "#{number} {partial}")?,
                shown => write!(out, "{}", &partial[shown..])?,
            }
            self.partial = partial.len();
        }
        if step.is_completed() && !open_row {
            if std::mem::take(&mut self.partial) > 0 {
                writeln!(out)?;
            }
            self.current = None;
            match step.error.as_str() {
                "" if step.cached => writeln!(out, "#{number} CACHED")?,
                "" => writeln!(out, "#{number} DONE {:.1}s", step.duration(latest).as_secs_f64())?,
                _ if step.is_canceled() => writeln!(out, "#{number} CANCELED")?,
                error => writeln!(out, "#{number} ERROR: {error}")?,
            }
        }
        step.changed = false;
        model.changed.retain(|other| *other != at);
        Ok(())
    }

    /// Ends the present step's turn.
    fn leave(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if let Some(number) = self.current.and_then(|at| self.numbers.get(&at)) {
            if std::mem::take(&mut self.partial) > 0 {
                writeln!(out)?;
            }
            writeln!(out, "#{number} ...")?;
        }
        Ok(())
    }

    fn is_due(&self, at: usize, row: &Row) -> bool {
        let Some((current, when)) = self.rows.get(&(at, row.id.clone())) else { return true };
        let moved = if row.total > 0 { (row.current - current) as f64 / row.total as f64 } else { 0.0 };
        row.completed.is_some() || moved >= ROW_STEP || row.at - when >= ROW_PAUSE
    }
}

fn describe(row: &Row) -> String {
    let mut text = row.id.clone();
    if row.total != 0 {
        text += &format!(" {} / {}", bytes(row.current), bytes(row.total));
    } else if row.current != 0 {
        text += &format!(" {}", bytes(row.current));
    }
    if let Some(started) = row.started {
        let seconds = (row.completed.unwrap_or(row.at) - started) as f64 / 1e9;
        if seconds > 0.01 {
            text += &format!(" {seconds:.1}s");
        }
    }
    text + if row.completed.is_some() { " done" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost_types::Timestamp;
    use proto::moby::buildkit::v1 as pb;

    fn at(millis: i64) -> Option<Timestamp> {
        Some(Timestamp { seconds: 1000 + millis / 1000, nanos: (millis % 1000) as i32 * 1_000_000 })
    }

    fn vertex(name: &str, started: i64, completed: Option<i64>) -> pb::Vertex {
        pb::Vertex { digest: name.into(), name: name.into(), started: at(started), completed: completed.and_then(at), ..Default::default() }
    }

    fn log(name: &str, millis: i64, text: &'static str) -> pb::VertexLog {
        pb::VertexLog { vertex: name.into(), timestamp: at(millis), stream: 1, msg: text.into() }
    }

    fn show(parts: Vec<pb::StatusResponse>) -> String {
        let (mut model, mut plain, mut out) = (Model::default(), Plain::default(), Vec::new());
        let last = parts.len() - 1;
        for (at, part) in parts.into_iter().enumerate() {
            model.apply(part);
            plain.print(&mut model, &mut out, at == last).unwrap();
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn steps_take_turns_and_end_with_how_it_went() {
        let row = pb::VertexStatus {
            id: "sha256:1".into(),
            vertex: "a".into(),
            current: 500,
            total: 2_000_000,
            timestamp: at(5),
            started: at(0),
            ..Default::default()
        };
        let done = pb::VertexStatus { current: 2_000_000, completed: at(1200), ..row.clone() };
        let parts = vec![
            pb::StatusResponse { vertexes: vec![vertex("a", 0, None)], statuses: vec![row], ..Default::default() },
            pb::StatusResponse {
                vertexes: vec![vertex("b", 10, None)],
                logs: vec![log("b", 20, "hel"), log("b", 30, "lo\nwor")],
                ..Default::default()
            },
            pb::StatusResponse { vertexes: vec![vertex("a", 0, Some(1500))], statuses: vec![done], ..Default::default() },
            pb::StatusResponse { vertexes: vec![pb::Vertex { cached: true, ..vertex("c", 5, Some(5)) }], ..Default::default() },
            pb::StatusResponse {
                vertexes: vec![pb::Vertex { error: "exit code: 1".into(), ..vertex("b", 10, Some(2000)) }],
                logs: vec![log("b", 12_000, "ld\n")],
                ..Default::default()
            },
        ];
        let expected = "#1 a\n#1 sha256:1 500B / 2.00MB\n#1 sha256:1 2.00MB / 2.00MB 1.2s done\n#1 DONE 1.5s\n\n\
                        #2 b\n#2 0.010 hello\n#2 0.020 wor\n#2 ...\n\n\
                        #3 c\n#3 CACHED\n\n\
                        #2 b\n#2 0.020 world\n#2 ERROR: exit code: 1\n";
        assert_eq!(show(parts), expected);
    }

    #[test]
    fn a_group_is_one_step_and_a_weak_one_stays_hidden() {
        let member = |name: &str, weak, started, completed| pb::Vertex {
            progress_group: Some(proto::pb::ProgressGroup { id: "g".into(), name: "group".into(), weak }),
            ..vertex(name, started, completed)
        };
        let parts = vec![
            pb::StatusResponse { vertexes: vec![member("a", true, 0, Some(10))], ..Default::default() },
            pb::StatusResponse { vertexes: vec![member("b", false, 20, Some(1030))], ..Default::default() },
        ];
        assert_eq!(show(parts), "#1 group\n#1 DONE 1.0s\n");
    }
}
