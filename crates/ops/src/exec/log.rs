//! A step's output on its way to the progress stream, with BuildKit's limits: each stream is cut at a total size and at an average speed,
//! and the last part of what was cut is kept in case the step fails.
use std::time::Instant;

use bytes::Bytes;
use progress::Reporter;

const TAIL: usize = 256 << 10;

/// Limits for each stream of a step; `None` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLimits {
    /// Bytes in all.
    pub size: Option<u64>,
    /// Bytes for each second since the step began, the first one counted whole.
    pub speed: Option<u64>,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { size: Some(2 << 20), speed: Some(200 << 10) }
    }
}

/// One stream of one step.
pub struct StepLog {
    reporter: Reporter,
    stream: u8,
    limits: LogLimits,
    started: Instant,
    seen: u64,
    clipping: bool,
    tail: Tail,
}

impl StepLog {
    pub fn new(reporter: Reporter, stream: u8, limits: LogLimits) -> Self {
        Self { reporter, stream, limits, started: Instant::now(), seen: 0, clipping: false, tail: Tail::default() }
    }

    pub fn write(&mut self, data: Bytes) {
        self.write_at(data, self.started.elapsed().as_secs_f64());
    }

    fn write_at(&mut self, data: Bytes, seconds: f64) {
        let before = self.seen;
        self.seen += data.len() as u64;
        let (limit, reason) = self.limit(seconds);
        let room = limit.map_or(u64::MAX, |limit| limit.saturating_sub(before));
        if room >= data.len() as u64 {
            self.clipping = false;
            return self.reporter.log(self.stream, data);
        }
        let room = usize::try_from(room).expect("less than the chunk's length");
        if room > 0 {
            self.reporter.log(self.stream, data.slice(..room));
        }
        if !self.clipping {
            self.clipping = true;
            self.reporter.log(self.stream, format!("\n[output clipped, log limit {reason} reached]\n"));
        }
        self.tail.push(&data[room..]);
    }

    /// The bytes allowed by now, and what sets that limit.
    fn limit(&self, seconds: f64) -> (Option<u64>, String) {
        let by_speed = self.limits.speed.map(|speed| speed.saturating_mul((seconds.ceil() as u64).max(1)));
        match (by_speed, self.limits.size) {
            (Some(by_speed), Some(size)) if size < by_speed => (Some(size), human(size)),
            (None, Some(size)) => (Some(size), human(size)),
            (Some(by_speed), _) => (Some(by_speed), format!("{}/s", human(self.limits.speed.unwrap_or_default()))),
            (None, None) => (None, String::new()),
        }
    }

    /// Ends the stream; a failed step shows the end of what was clipped.
    pub fn finish(self, failed: bool) {
        if failed && !self.tail.is_empty() {
            self.reporter.log(self.stream, self.tail.into_bytes());
        }
    }
}

fn human(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 20 && b % (1 << 20) == 0 => format!("{}MiB", b >> 20),
        b if b >= 1 << 10 && b % (1 << 10) == 0 => format!("{}KiB", b >> 10),
        b => format!("{b}B"),
    }
}

/// The last [`TAIL`] bytes of what was pushed.
#[derive(Default)]
struct Tail(std::collections::VecDeque<u8>);

impl Tail {
    fn push(&mut self, data: &[u8]) {
        let data = &data[data.len().saturating_sub(TAIL)..];
        let excess = (self.0.len() + data.len()).saturating_sub(TAIL);
        self.0.drain(..excess);
        self.0.extend(data);
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn into_bytes(self) -> Bytes {
        Vec::from(self.0).into()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use oci::Digest;
    use progress::{Sink, Update};

    use super::*;

    #[derive(Default)]
    struct Seen(Mutex<Vec<u8>>);

    impl Sink for Seen {
        fn emit(&self, update: Update) {
            if let Update::Log { data, .. } = update {
                self.0.lock().unwrap().extend_from_slice(&data);
            }
        }
    }

    fn log(limits: LogLimits) -> (Arc<Seen>, StepLog) {
        let seen = Arc::new(Seen::default());
        (seen.clone(), StepLog::new(Reporter::new(seen, Digest::of("v")), 1, limits))
    }

    #[test]
    fn clips_at_the_size_and_shows_the_tail_of_a_failure() {
        let (seen, mut log) = log(LogLimits { size: Some(4), speed: None });
        log.write("abc".into());
        log.write("defgh".into());
        log.write("ij".into());
        log.finish(true);
        let text = String::from_utf8(seen.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "abcd\n[output clipped, log limit 4B reached]\nefghij");
    }

    #[test]
    fn speed_limit_recovers_with_time() {
        let (seen, mut log) = log(LogLimits { size: None, speed: Some(1024) });
        log.write_at(vec![b'a'; 1024].into(), 0.1);
        log.write_at("lost".into(), 0.2);
        log.write_at("back".into(), 5.0);
        log.finish(false);
        let text = String::from_utf8(seen.0.lock().unwrap().clone()).unwrap();
        assert!(text.contains("log limit 1KiB/s reached") && text.ends_with("back") && !text.contains("lost"), "{text}");
    }
}
