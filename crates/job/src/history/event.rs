//! What listeners hear.
use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::broadcast;

use super::queue::Use;
use super::record::Record;

#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Started(Arc<Record>),
    /// The build ended, or its record changed afterwards.
    Complete(Arc<Record>),
    Deleted {
        reference: String,
    },
}

impl Event {
    pub fn reference(&self) -> &str {
        match self {
            Event::Started(record) | Event::Complete(record) => &record.reference,
            Event::Deleted { reference } => reference,
        }
    }
}

/// What a listener wants to hear.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    /// Of what has been: only builds that run.
    pub active_only: bool,
    /// Only this build; empty for all.
    pub reference: String,
    /// Only what has been.
    pub early_exit: bool,
    /// Filters on completed builds; any of them may match. See `filter`.
    pub filters: Vec<String>,
    /// At most so many completed builds, the newest; 0 for all. Negative is an error.
    pub limit: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Delete,
    /// Wait until everything of the build is in its record.
    Finalize,
    Pin(bool),
}

/// A listener's place: first what has been, then what comes.
pub struct Listening {
    pub(super) past: VecDeque<Event>,
    pub(super) live: Option<broadcast::Receiver<Event>>,
    pub(super) reference: String,
    pub(super) _use: Option<Use>,
}

impl Listening {
    /// The next event; `None` if there will be no more.
    pub async fn next(&mut self) -> Option<Event> {
        if let Some(event) = self.past.pop_front() {
            return Some(event);
        }
        let live = self.live.as_mut()?;
        loop {
            match live.recv().await {
                Ok(event) if self.reference.is_empty() || self.reference == event.reference() => return Some(event),
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    tracing::warn!(missed, "a listener to the build history reads too slowly and missed events");
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}
