use std::time::{Duration, Instant};

/// A bound for what takes a moment: it is for what hangs, not for what is slow, on a machine that may be slow and busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Polls until `ready` gives something. Panics with `what` after `bound`.
pub fn wait_until<T>(what: &str, bound: Duration, mut ready: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + bound;
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < deadline, "timed out after {bound:?} waiting for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
