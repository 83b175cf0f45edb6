//! From the language's errors, which know lines, to faults, which carry the file's text to the client.
use std::fmt;

use dockerfile::{Cause, Suggested};
use fault::{Detail, Fault, Kind};

use super::context::Entrypoint;

/// A fault on its way through the language room, which knows only standard errors.
#[derive(Debug)]
pub(super) struct Passed(pub Fault);

impl fmt::Display for Passed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl std::error::Error for Passed {}

pub(super) fn pass(fault: Fault) -> Cause {
    Box::new(Passed(fault))
}

/// Why a build stopped: something in the file, or something that was asked.
#[derive(Debug)]
pub(super) enum Failure {
    File(dockerfile::Error),
    Fault(Fault),
}

impl From<dockerfile::Error> for Failure {
    fn from(error: dockerfile::Error) -> Self {
        Self::File(error)
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl Failure {
    /// With `entrypoint`, each place in the file becomes a detail of the fault.
    pub fn into_fault(self, entrypoint: Option<&Entrypoint>) -> Fault {
        let error = match self {
            Self::Fault(fault) => return fault,
            Self::File(error) => error,
        };
        let places = error.locations().to_vec();
        let message = error.message().to_owned();
        let mut fault = match error.into_cause() {
            None => Fault::new(Kind::Unknown, message),
            Some(cause) if message.is_empty() => from_cause(cause),
            Some(cause) => from_cause(cause).context(message),
        };
        for place in places {
            if let Some(entrypoint) = entrypoint {
                fault = fault.with_detail(entrypoint.detail(place));
            }
        }
        fault
    }
}

fn from_cause(cause: Cause) -> Fault {
    let cause = match cause.downcast::<Passed>() {
        Ok(passed) => return passed.0,
        Err(other) => other,
    };
    match cause.downcast::<Suggested>() {
        Ok(suggested) => {
            let text = suggested.to_string();
            let inner = from_cause(suggested.cause);
            let details: Vec<Detail> = inner.details().into_iter().cloned().collect();
            details.into_iter().rev().fold(Fault::new(inner.kind(), text), Fault::with_detail)
        }
        Err(other) => Fault::new(Kind::Unknown, other.to_string()),
    }
}
