//! One piece of work, from its start to the report of its end.
use std::future::Future;
use std::time::Duration;

use fault::{Fault, Result};
use oci::Digest;
use solver::{Outcome, TaskId};
use task::{Cancel, Drain};
use tokio::sync::mpsc;

use crate::blame::Failure;
use crate::memory::Output;
use crate::run_loop::Message;

/// How long a step that was told to stop may take to clean up before it is dropped.
const GRACE: Duration = Duration::from_secs(10);

/// What may be done with work that is cancelled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It leaves nothing behind and can be dropped at once.
    AtOnce,
    /// It ends by itself once cancelled, given a little time.
    Gracefully,
}

pub(crate) struct Work {
    pub task: TaskId,
    pub vertex: Digest,
    pub cancel: Cancel,
    pub stop: Stop,
    /// What fails, in front of why.
    pub doing: Option<&'static str>,
}

impl Work {
    /// Runs `future` beside the loop. Its end is reported whatever happens: a panic is a failure of the step, not a build that hangs.
    pub fn start(
        self,
        drain: &Drain,
        loop_: mpsc::WeakUnboundedSender<Message>,
        future: impl Future<Output = Result<Outcome<Output, Failure>>> + Send + 'static,
    ) {
        let (cancel, stop) = (self.cancel.clone(), self.stop);
        let inner = drain.spawn("step", async move {
            tokio::pin!(future);
            tokio::select! {
                biased;
                outcome = &mut future => outcome,
                () = cancel.cancelled() => match stop {
                    Stop::AtOnce => Err(cancel.fault()),
                    Stop::Gracefully => tokio::time::timeout(GRACE, future).await.unwrap_or_else(|_| Err(cancel.fault())),
                },
            }
        });
        drain.spawn("step end", async move {
            let outcome = inner.join().await.and_then(|outcome| outcome);
            let outcome = outcome.map_err(|fault: Fault| Failure::of(fault, self.doing, &self.vertex));
            if let Some(loop_) = loop_.upgrade() {
                // Fails only if the loop has ended, and then nobody waits for this.
                let _ = loop_.send(Message::Ended { task: self.task, outcome });
            }
        });
    }
}
