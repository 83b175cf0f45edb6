//! The daemon in numbers, for those who watch it.
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use fault::{Kind, Result};

use crate::build::Build;
use crate::builds::Builds;
use crate::history::{Record, Steps};

/// Counts are since the daemon's start. Internal builds are in none.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    pub running: usize,
    pub ended: Ended,
    pub engine: engine::Census,
    pub store: layers::Figures,
    pub traffic: worker::Traffic,
}

/// What became of builds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ended {
    pub succeeded: Durations,
    pub failed: Durations,
    /// How many failed in which way.
    pub failures: Vec<(Kind, u64)>,
    pub steps: StepCounts,
}

/// Of all builds together, as their records count them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepCounts {
    pub total: u64,
    pub completed: u64,
    pub cached: u64,
    pub warnings: u64,
}

/// How long builds took.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Durations {
    pub count: u64,
    pub sum: Duration,
    /// How many took no longer than the limit at the same place in [`Durations::LIMITS`].
    pub within: [u64; Durations::LIMITS.len()],
}

impl Durations {
    /// Seconds.
    pub const LIMITS: [u64; 8] = [1, 5, 15, 60, 300, 900, 1800, 3600];

    fn add(&mut self, took: Duration) {
        self.count += 1;
        self.sum += took;
        for (count, limit) in self.within.iter_mut().zip(Self::LIMITS) {
            *count += u64::from(took <= Duration::from_secs(limit));
        }
    }
}

/// A build that runs.
#[derive(Debug, Clone)]
pub struct UnderWay {
    pub id: String,
    /// Empty for none.
    pub frontend: String,
    pub started: SystemTime,
}

/// Adds up what ends.
#[derive(Default)]
pub(crate) struct Tally(Mutex<Ended>);

impl Tally {
    pub fn add(&self, record: &Record, failure: Option<Kind>) {
        let took = record.completed_at.unwrap_or_else(SystemTime::now).duration_since(record.created_at).unwrap_or_default();
        let mut ended = self.0.lock().expect("no holder of this lock panics");
        match failure {
            None => ended.succeeded.add(took),
            Some(kind) => {
                ended.failed.add(took);
                match ended.failures.iter_mut().find(|(known, _)| *known == kind) {
                    Some((_, count)) => *count += 1,
                    None => ended.failures.push((kind, 1)),
                }
            }
        }
        let Steps { total, completed, cached, warnings } = record.steps;
        let steps = &mut ended.steps;
        steps.total += u64::from(total);
        steps.completed += u64::from(completed);
        steps.cached += u64::from(cached);
        steps.warnings += u64::from(warnings);
    }

    fn read(&self) -> Ended {
        self.0.lock().expect("no holder of this lock panics").clone()
    }
}

impl Builds {
    /// The builds that run, internal ones too, in no order.
    pub fn under_way(&self) -> Vec<UnderWay> {
        let build = |build: Arc<Build>| UnderWay {
            id: build.request.id.clone(),
            frontend: build.request.frontend.clone(),
            started: build.started(),
        };
        self.running_builds().into_iter().map(build).collect()
    }

    /// Reads counters; walks no tree and no table.
    pub async fn figures(&self) -> Result<Figures> {
        let layers = self.worker().layers().clone();
        let store = task::blocking(move || Ok(layers.figures()?)).await?;
        Ok(Figures {
            running: self.running(),
            ended: self.tally().read(),
            engine: self.worker().engine().census().await,
            store,
            traffic: self.worker().traffic(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_are_counted_by_what_became_of_them() {
        let tally = Tally::default();
        let record = |seconds, cached| {
            let mut record = Record::begun("b");
            record.completed_at = Some(record.created_at + Duration::from_secs(seconds));
            record.steps = Steps { total: 3, completed: 3, cached, warnings: 1 };
            record
        };
        tally.add(&record(1, 2), None);
        tally.add(&record(20, 0), Some(Kind::Canceled));
        tally.add(&record(4000, 0), Some(Kind::Canceled));
        let ended = tally.read();
        assert_eq!((ended.succeeded.count, ended.failed.count), (1, 2));
        assert_eq!(ended.succeeded.within, [1; 8]);
        assert_eq!(ended.failed.within, [0, 0, 0, 1, 1, 1, 1, 1]);
        assert_eq!(ended.failed.sum, Duration::from_secs(4020));
        assert_eq!(ended.failures, [(Kind::Canceled, 2)]);
        assert_eq!(ended.steps, StepCounts { total: 9, completed: 9, cached: 2, warnings: 3 });
    }
}
