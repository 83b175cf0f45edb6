//! How busy the machine was while a build ran, as BuildKit's provenance tells it: what the kernel counts, every few seconds.
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use oci::Timestamp;
use serde::{Serialize, Serializer};

/// Between the first samples. In a long build they get further apart.
const INTERVAL: Duration = Duration::from_secs(2);
const MOST: usize = 20;
/// The kernel counts processor time in these for every program, whatever it does inside.
const TICKS: f64 = 100.0;

/// The machine during one build.
#[derive(Default)]
pub struct Machine(Mutex<Vec<Sample>>);

impl Machine {
    /// Takes samples until it is dropped.
    pub async fn watch(&self) -> Infallible {
        let mut interval = INTERVAL;
        loop {
            tokio::time::sleep(interval).await;
            let Some(sample) = Sample::now().await else { continue };
            let mut samples = self.0.lock().expect("no holder of this lock panics");
            samples.push(sample);
            if samples.len() > MOST {
                thin(&mut samples);
                interval *= 2;
            }
        }
    }

    /// Those so far, and one of now.
    pub async fn samples(&self) -> Vec<Sample> {
        let now = Sample::now().await;
        let taken = self.0.lock().expect("no holder of this lock panics");
        taken.iter().cloned().chain(now).collect()
    }
}

/// Leaves every second one, from the first on.
fn thin<T>(samples: &mut Vec<T>) {
    let mut keep = false;
    samples.retain(|_| {
        keep = !keep;
        keep
    });
}

/// Counters since the machine started, and its state.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    timestamp: Timestamp,
    /// Seconds, by what the processors did.
    cpu_stat: Cpu,
    proc_stat: Processes,
    /// Kilobytes.
    memory_stat: Memory,
    /// The kernel may have been built without these.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_pressure: Option<Pressure>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_pressure: Option<Pressure>,
    #[serde(skip_serializing_if = "Option::is_none")]
    io_pressure: Option<Pressure>,
}

/// As Go writes numbers: whole ones without a point.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Number(f64);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.fract() == 0.0 && self.0 >= 0.0 { serializer.serialize_u64(self.0 as u64) } else { serializer.serialize_f64(self.0) }
    }
}

#[derive(Debug, Clone, Default, Serialize)]
struct Cpu {
    user: Number,
    nice: Number,
    system: Number,
    idle: Number,
    iowait: Number,
    irq: Number,
    softirq: Number,
    steal: Number,
    guest: Number,
    #[serde(rename = "guestNice")]
    guest_nice: Number,
}

#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Processes {
    context_switches: u64,
    process_created: u64,
    processes_running: u64,
}

#[derive(Debug, Clone, Default, Serialize)]
struct Memory {
    total: Option<u64>,
    free: Option<u64>,
    available: Option<u64>,
    buffers: Option<u64>,
    cached: Option<u64>,
    active: Option<u64>,
    inactive: Option<u64>,
    swap: Option<u64>,
    dirty: Option<u64>,
    writeback: Option<u64>,
    slab: Option<u64>,
}

/// How long work was held up for want of something.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Pressure {
    some: Option<Stalls>,
    full: Option<Stalls>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
struct Stalls {
    avg10: Number,
    avg60: Number,
    avg300: Number,
    total: u64,
}

impl Sample {
    /// `None` where the kernel's files cannot be read.
    async fn now() -> Option<Self> {
        let read = || {
            let file = |name: &str| std::fs::read_to_string(format!("/proc/{name}"));
            let pressure = |name: &str| file(&format!("pressure/{name}")).ok().map(|text| Pressure::parse(&text));
            let (cpu_stat, proc_stat) = stat(&file("stat")?);
            Ok(Self {
                timestamp: SystemTime::now().into(),
                cpu_stat,
                proc_stat,
                memory_stat: Memory::parse(&file("meminfo")?),
                cpu_pressure: pressure("cpu"),
                memory_pressure: pressure("memory"),
                io_pressure: pressure("io"),
            })
        };
        let sample = task::blocking(move || read().map_err(|e: std::io::Error| fault::Fault::internal(e.to_string()))).await;
        sample.inspect_err(|fault| tracing::debug!(%fault, "the machine's state cannot be read")).ok()
    }
}

