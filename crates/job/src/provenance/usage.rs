//! What a step used of the machine, as BuildKit's provenance tells it: out of the kernel's files for the step's cgroup.
use std::time::SystemTime;

use oci::Timestamp;
use serde::Serialize;

use crate::provenance::machine::Pressure;

/// The samples of one step, oldest first.
#[derive(Debug, Clone, Serialize)]
pub struct Usage {
    samples: Vec<Sample>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Sample {
    timestamp: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_stat: Option<Cpu>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_stat: Option<Memory>,
    #[serde(rename = "ioStat", skip_serializing_if = "Option::is_none")]
    io_stat: Option<Io>,
    #[serde(rename = "pidsStat", skip_serializing_if = "Option::is_none")]
    pids_stat: Option<Pids>,
    #[serde(skip_serializing_if = "Option::is_none")]
    net_stat: Option<Net>,
}

impl Usage {
    /// Of a step that ran at `since` or later; what is older tells of another build.
    pub fn of(samples: &[worker::Sample], since: SystemTime) -> Option<Self> {
        if samples.last()?.time < since {
            return None;
        }
        Some(Self { samples: samples.iter().map(Sample::of).collect() })
    }
}

impl Sample {
    fn of(sample: &worker::Sample) -> Self {
        let file = |name: &str| sample.files.get(name).map(String::as_str);
        let pressure = |name: &str| file(name).filter(|text| !text.is_empty()).map(Pressure::parse);
        Self {
            timestamp: sample.time.into(),
            cpu_stat: Cpu::of(&file, pressure("cpu.pressure")),
            memory_stat: Memory::of(&file, pressure("memory.pressure")),
            io_stat: file("io.stat").map(|text| Io::of(text, pressure("io.pressure"))),
            pids_stat: file("pids.current").map(|text| Pids { current: number(text) }),
            net_stat: file(worker::NET).map(Net::of),
        }
    }
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The number that follows a key, in lines of both.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| number(line.strip_prefix(key)?.strip_prefix(' ')?))
}

/// Nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Cpu {
    #[serde(skip_serializing_if = "Option::is_none")]
    usage_nanos: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_nanos: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    system_nanos: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nr_periods: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nr_throttled: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    throttled_nanos: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pressure: Option<Pressure>,
}

impl Cpu {
    fn of<'a>(file: &impl Fn(&str) -> Option<&'a str>, pressure: Option<Pressure>) -> Option<Self> {
        let stat = |key: &str| field(file("cpu.stat")?, key);
        let micros = |key: &str| stat(key).map(|micros| micros.saturating_mul(1000));
        let alone = |name: &str| file(name).and_then(number);
        let cpu = Self {
            usage_nanos: micros("usage_usec").or_else(|| alone("cpuacct.usage")),
            user_nanos: micros("user_usec").or_else(|| alone("cpuacct.usage_user")),
            system_nanos: micros("system_usec").or_else(|| alone("cpuacct.usage_sys")),
            nr_periods: stat("nr_periods"),
            nr_throttled: stat("nr_throttled"),
            throttled_nanos: micros("throttled_usec").or_else(|| stat("throttled_time")),
            pressure,
        };
        (cpu != Self::default()).then_some(cpu)
    }
}

/// Bytes, and numbers of events.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Memory {
    #[serde(skip_serializing_if = "Option::is_none")]
    swap_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    anon: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel_stack: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    page_tables: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sock: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shmem: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_mapped: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_dirty: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_writeback: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    slab: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pgscan: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pgsteal: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pgfault: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pgmajfault: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peak: Option<u64>,
    #[serde(skip_serializing_if = "is_zero")]
    low_events: u64,
    #[serde(skip_serializing_if = "is_zero")]
    high_events: u64,
    #[serde(skip_serializing_if = "is_zero")]
    max_events: u64,
    #[serde(skip_serializing_if = "is_zero")]
    oom_events: u64,
    #[serde(skip_serializing_if = "is_zero")]
    oom_kill_events: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pressure: Option<Pressure>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Memory {
    fn of<'a>(file: &impl Fn(&str) -> Option<&'a str>, pressure: Option<Pressure>) -> Option<Self> {
        let stat = file("memory.stat")?;
        let events = |key: &str| file("memory.events").and_then(|text| field(text, key)).unwrap_or_default();
        // v1 has other names for the same.
        let either = |key: &str, old: &str| field(stat, key).or_else(|| field(stat, old));
        Some(Self {
            swap_bytes: file("memory.swap.current").and_then(number).or_else(|| field(stat, "swap")),
            anon: either("anon", "rss"),
            file: either("file", "cache"),
            kernel_stack: field(stat, "kernel_stack"),
            page_tables: field(stat, "pagetables"),
            sock: field(stat, "sock"),
            shmem: field(stat, "shmem"),
            file_mapped: either("file_mapped", "mapped_file"),
            file_dirty: either("file_dirty", "dirty"),
            file_writeback: either("file_writeback", "writeback"),
            slab: field(stat, "slab"),
            pgscan: field(stat, "pgscan"),
            pgsteal: field(stat, "pgsteal"),
            pgfault: field(stat, "pgfault"),
            pgmajfault: field(stat, "pgmajfault"),
            peak: file("memory.peak").or_else(|| file("memory.max_usage_in_bytes")).and_then(number),
            low_events: events("low"),
            high_events: events("high"),
            max_events: events("max"),
            oom_events: events("oom"),
            oom_kill_events: events("oom_kill"),
            pressure,
        })
    }
}

