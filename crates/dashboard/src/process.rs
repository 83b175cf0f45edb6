//! What the kernel says of this process, under the names that Prometheus' client libraries use.
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::Resource;
use rustix::time::ClockId;

use crate::exposition::Page;

/// What cannot be read is left out.
pub fn write(page: &mut Page, started: SystemTime) {
    let cpu = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
    let seconds = Duration::new(cpu.tv_sec.unsigned_abs(), u32::try_from(cpu.tv_nsec).unwrap_or(0)).as_secs_f64();
    page.counter("process_cpu_seconds_total", "CPU time of the daemon, without its steps.").value(seconds);
    if let Some((size, resident)) = memory() {
        page.gauge("process_virtual_memory_bytes", "Address space of the daemon.").value(size);
        page.gauge("process_resident_memory_bytes", "Memory of the daemon, without its steps.").value(resident);
    }
    if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
        page.gauge("process_open_fds", "Open file descriptors.").value(entries.count());
    }
    if let Some(limit) = rustix::process::getrlimit(Resource::Nofile).current {
        page.gauge("process_max_fds", "Most file descriptors that may be open.").value(limit);
    }
    if let Ok(entries) = std::fs::read_dir("/proc/self/task") {
        page.gauge("process_threads", "Threads of the daemon.").value(entries.count());
    }
    let started = started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    page.gauge("process_start_time_seconds", "When the daemon started, in seconds since 1970.").value(started);
}

/// Size and resident part, in bytes.
fn memory() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let kilobytes = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Some((kilobytes("VmSize:")? << 10, kilobytes("VmRSS:")? << 10))
}
