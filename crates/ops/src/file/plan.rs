//! Which actions make outputs, and which results must be committed.
use llb::{FileAction, FileActionKind, FileOp, Owner, Who};

use super::error::ActionError;

pub(super) struct Plan {
    /// For each output of the op the action that makes it.
    pub(super) outputs: Vec<usize>,
    /// For each action whether others than its one successor need its result.
    pub(super) commits: Vec<bool>,
}

impl Plan {
    pub(super) fn new(op: &FileOp, inputs: usize) -> Result<Self, ActionError> {
        let actions = &op.actions;
        let total = inputs + actions.len();
        let mut outputs: Vec<Option<usize>> = Vec::new();
        let mut uses = vec![0_usize; actions.len()];
        let mut commits = vec![false; actions.len()];
        for (number, action) in actions.iter().enumerate() {
            if action.input.is_some_and(|index| index as usize >= total) {
                let index = action.input.unwrap_or_default();
                return Err(ActionError::text(format!("invalid input index {index}, {total} provided")));
            }
            let others = others(action);
            if let Some(index) = others.iter().find(|index| **index as usize >= total) {
                return Err(ActionError::text(format!("invalid secondary input index {index}, {inputs} provided")));
            }
            if let Some(before) = action.input.and_then(|index| (index as usize).checked_sub(inputs)) {
                uses[before] += 1;
            }
            for before in others.iter().filter_map(|index| (*index as usize).checked_sub(inputs)) {
                commits[before] = true;
            }
            if let Some(output) = action.output {
                let output = output as usize;
                if output >= outputs.len() {
                    outputs.resize(output.min(actions.len()) + 1, None);
                }
                if outputs.get(output).is_some_and(Option::is_some) {
                    return Err(ActionError::text(format!("duplicate output {output}")));
                }
                if let Some(slot) = outputs.get_mut(output) {
                    *slot = Some(number);
                }
                commits[number] = true;
            }
        }
        if commits.is_empty() || outputs.is_empty() {
            return Err(ActionError::text("no outputs specified"));
        }
        for (number, count) in uses.iter().enumerate() {
            commits[number] |= *count > 1;
        }
        let missing = |index: usize| ActionError::text(format!("missing output index {index}"));
        let outputs =
            outputs.into_iter().enumerate().map(|(index, action)| action.ok_or_else(|| missing(index))).collect::<Result<_, _>>()?;
        no_loops(actions, inputs)?;
        Ok(Self { outputs, commits })
    }

    /// The actions that `last` needs, each after those that it needs itself, and `last`.
    pub(super) fn order(&self, op: &FileOp, inputs: usize, last: usize) -> Vec<usize> {
        let mut seen = vec![false; op.actions.len()];
        let mut order = Vec::new();
        let mut pending = vec![(last, false)];
        while let Some((number, ready)) = pending.pop() {
            if ready {
                order.push(number);
            } else if !std::mem::replace(&mut seen[number], true) {
                pending.push((number, true));
                pending.extend(needs(&op.actions[number], inputs).into_iter().map(|number| (number, false)));
            }
        }
        order
    }
}

/// What an action reads besides what it works on.
fn others(action: &FileAction) -> Vec<u32> {
    let owner = match &action.kind {
        FileActionKind::Copy(copy) => copy.owner.as_ref(),
        FileActionKind::Mkfile { owner, .. } | FileActionKind::Mkdir { owner, .. } | FileActionKind::Symlink { owner, .. } => {
            owner.as_ref()
        }
        FileActionKind::Rm { .. } => None,
    };
    let named = |who: &Option<Who>| match who {
        Some(Who::Name { input, .. }) => *input,
        _ => None,
    };
    let names = owner.map(|Owner { user, group }| [named(user), named(group)]).unwrap_or_default();
    action.secondary_input.into_iter().chain(names.into_iter().flatten()).collect()
}

fn needs(action: &FileAction, inputs: usize) -> Vec<usize> {
    action.input.into_iter().chain(others(action)).filter_map(|index| (index as usize).checked_sub(inputs)).collect()
}

fn no_loops(actions: &[FileAction], inputs: usize) -> Result<(), ActionError> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Closed,
    }
    let mut marks = vec![Mark::New; actions.len()];
    for start in 0..actions.len() {
        let mut pending = vec![(start, false)];
        while let Some((number, ready)) = pending.pop() {
            match (ready, marks[number]) {
                (true, _) => marks[number] = Mark::Closed,
                (false, Mark::New) => {
                    marks[number] = Mark::Open;
                    pending.push((number, true));
                    for next in needs(&actions[number], inputs) {
                        if marks[next] == Mark::Open {
                            return Err(ActionError::text(format!("loop from index {}", inputs + next)));
                        }
                        pending.push((next, false));
                    }
                }
                (false, _) => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(input: Option<u32>, secondary_input: Option<u32>, output: Option<u32>) -> FileAction {
        let kind = FileActionKind::Rm { path: "/x".into(), allow_not_found: true, allow_wildcard: false };
        FileAction { input, secondary_input, output, kind }
    }

    fn plan(actions: Vec<FileAction>) -> Result<Plan, String> {
        Plan::new(&FileOp { actions }, 1).map_err(|error| error.to_string())
    }

    #[test]
    fn wrong_graphs_are_refused() {
        for (actions, want) in [
            (vec![action(Some(2), None, Some(0))], "invalid input index 2, 2 provided"),
            (vec![action(Some(0), Some(2), Some(0))], "invalid secondary input index 2, 1 provided"),
            (vec![action(Some(0), None, None)], "no outputs specified"),
            (vec![action(Some(0), None, Some(0)), action(Some(1), None, Some(0))], "duplicate output 0"),
            (vec![action(Some(0), None, Some(1))], "missing output index 0"),
            (vec![action(Some(0), None, Some(u32::MAX))], "missing output index 0"),
            (vec![action(Some(2), None, Some(0)), action(Some(1), None, None)], "loop from index 1"),
            (vec![action(Some(1), None, Some(0))], "loop from index 1"),
        ] {
            assert_eq!(plan(actions).err().as_deref(), Some(want));
        }
    }

    #[test]
    fn only_what_is_needed_twice_is_committed() {
        // 0 -> 1 -> 2 (output 0); 3 copies from 1's result (output 1).
        let actions =
            vec![action(Some(0), None, None), action(Some(1), None, None), action(Some(2), None, Some(0)), action(None, Some(2), Some(1))];
        let made = plan(actions.clone()).unwrap();
        assert_eq!((made.outputs.clone(), made.commits.clone()), (vec![2, 3], vec![false, true, true, true]));
        assert_eq!(made.order(&FileOp { actions }, 1, 3), [0, 1, 3]);
    }
}