/// The sums over all devices.
#[derive(Debug, Clone, Default, Serialize)]
struct Io {
    #[serde(rename = "readBytes", skip_serializing_if = "Option::is_none")]
    read_bytes: Option<u64>,
    #[serde(rename = "writeBytes", skip_serializing_if = "Option::is_none")]
    write_bytes: Option<u64>,
    #[serde(rename = "discardBytes", skip_serializing_if = "Option::is_none")]
    discard_bytes: Option<u64>,
    #[serde(rename = "readIOs", skip_serializing_if = "Option::is_none")]
    reads: Option<u64>,
    #[serde(rename = "writeIOs", skip_serializing_if = "Option::is_none")]
    writes: Option<u64>,
    #[serde(rename = "discardIOs", skip_serializing_if = "Option::is_none")]
    discards: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pressure: Option<Pressure>,
}

impl Io {
    fn of(text: &str, pressure: Option<Pressure>) -> Self {
        let sum = |key: &str| {
            let values = text.split_whitespace().filter_map(|pair| pair.strip_prefix(key)?.strip_prefix('=')?.parse::<u64>().ok());
            values.reduce(u64::saturating_add)
        };
        Self {
            read_bytes: sum("rbytes"),
            write_bytes: sum("wbytes"),
            discard_bytes: sum("dbytes"),
            reads: sum("rios"),
            writes: sum("wios"),
            discards: sum("dios"),
            pressure,
        }
    }
}

#[derive(Debug, Clone, Serialize)]
struct Pids {
    #[serde(skip_serializing_if = "Option::is_none")]
    current: Option<u64>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Net {
    #[serde(skip_serializing_if = "is_zero")]
    rx_bytes: u64,
    #[serde(skip_serializing_if = "is_zero")]
    rx_packets: u64,
    #[serde(skip_serializing_if = "is_zero")]
    rx_errors: u64,
    #[serde(skip_serializing_if = "is_zero")]
    rx_dropped: u64,
    #[serde(skip_serializing_if = "is_zero")]
    tx_bytes: u64,
    #[serde(skip_serializing_if = "is_zero")]
    tx_packets: u64,
    #[serde(skip_serializing_if = "is_zero")]
    tx_errors: u64,
    #[serde(skip_serializing_if = "is_zero")]
    tx_dropped: u64,
}

impl Net {
    fn of(text: &str) -> Self {
        let get = |key: &str| field(text, key).unwrap_or_default();
        Self {
            rx_bytes: get("rx_bytes"),
            rx_packets: get("rx_packets"),
            rx_errors: get("rx_errors"),
            rx_dropped: get("rx_dropped"),
            tx_bytes: get("tx_bytes"),
            tx_packets: get("tx_packets"),
            tx_errors: get("tx_errors"),
            tx_dropped: get("tx_dropped"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn shown(files: &[(&str, &str)]) -> String {
        let files = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        let sample = worker::Sample { time: SystemTime::UNIX_EPOCH + Duration::from_secs(9), files };
        serde_json::to_string(&Usage::of(&[sample], SystemTime::UNIX_EPOCH)).unwrap()
    }

    #[test]
    fn cgroups_of_version_2_are_read() {
        let text = shown(&[
            ("cpu.stat", "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 0\n"),
            ("cpu.pressure", "some avg10=0.00 avg60=0.50 avg300=0.00 total=7\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"),
            ("memory.stat", "anon 4096\nfile 1\nkernel_stack 2\npagetables 3\npgfault 4\n"),
            ("memory.events", "low 0\nhigh 0\nmax 0\noom 2\noom_kill 1\n"),
            ("memory.peak", "8192\n"),
            ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n8:16 rbytes=10 wbytes=20 rios=30 wios=40 dbytes=0 dios=0\n"),
            ("pids.current", "0\n"),
            (worker::NET, "rx_bytes 5\ntx_bytes 0\n"),
        ]);
        let want = concat!(
            r#"{"samples":[{"timestamp":"1970-01-01T00:00:09Z","#,
            r#""cpuStat":{"usageNanos":5000,"userNanos":3000,"systemNanos":2000,"nrPeriods":0,"#,
            r#""pressure":{"some":{"avg10":0,"avg60":0.5,"avg300":0,"total":7},"full":{"avg10":0,"avg60":0,"avg300":0,"total":0}}},"#,
            r#""memoryStat":{"anon":4096,"file":1,"kernelStack":2,"pageTables":3,"pgfault":4,"peak":8192,"oomEvents":2,"oomKillEvents":1},"#,
            r#""ioStat":{"readBytes":11,"writeBytes":22,"discardBytes":0,"readIOs":33,"writeIOs":44,"discardIOs":0},"#,
            r#""pidsStat":{"current":0},"netStat":{"rxBytes":5}}]}"#
        );
        assert_eq!(text, want);
    }

    #[test]
    fn version_1_has_other_names_for_the_same() {
        let text = shown(&[("cpuacct.usage", "7\n"), ("memory.stat", "cache 1\nrss 2\nswap 3\n"), ("memory.max_usage_in_bytes", "4\n")]);
        let want = r#""cpuStat":{"usageNanos":7},"memoryStat":{"swapBytes":3,"anon":2,"file":1,"peak":4}}]}"#;
        assert!(text.ends_with(want), "{text}");
    }

    #[test]
    fn what_another_build_used_is_not_told() {
        let sample = |seconds| worker::Sample { time: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds), files: Default::default() };
        let since = SystemTime::UNIX_EPOCH + Duration::from_secs(5);
        assert!(Usage::of(&[sample(4)], since).is_none() && Usage::of(&[], since).is_none());
        assert!(Usage::of(&[sample(4), sample(6)], since).is_some());
    }
}
