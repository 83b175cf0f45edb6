//! Limits as the kernel's files and what to write into them, for either version.
use crate::container::Resources;

/// Memory always, to learn of OOM kills; the rest where limits want it.
pub(super) fn v1_controllers(resources: &Resources) -> Vec<&'static str> {
    let mut wanted = vec!["memory"];
    wanted.extend(["cpu", "cpuset", "pids"].into_iter().filter(|controller| !v1_settings(controller, resources).is_empty()));
    wanted
}

pub(super) fn v1_settings(controller: &str, r: &Resources) -> Vec<(&'static str, String)> {
    let mut settings = Vec::new();
    let mut set = |file, value: Option<String>| settings.extend(value.map(|value| (file, value)));
    match controller {
        "memory" => {
            set("memory.limit_in_bytes", r.memory.map(|v| v.to_string()));
            set("memory.memsw.limit_in_bytes", r.memory_swap.map(|v| v.to_string()));
        }
        "cpu" => {
            set("cpu.shares", r.cpu_shares.map(|v| v.to_string()));
            set("cpu.cfs_period_us", r.cpu_period.map(|v| v.to_string()));
            set("cpu.cfs_quota_us", r.cpu_quota.map(|v| v.to_string()));
        }
        "cpuset" => {
            set("cpuset.cpus", Some(r.cpuset_cpus.clone()).filter(|v| !v.is_empty()));
            set("cpuset.mems", Some(r.cpuset_mems.clone()).filter(|v| !v.is_empty()));
        }
        "pids" => set("pids.max", r.pids.map(|v| if v < 0 { "max".to_owned() } else { v.to_string() })),
        _ => {}
    }
    settings
}

pub(super) fn v2_settings(r: &Resources) -> Vec<(&'static str, String)> {
    let maximum = |value: i64| if value < 0 { "max".to_owned() } else { value.to_string() };
    let mut settings = Vec::new();
    let mut set = |file, value: Option<String>| settings.extend(value.map(|value| (file, value)));
    set("memory.max", r.memory.map(maximum));
    // v1 counts memory and swap together, v2 swap alone.
    set("memory.swap.max", r.memory_swap.map(|both| maximum(if both < 0 { -1 } else { (both - r.memory.unwrap_or(0)).max(0) })));
    set("cpu.weight", r.cpu_shares.filter(|v| *v > 0).map(|v| (1 + (v.clamp(2, 262_144) - 2) * 9999 / 262_142).to_string()));
    let cpu = (r.cpu_quota.is_some() || r.cpu_period.is_some()).then(|| {
        format!("{} {}", maximum(r.cpu_quota.filter(|v| *v > 0).unwrap_or(-1)), r.cpu_period.filter(|v| *v > 0).unwrap_or(100_000))
    });
    set("cpu.max", cpu);
    set("cpuset.cpus", Some(r.cpuset_cpus.clone()).filter(|v| !v.is_empty()));
    set("cpuset.mems", Some(r.cpuset_mems.clone()).filter(|v| !v.is_empty()));
    set("pids.max", r.pids.map(maximum));
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_translated_to_v2() {
        let resources = Resources {
            memory: Some(1 << 20),
            memory_swap: Some(3 << 20),
            cpu_shares: Some(1024),
            cpu_quota: Some(50_000),
            pids: Some(-1),
            ..Resources::default()
        };
        let expected = [
            ("memory.max", "1048576"),
            ("memory.swap.max", "2097152"),
            ("cpu.weight", "39"),
            ("cpu.max", "50000 100000"),
            ("pids.max", "max"),
        ];
        assert_eq!(v2_settings(&resources), expected.map(|(file, value)| (file, value.to_owned())));
    }
}