/// `/proc/stat`
fn stat(text: &str) -> (Cpu, Processes) {
    let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap_or_default();
    let mut ticks = line("cpu").split_whitespace().map(|n| Number(n.parse::<f64>().unwrap_or_default() / TICKS));
    let mut next = || ticks.next().unwrap_or_default();
    let (user, nice, system, idle, iowait) = (next(), next(), next(), next(), next());
    let (irq, softirq, steal, guest, guest_nice) = (next(), next(), next(), next(), next());
    let count = |name: &str| line(name).trim().parse().unwrap_or_default();
    let processes =
        Processes { context_switches: count("ctxt"), process_created: count("processes"), processes_running: count("procs_running") };
    (Cpu { user, nice, system, idle, iowait, irq, softirq, steal, guest, guest_nice }, processes)
}

impl Memory {
    /// `/proc/meminfo`
    fn parse(text: &str) -> Self {
        let values: BTreeMap<&str, u64> = text
            .lines()
            .filter_map(|line| {
                let (name, value) = line.split_once(':')?;
                Some((name, value.split_whitespace().next()?.parse().ok()?))
            })
            .collect();
        let get = |name: &str| values.get(name).copied();
        Self {
            total: get("MemTotal"),
            free: get("MemFree"),
            available: get("MemAvailable"),
            buffers: get("Buffers"),
            cached: get("Cached"),
            active: get("Active"),
            inactive: get("Inactive"),
            swap: get("SwapTotal"),
            dirty: get("Dirty"),
            writeback: get("Writeback"),
            slab: get("Slab"),
        }
    }
}

impl Pressure {
    /// `/proc/pressure/*`, and the like of cgroups: a line for some of the work, and one for all of it.
    pub fn parse(text: &str) -> Self {
        let stalls = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
            let values: BTreeMap<&str, &str> = line.split_whitespace().filter_map(|pair| pair.split_once('=')).collect();
            let average = |key: &str| Number(values.get(key).and_then(|v| v.parse().ok()).unwrap_or_default());
            let total = values.get("total").and_then(|v| v.parse().ok()).unwrap_or_default();
            Some(Stalls { avg10: average("avg10"), avg60: average("avg60"), avg300: average("avg300"), total })
        };
        Self { some: stalls("some"), full: stalls("full") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read() {
        let (cpu, processes) =
            stat("cpu  150 2 300 4 5 6 7 8 9 10\ncpu0 1 1 1\nintr 5\nctxt 77\nprocesses 88\nprocs_running 3\nprocs_blocked 0\n");
        let text = serde_json::to_string(&cpu).unwrap();
        assert!(text.starts_with(r#"{"user":1.5,"nice":0.02,"system":3,"idle":0.04,"#) && text.ends_with(r#""guestNice":0.1}"#), "{text}");
        assert_eq!(serde_json::to_string(&processes).unwrap(), r#"{"contextSwitches":77,"processCreated":88,"processesRunning":3}"#);
        let memory = Memory::parse("MemTotal:       16000 kB\nActive:  7 kB\nActive(anon): 1 kB\nHugePages_Total:  0\n");
        assert_eq!((memory.total, memory.active, memory.slab), (Some(16000), Some(7), None));
        let pressure = Pressure::parse("some avg10=0.50 avg60=0.00 avg300=1.25 total=42\n");
        let want = r#"{"some":{"avg10":0.5,"avg60":0,"avg300":1.25,"total":42},"full":null}"#;
        assert_eq!(serde_json::to_string(&pressure).unwrap(), want);
    }

    #[test]
    fn thinning_keeps_the_first_and_every_second() {
        let mut samples: Vec<u8> = (0..7).collect();
        thin(&mut samples);
        assert_eq!(samples, [0, 2, 4, 6]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_build_has_a_bounded_number_of_samples() {
        let machine = Machine::default();
        let hours = tokio::time::timeout(Duration::from_secs(3600), machine.watch()).await;
        assert!(hours.is_err(), "it watches until it is dropped");
        let taken = machine.samples().await;
        assert!((2..=MOST + 1).contains(&taken.len()), "{}", taken.len());
    }
}
