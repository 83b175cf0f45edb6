use std::time::{Duration, Instant};

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
