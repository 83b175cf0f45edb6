//! Definitions of many file ops, to be fed to a client's standard input, and how long a daemon takes over them.
use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

use llb::{Builder, Copy, Edge, FileAction, FileActionKind, FileOp, Graph, Metadata, Op};

use crate::Failed;
use crate::daemon::Bench;

/// How many inputs one op of [`Shape::Wide`] copies from.
const FAN: usize = 50;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Each op makes a file on top of what the one before made.
    Chain,
    /// All but one in [`FAN`] make a file on scratch; the rest copy so many of these, or of each other, together.
    Wide,
}

/// A graph of `ops` file ops (a wide one may miss that by one), given as `chain:5000`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    pub shape: Shape,
    pub ops: usize,
}

impl FromStr for Plan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (shape, ops) = text.split_once(':').ok_or_else(|| format!("{text:?} is not SHAPE:OPS"))?;
        let shape = match shape {
            "chain" => Shape::Chain,
            "wide" => Shape::Wide,
            other => return Err(format!("no shape {other:?}: chain or wide")),
        };
        Ok(Self { shape, ops: ops.parse().map_err(|e| format!("{ops:?}: {e}"))? })
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shape = if self.shape == Shape::Chain { "chain" } else { "wide" };
        write!(f, "{shape}:{}", self.ops)
    }
}

impl Plan {
    /// Graphs with different salts have no op in common.
    pub fn graph(&self, salt: &str) -> Graph {
        let mut builder = Builder::new();
        let result = match self.shape {
            Shape::Chain => chain(&mut builder, self.ops, salt),
            Shape::Wide => wide(&mut builder, self.ops, salt),
        };
        builder.finish(result)
    }
}

fn chain(builder: &mut Builder, ops: usize, salt: &str) -> Option<Edge> {
    (0..ops).fold(None, |below, number| Some(mkfile(builder, below, number, salt)))
}

fn wide(builder: &mut Builder, ops: usize, salt: &str) -> Option<Edge> {
    // Each op that joins takes FAN away and gives one back.
    let mut open: VecDeque<Edge> = (0..ops - ops / FAN).map(|number| mkfile(builder, None, number, salt)).collect();
    while open.len() > 1 {
        let inputs: Vec<Edge> = open.drain(..open.len().min(FAN)).collect();
        open.push_back(join(builder, inputs));
    }
    open.pop_front()
}

fn mkfile(builder: &mut Builder, below: Option<Edge>, number: usize, salt: &str) -> Edge {
    let data = format!("{salt} {number}\n").into();
    let kind = FileActionKind::Mkfile { path: format!("/f{number}"), mode: 0o644, data, owner: None, timestamp: -1 };
    let action = FileAction { input: below.as_ref().map(|_| 0), secondary_input: None, output: Some(0), kind };
    add(builder, vec![action], below.into_iter().collect())
}

fn join(builder: &mut Builder, inputs: Vec<Edge>) -> Edge {
    let (count, last) = (inputs.len() as u32, inputs.len() as u32 - 1);
    let copy = |number: u32| FileAction {
        input: (number > 0).then(|| count + number - 1),
        secondary_input: Some(number),
        output: (number == last).then_some(0),
        kind: FileActionKind::Copy(Box::new(Copy {
            src: "/".into(),
            dest: "/".into(),
            dir_copy_contents: true,
            create_dest_path: true,
            timestamp: -1,
            ..Copy::default()
        })),
    };
    add(builder, (0..count).map(copy).collect(), inputs)
}

fn add(builder: &mut Builder, actions: Vec<FileAction>, inputs: Vec<Edge>) -> Edge {
    let caps = [("file.base".to_owned(), true)].into();
    let metadata = Metadata { caps, ..Metadata::default() };
    builder.add(Op::File(FileOp { actions }), inputs, None, Vec::new(), metadata)
}

/// The seconds of a first build.
pub fn fresh(bench: &mut Bench, plan: Plan, round: usize) -> Result<f64, Failed> {
    bench.start()?;
    bench.solve(&plan.graph(&format!("round {round}")).to_bytes())
}

/// The seconds of the same build once more.
pub fn again(bench: &mut Bench, plan: Plan, round: usize) -> Result<f64, Failed> {
    bench.start()?;
    let definition = plan.graph(&format!("round {round}")).to_bytes();
    bench.solve(&definition)?;
    bench.solve(&definition)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn graphs_have_the_ops_that_were_asked_for() {
        for text in ["chain:1", "chain:120", "wide:1", "wide:50", "wide:5000", "wide:20000"] {
            let plan: Plan = text.parse().unwrap();
            assert_eq!(plan.to_string(), text);
            assert_eq!(plan.graph("").vertices.len(), plan.ops, "{text}");
        }
    }
}
