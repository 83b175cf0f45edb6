//! The file op: its actions, run on editors without any mount.
//!
//! [`apply`] runs a whole op. Actions in a chain work on one draft; a draft is committed only where an output or a second reader needs it.
//! Where drafts come from and go to is a [`Workspace`]. The rules of each action are BuildKit's (`solver/llbsolver/file` and the
//! copy library below it), texts of errors included; paths in them are those inside the tree.
mod actions;
mod copier;
mod copy;
mod decompress;
mod error;
mod mode;
mod owner;
mod plan;
mod unpack;
mod wildcard;

use llb::{FileAction, FileActionKind, FileOp};
use snapshot::{Editor, View};
use task::Cancel;

pub use error::{ActionError, FileOpError};

/// Makes and commits drafts. All calls may block on the disk.
pub trait Workspace {
    /// A finished tree with all below it, as a handle that keeps it.
    type Stack: Clone;
    type Draft;

    fn view(&self, stack: &Self::Stack) -> fault::Result<View>;
    /// A new draft on top of `base`, or of nothing.
    fn draft(&self, base: Option<&Self::Stack>) -> fault::Result<Self::Draft>;
    fn edit<'d>(&self, draft: &'d mut Self::Draft) -> fault::Result<Editor<'d>>;
    fn commit(&self, draft: Self::Draft) -> fault::Result<Self::Stack>;
}

/// Runs the op on `inputs` (`None` is an empty tree) and returns its outputs.
pub fn apply<W: Workspace>(
    op: &FileOp,
    inputs: &[Option<W::Stack>],
    workspace: &W,
    cancel: &Cancel,
) -> Result<Vec<W::Stack>, FileOpError<W::Stack>> {
    let plan = plan::Plan::new(op, inputs.len()).map_err(FileOpError::invalid)?;
    let states = op.actions.iter().map(|_| State::Pending).collect();
    let mut run = Run { op, inputs, workspace, cancel, plan: &plan, states };
    let mut outputs = Vec::with_capacity(plan.outputs.len());
    for action in &plan.outputs {
        run.ensure(*action).map_err(|error| error.for_output(*action))?;
        match &run.states[*action] {
            State::Done(stack) => outputs.push(stack.clone()),
            _ => unreachable!("an output's action is committed"),
        }
    }
    Ok(outputs)
}

/// How far an action is.
enum State<W: Workspace> {
    Pending,
    /// Run; the one action that goes on from here takes the draft.
    Open(W::Draft),
    Done(W::Stack),
    Taken,
}

struct Run<'a, W: Workspace> {
    op: &'a FileOp,
    inputs: &'a [Option<W::Stack>],
    workspace: &'a W,
    cancel: &'a Cancel,
    plan: &'a plan::Plan,
    states: Vec<State<W>>,
}

impl<W: Workspace> Run<'_, W> {
    fn ensure(&mut self, number: usize) -> Result<(), FileOpError<W::Stack>> {
        // From the first action that is not done to the one that is wanted, without recursion: chains may be long.
        for number in self.plan.order(self.op, self.inputs.len(), number) {
            if matches!(self.states[number], State::Pending) {
                self.run(number)?;
            }
        }
        Ok(())
    }

    fn run(&mut self, number: usize) -> Result<(), FileOpError<W::Stack>> {
        let action = &self.op.actions[number];
        let failed = |error: ActionError| FileOpError::at(number, error);
        let secondary = self.finished(action.secondary_input);
        let mut draft = self.base(action).map_err(|fault| failed(fault.into()))?;
        let outcome = self.act(action, &mut draft, secondary.as_ref());
        if let Err(error) = outcome {
            // What there is so far, for a look at it in a debug container.
            let target = self.workspace.commit(draft).ok();
            let is_result = action.secondary_input.and_then(|index| (index as usize).checked_sub(self.inputs.len()));
            return Err(failed(error).with_state(target, is_result.zip(secondary)));
        }
        self.states[number] = if self.plan.commits[number] {
            State::Done(self.workspace.commit(draft).map_err(|fault| failed(fault.into()))?)
        } else {
            State::Open(draft)
        };
        Ok(())
    }

    /// The draft that an action works on: the one before it left open, or a new one.
    fn base(&mut self, action: &FileAction) -> fault::Result<W::Draft> {
        let before = action.input.and_then(|index| (index as usize).checked_sub(self.inputs.len()));
        if let Some(state) = before.map(|number| &mut self.states[number]) {
            match std::mem::replace(state, State::Taken) {
                State::Open(draft) => return Ok(draft),
                other => *state = other,
            }
        }
        self.workspace.draft(self.finished(action.input).as_ref())
    }

    fn act(&self, action: &FileAction, draft: &mut W::Draft, secondary: Option<&W::Stack>) -> Result<(), ActionError> {
        let views = |index: u32| self.finished(Some(index)).map(|stack| self.workspace.view(&stack)).transpose();
        let mut editor = self.workspace.edit(draft)?;
        match &action.kind {
            FileActionKind::Mkdir { path, mode, make_parents, owner, timestamp } => {
                let owner = owner::lookup(owner.as_ref(), &views)?;
                actions::mkdir(&mut editor, path, *mode, *make_parents, owner, *timestamp)
            }
            FileActionKind::Mkfile { path, mode, data, owner, timestamp } => {
                let owner = owner::lookup(owner.as_ref(), &views)?;
                actions::mkfile(&mut editor, path, *mode, data, owner, *timestamp)
            }
            FileActionKind::Symlink { oldpath, newpath, owner, timestamp } => {
                let owner = owner::lookup(owner.as_ref(), &views)?;
                actions::symlink(&mut editor, oldpath, newpath, owner, *timestamp)
            }
            FileActionKind::Rm { path, allow_not_found, allow_wildcard } => {
                actions::rm(&mut editor, path, *allow_not_found, *allow_wildcard)
            }
            FileActionKind::Copy(spec) => {
                let owner = owner::lookup(spec.owner.as_ref(), &views)?;
                let source = match secondary {
                    Some(stack) => self.workspace.view(stack)?,
                    None => View::empty(),
                };
                copy::copy(&source, &mut editor, spec, owner, self.cancel)
            }
        }
    }

    /// A finished tree by an action-style index; `None` where that is empty.
    fn finished(&self, index: Option<u32>) -> Option<W::Stack> {
        let index = index? as usize;
        match index.checked_sub(self.inputs.len()) {
            None => self.inputs[index].clone(),
            Some(number) => match &self.states[number] {
                State::Done(stack) => Some(stack.clone()),
                _ => None,
            },
        }
    }
}
