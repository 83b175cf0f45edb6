//! What a failed step leaves behind, for a look at it in a debug container.
use std::fmt;
use std::sync::Arc;

use fault::{Classified, Detail, Fault, Kind, Result, Subject};
use layers::Layer;
use llb::Vertex;
use ops::exec::{Failure, Leftovers};
use ops::file::FileOpError;

/// A step's failure with the step and its state, to be found in a fault with [`Fault::find`].
pub struct Remains {
    fault: Fault,
    vertex: Arc<Vertex>,
    inputs: Vec<Option<Layer>>,
    mounts: Mounts,
    subject: Option<Subject>,
}

#[allow(clippy::large_enum_variant, reason = "one of these exists for each failed step, and is never moved")]
enum Mounts {
    Known(Vec<Option<Layer>>),
    Exec(Leftovers),
}

impl Remains {
    /// Adds the step to its failure, if that does not name it yet. Ends that are nobody's failure stay as they are.
    pub(crate) fn of_step(vertex: &Arc<Vertex>, fault: Fault) -> Fault {
        if fault.kind() == Kind::Canceled || fault.find::<Self>().is_some() {
            return fault;
        }
        Self { fault, vertex: vertex.clone(), inputs: Vec::new(), mounts: Mounts::Known(Vec::new()), subject: None }.into()
    }

    pub(crate) fn of_exec(vertex: &Arc<Vertex>, failure: Failure) -> Fault {
        let Failure { fault, left } = failure;
        if fault.kind() == Kind::Canceled {
            return fault;
        }
        Self { fault, vertex: vertex.clone(), inputs: left.inputs().to_vec(), mounts: Mounts::Exec(left), subject: None }.into()
    }

    /// `actions` is how many the op has.
    pub(crate) fn of_file(vertex: &Arc<Vertex>, inputs: &[Option<Layer>], actions: usize, failure: FileOpError<Layer>) -> Fault {
        let FileOpError { action, output_action, target, secondary, error } = failure;
        let fault = Fault::from(error);
        if fault.kind() == Kind::Canceled {
            return fault;
        }
        let mut mounts = vec![None; actions];
        for (number, layer) in action.zip(target).into_iter().chain(secondary) {
            mounts[number] = Some(layer);
        }
        let subject = output_action.or(action).map(|index| Subject::File { index: index as i64 });
        Self { fault, vertex: vertex.clone(), inputs: inputs.to_vec(), mounts: Mounts::Known(mounts), subject }.into()
    }

    /// The files that should have been part of the step's key could not be read.
    pub(crate) fn of_content(vertex: &Arc<Vertex>, input: usize, layer: Option<&Layer>, fault: Fault) -> Fault {
        if fault.kind() == Kind::Canceled {
            return fault;
        }
        let subject = Some(Subject::Cache { index: input as i64 });
        Self { fault, vertex: vertex.clone(), inputs: vec![layer.cloned()], mounts: Mounts::Known(Vec::new()), subject }.into()
    }

    pub fn vertex(&self) -> &Vertex {
        &self.vertex
    }

    /// Of an exec, one for each mount; else those of the op, or the one in question.
    pub fn inputs(&self) -> &[Option<Layer>] {
        &self.inputs
    }

    /// Of an exec, what each mount held in the end; of a file op, what each action made, as far as that is of interest.
    pub async fn mounts(&self) -> Result<Vec<Option<Layer>>> {
        match &self.mounts {
            Mounts::Known(layers) => Ok(layers.clone()),
            Mounts::Exec(left) => left.layers().await,
        }
    }

    pub fn subject(&self) -> Option<Subject> {
        self.subject
    }
}

impl fmt::Display for Remains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fault.fmt(f)
    }
}

impl fmt::Debug for Remains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remains").field("vertex", &self.vertex.digest).field("fault", &self.fault).finish_non_exhaustive()
    }
}

impl std::error::Error for Remains {}

impl Classified for Remains {
    fn kind(&self) -> Kind {
        self.fault.kind()
    }

    fn details(&self) -> Vec<Detail> {
        self.fault.details().into_iter().cloned().collect()
    }
}
