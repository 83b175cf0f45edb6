//! Watches a session: a tunnel can be open while nobody is at its other end.
use std::time::{Duration, Instant};

use super::wire_session::WireSession;

const INTERVAL: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(15);

/// Checks until the session is closed, closing it after two failures in a row. The limits are wide on purpose: a slow line full of data makes a check slow.
pub async fn watch(session: &WireSession) {
    let custom = session.identity().health_interval;
    let (interval, base, failures_allowed) = custom.map_or((INTERVAL, TIMEOUT, 1), |custom| (custom, custom, 0));
    let (mut failures, mut last) = (0, Duration::ZERO);
    loop {
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = session.life().cancelled() => return,
        }
        let started = Instant::now();
        let checked = tokio::select! {
            checked = tokio::time::timeout(base.max(last * 3 / 2), session.check_health()) => checked,
            () = session.life().cancelled() => return,
        };
        last = started.elapsed();
        let problem = match checked {
            Ok(Ok(())) => {
                failures = 0;
                continue;
            }
            Ok(Err(status)) => status.message().to_owned(),
            Err(_) => "no answer in time".to_owned(),
        };
        failures += 1;
        tracing::warn!(session = session.identity().id, problem, "session health check failed");
        if failures > failures_allowed {
            session.life().cancel(format!("session healthcheck failed fatally: {problem}"));
            return;
        }
    }
}
