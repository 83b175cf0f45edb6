//! Progress on a terminal: a list of steps that is drawn again and again in the same place.
use std::io::{self, Write};

use super::model::{Model, Step, Time};
use crate::cli::text::bytes;

/// Lines of a running step's log that are shown below it.
const LOG_LINES: usize = 6;

pub struct Tty {
    phase: &'static str,
    lines: usize,
    color: bool,
    /// Since the start, by our own clock: the daemon's may differ.
    begun: std::time::Instant,
}

struct Line {
    text: String,
    color: &'static str,
}

const BLUE: &str = "\x1b[34m";
const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const FAINT: &str = "\x1b[2m";

impl Tty {
    pub fn new(color: bool) -> Self {
        Self { phase: "Building", lines: 0, color, begun: std::time::Instant::now() }
    }

    /// Draws the present state; with `end` all of it, however long.
    pub fn print(&mut self, model: &Model, out: &mut dyn Write, (width, height): (usize, usize), end: bool) -> io::Result<()> {
        let (completed, total) = model.counts();
        let elapsed = self.begun.elapsed();
        let now = model.first_start.map_or(0, |start| start + elapsed.as_nanos() as Time).max(model.latest);
        let mut lines: Vec<Line> = model.in_order().into_iter().flat_map(|step| step_lines(step, now, width)).collect();
        if !end {
            keep(&mut lines, model, height.saturating_sub(2));
        }
        let finished = if end && completed == total && total > 0 { "FINISHED" } else { "" };
        let head = format!("[+] {} {:.1}s ({completed}/{total}) {finished}", self.phase, elapsed.as_secs_f64());
        let mut screen = String::from("\x1b[?25l");
        if self.lines > 0 {
            screen += &format!("\x1b[{}A\r", self.lines);
        }
        for line in std::iter::once(&Line { text: head, color: "" }).chain(&lines) {
            let text: String = line.text.chars().take(width).collect();
            let (color, reset) = if self.color && !line.color.is_empty() { (line.color, "\x1b[0m") } else { ("", "") };
            screen += &format!("{color}{text}{reset}\x1b[K\n");
        }
        screen += "\x1b[J\x1b[?25h";
        self.lines = lines.len() + 1;
        out.write_all(screen.as_bytes())?;
        out.flush()
    }
}

fn step_lines(step: &Step, now: Time, width: usize) -> Vec<Line> {
    let prefix = match step.error.as_str() {
        "" if step.cached => "CACHED ",
        "" => "",
        _ if step.is_canceled() => "CANCELED ",
        _ => "ERROR ",
    };
    let color = match (step.is_completed(), prefix) {
        (true, "ERROR ") => RED,
        (true, "CANCELED ") => YELLOW,
        (true, _) => BLUE,
        (false, _) => "",
    };
    let mut lines = vec![Line { text: aligned(&format!("{prefix}{}", step.name), "", step.duration(now).as_secs_f64(), width), color }];
    for row in &step.rows {
        let Some(started) = row.started else { continue };
        let seconds = (row.completed.unwrap_or(now) - started).max(0) as f64 / 1e9;
        let amount = match (row.current, row.total) {
            (0, 0) => String::new(),
            (current, 0) => bytes(current),
            (current, total) => format!("{} / {}", bytes(current), bytes(total)),
        };
        let color = if row.completed.is_some() { BLUE } else { "" };
        lines.push(Line { text: aligned(&format!("=> {}", row.id), &amount, seconds, width), color });
    }
    for warning in &step.warnings {
        lines.push(Line { text: format!(" => WARN: {warning}"), color: YELLOW });
    }
    if !step.is_completed() && step.log_bytes > 0 {
        let recent = step.tail.iter().chain(&step.partial);
        let skip = recent.clone().count().saturating_sub(LOG_LINES);
        lines.extend(recent.skip(skip).map(|line| Line { text: format!(" => => # {}", printable(line)), color: FAINT }));
    }
    lines
}

fn aligned(name: &str, amount: &str, seconds: f64, width: usize) -> String {
    let timer = format!(" {:>3.1}s", if seconds < 0.05 { 0.0 } else { seconds });
    let room = width.saturating_sub(5 + timer.len() + if amount.is_empty() { 0 } else { amount.len() + 1 });
    let mut text: String = " => ".chars().chain(name.chars().map(|c| if c == '\t' { ' ' } else { c }).take(room)).collect();
    if !amount.is_empty() {
        text = text + " " + amount;
    }
    let pad = width.saturating_sub(text.chars().count() + timer.len() + 1);
    text + &" ".repeat(pad) + &timer
}

/// What a log line shows on one line: no control characters, no escape sequences, and only what follows the last carriage return.
fn printable(line: &str) -> String {
    // The time in front is for the plain display.
    let line = line.split_once(' ').map_or(line, |(_, text)| text);
    let line = line.trim_end_matches('\r').rsplit('\r').next().unwrap_or_default();
    let (mut out, mut chars) = (String::new(), line.chars().peekable());
    while let Some(c) = chars.next() {
        match c {
            '\x1b' if chars.peek() == Some(&'[') => {
                chars.next();
                while chars.next().is_some_and(|c| !('\x40'..='\x7e').contains(&c)) {}
            }
            '\t' => out.push(' '),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

/// Drops what has ended from the top until the rest fits.
fn keep(lines: &mut Vec<Line>, _: &Model, height: usize) {
    let mut excess = lines.len().saturating_sub(height);
    lines.retain(|line| {
        let drop = excess > 0 && line.color == BLUE;
        excess -= usize::from(drop);
        !drop
    });
    let excess = lines.len().saturating_sub(height);
    lines.drain(..excess);
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost_types::Timestamp;
    use proto::moby::buildkit::v1 as pb;

    #[test]
    fn draws_over_itself_and_fits() {
        let mut model = Model::default();
        let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
        let vertex = |n: i64, completed| pb::Vertex {
            digest: n.to_string(),
            name: format!("step {n}"),
            started: at(n),
            completed,
            ..Default::default()
        };
        let vertexes = (0..30).map(|n| vertex(n, (n < 28).then(|| at(n + 1)).flatten())).collect();
        let logs = vec![pb::VertexLog { vertex: "29".into(), msg: "old\rnew \x1b[31mred\x1b[0m\n".into(), ..Default::default() }];
        model.apply(pb::StatusResponse { vertexes, logs, ..Default::default() });
        let (mut tty, mut out) = (Tty::new(false), Vec::new());
        tty.print(&model, &mut out, (40, 10), false).unwrap();
        let text = String::from_utf8(out).unwrap();
        let shown: Vec<&str> = text.lines().collect();
        assert!(shown.len() <= 10, "{text}");
        assert!(text.contains("(28/30)") && text.contains("step 28") && text.contains("step 29") && !text.contains("step 3 "));
        assert!(text.contains(" => => # new red\x1b[K"), "{text:?}");
        let mut again = Vec::new();
        tty.print(&model, &mut again, (40, 10), true).unwrap();
        let again = String::from_utf8(again).unwrap();
        assert!(again.contains(&format!("\x1b[{}A", shown.len() - 1)) && again.contains("step 3 "));
    }
}
