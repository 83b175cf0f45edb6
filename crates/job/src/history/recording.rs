//! A running build's way into the history.
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use content::Hold;
use fault::{Fault, Result};
use oci::{Descriptor, Digest};

use super::findings::Findings;
use super::queue::Inner;
use super::record::{Record, Steps};
use super::{FAILURE, LOG, TRACE};
use crate::progress_hub::{self, Event as Progress, Hub};
use crate::trace::{self, Parent};

/// How long spans of other programs are waited for, unless somebody wants the record finished.
const TRACE_WAIT: Duration = Duration::from_secs(3);

/// So many events, or so many bytes of output, are written before the rest is looked at.
const LARGE_BATCH: usize = 10_000;
const LARGE_OUTPUT: usize = 1 << 20;

/// Made by [`super::History::begin`]. Dropped without [`Recording::complete`] the build leaves no trace.
pub struct Recording {
    history: Arc<Inner>,
    record: Arc<Record>,
    done: bool,
}

/// How a build ended.
pub struct Ended {
    /// Closed: what is in it is all there is.
    pub hub: Hub,
    /// What the client is told.
    pub outcome: Result<BTreeMap<String, String>>,
    pub findings: Arc<Findings>,
    /// The client's span that asked for the build.
    pub parent: Option<Parent>,
}

impl Recording {
    pub(super) fn new(history: Arc<Inner>, record: Arc<Record>) -> Self {
        Self { history, record, done: false }
    }

    /// Writes the record. It is durable with the next flush of the database; the trace follows by itself.
    pub async fn complete(mut self, ended: Ended) -> Result<Arc<Record>> {
        self.done = true;
        let Self { history, record, .. } = &self;
        let Ended { hub, outcome, findings, parent } = ended;
        let (inner, mut record) = (history.clone(), Record::clone(record));
        record.completed_at = Some(SystemTime::now());
        let watched = hub.clone();
        let record = task::blocking(move || {
            let holds = fill(&inner, &mut record, &watched, &outcome, &findings)?;
            inner.store.save(&record)?;
            drop(holds);
            Ok(Arc::new(record))
        })
        .await
        .inspect_err(|_| history.retire(&self.record.reference))?;
        let finish = history.unfinished(&record.reference);
        history.publish(record.clone());
        let (inner, complete) = (history.clone(), record.clone());
        history.drain.spawn("trace of a build", async move {
            tokio::select! {
                () = tokio::time::sleep(TRACE_WAIT) => {}
                () = finish.wanted() => {}
            }
            if let Err(fault) = save_trace(&inner, &record, hub, parent).await {
                tracing::warn!(%fault, build = record.reference, "the trace of a build could not be kept");
            }
            inner.finished(&record.reference, &finish);
        });
        Ok(complete)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if !self.done {
            self.history.retire(&self.record.reference);
        }
    }
}

fn fill(
    history: &Inner,
    record: &mut Record,
    hub: &Hub,
    outcome: &Result<BTreeMap<String, String>>,
    findings: &Findings,
) -> Result<Vec<Hold>> {
    let mut holds = findings.take_into(record);
    let mut keep = |(descriptor, hold)| {
        holds.push(hold);
        Some(descriptor)
    };
    let (log, steps) = write_log(history, hub)?;
    (record.logs, record.steps) = (keep(log), steps);
    match outcome {
        Ok(response) => record.response.extend(response.clone()),
        Err(fault) => {
            let (failure, details) = history.encoding.failure(fault);
            record.failure = keep(history.store.blob(FAILURE, &details)?);
            record.error = Some(failure);
        }
    }
    Ok(holds)
}

/// Writes everything that watchers saw, and counts how many of what there were.
fn write_log(history: &Inner, hub: &Hub) -> Result<((Descriptor, Hold), Steps)> {
    let (mut log, mut seen) = (history.store.large_blob()?, Seen::default());
    let (mut frames, mut batch, mut has_output, mut size) = (Vec::new(), Vec::new(), false, 0);
    hub.replay(|events| {
        for event in events {
            seen.add(&event);
            // Within one message vertices come first; what was shown before them must stay before them.
            let is_vertex = matches!(event, Progress::Vertex(_));
            if (is_vertex && has_output) || batch.len() >= LARGE_BATCH || size >= LARGE_OUTPUT {
                history.encoding.progress(std::mem::take(&mut batch), &mut frames);
                (has_output, size) = (false, 0);
            }
            has_output |= !is_vertex;
            size += progress_hub::weight(&event);
            batch.push(event);
        }
        log.write(&frames)?;
        frames.clear();
        Ok(())
    })?;
    history.encoding.progress(batch, &mut frames);
    log.write(&frames)?;
    let hold = log.commit()?;
    Ok(((Descriptor::new(LOG, hold.digest().clone(), hold.size()), hold), seen.steps()))
}

/// What there was in a build.
#[derive(Default)]
struct Seen {
    vertices: HashMap<Digest, SeenVertex>,
    warnings: u32,
}

#[derive(Default)]
struct SeenVertex {
    cached: bool,
    completed: bool,
}

impl Seen {
    fn add(&mut self, event: &Progress) {
        match event {
            Progress::Vertex(state) => {
                let seen = self.vertices.entry(state.vertex.digest.clone()).or_default();
                seen.cached |= state.cached;
                seen.completed |= state.completed.is_some();
            }
            Progress::Warning(_) => self.warnings += 1,
            Progress::Status(_) | Progress::Log { .. } => {}
        }
    }

    fn steps(&self) -> Steps {
        let number = |is: fn(&&SeenVertex) -> bool| self.vertices.values().filter(is).count() as u32;
        Steps {
            total: self.vertices.len() as u32,
            completed: number(|s| s.completed),
            cached: number(|s| s.cached),
            warnings: self.warnings,
        }
    }
}

async fn save_trace(history: &Arc<Inner>, record: &Arc<Record>, hub: Hub, parent: Option<Parent>) -> Result<()> {
    let (history, record) = (history.clone(), record.clone());
    task::blocking(move || {
        let trace = trace::of_build(&record, &hub.vertices(), parent);
        let mut spans = trace.spans;
        spans.extend(history.spans.take(trace.id));
        let mut text = Vec::new();
        for span in spans {
            serde_json::to_writer_pretty(&mut text, &span).map_err(|e| Fault::internal(e.to_string()))?;
            text.push(b'\n');
        }
        let (descriptor, _hold) = history.store.blob(TRACE, &text)?;
        // Deleted meanwhile: then there is nothing to add it to.
        match history.amend(&record.reference, |record| record.trace = Some(descriptor)) {
            Err(fault) if fault.kind() == fault::Kind::NotFound => Ok(()),
            other => other,
        }
    })
    .await
}
