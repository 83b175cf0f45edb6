//! How an exec fails, and what it leaves behind.
use std::path::PathBuf;
use std::sync::Mutex;

use fault::{Classified, Detail, Fault, Kind, Result};
use layers::Layer;
use tokio::sync::OnceCell;

use super::Prepared;

/// A process that ended otherwise than the step allows.
#[derive(Debug, thiserror::Error)]
#[error("process {command} did not complete successfully: {}", reason(*code, *oom))]
pub struct ExitError {
    /// The arguments, joined and quoted.
    pub command: String,
    pub code: i32,
    pub oom: bool,
}

fn reason(code: i32, oom: bool) -> String {
    if oom { "cannot allocate memory".to_owned() } else { format!("exit code: {code}") }
}

impl Classified for ExitError {
    fn kind(&self) -> Kind {
        if self.oom { Kind::Exhausted } else { Kind::Unknown }
    }

    fn details(&self) -> Vec<Detail> {
        vec![Detail::Exit { code: self.code as u32, error: String::new() }]
    }
}

/// An exec that failed.
pub struct Failure {
    pub fault: Fault,
    pub left: Leftovers,
}

/// The state of an exec's mounts after its failure. It becomes layers only if somebody asks for them; else nothing of it stays.
pub struct Leftovers {
    inputs: Vec<Option<Layer>>,
    written: Mutex<Option<(Prepared, Vec<PathBuf>)>>,
    layers: OnceCell<Vec<Option<Layer>>>,
}

impl Leftovers {
    /// Nothing was written. `inputs` has one for each mount.
    pub(super) fn none(inputs: Vec<Option<Layer>>) -> Self {
        Self { inputs, written: Mutex::default(), layers: OnceCell::new() }
    }

    pub(super) fn of(inputs: Vec<Option<Layer>>, mut prepared: Prepared, stubs: Vec<PathBuf>) -> Self {
        prepared.retire();
        Self { written: Mutex::new(Some((prepared, stubs))), ..Self::none(inputs) }
    }

    /// What each mount began with.
    pub fn inputs(&self) -> &[Option<Layer>] {
        &self.inputs
    }

    /// What each mount held in the end.
    pub async fn layers(&self) -> Result<Vec<Option<Layer>>> {
        let salvaged = self.layers.get_or_try_init(|| async {
            let written = self.written.lock().expect("no holder of this lock panics").take();
            match written {
                Some((prepared, stubs)) => prepared.salvage(self.inputs.clone(), stubs).await,
                None => Ok(self.inputs.clone()),
            }
        });
        salvaged.await.cloned()
    }
}
