//! The daemon's figures as metrics. What BuildKit has, too, has BuildKit's name; the rest begins with `kiln_`.
use fault::Kind;
use job::Version;
use job::figures::{Durations, Ended, Figures};

use crate::exposition::Page;

pub fn write(page: &mut Page, figures: &Figures, version: &Version) {
    page.gauge("kiln_build_info", "What runs.").of(&[("version", &version.version), ("revision", &version.revision)], 1);
    builds(page, &figures.ended);
    page.gauge("kiln_builds_running", "Builds that run now.").value(figures.running);
    let engine::Census { jobs: _, graphs, vertices, tasks, waiting } = figures.engine;
    page.gauge("kiln_graphs", "Graphs of running builds.").value(graphs);
    page.gauge("kiln_vertices", "Vertices of running builds, those that several share counted once.").value(vertices);
    page.gauge("kiln_tasks_running", "Steps that run, and lesser work such as looking at sources.").value(tasks);
    page.gauge("kiln_results_awaited", "Results that builds wait for.").value(waiting);
    store(page, &figures.store);
    page.counter("kiln_http_bytes_total", "Bytes from and to registries, HTTP sources and object stores.")
        .of(&[("direction", "received")], figures.traffic.received)
        .of(&[("direction", "sent")], figures.traffic.sent);
}

fn builds(page: &mut Page, ended: &Ended) {
    let mut builds = page.counter("buildkit_builds_total", "Builds that ended, by what became of them.");
    builds.of(&[("status", "success")], ended.succeeded.count);
    for (kind, count) in &ended.failures {
        builds.of(&[("status", "failure"), ("error_code", code(*kind))], count);
    }
    let steps = &ended.steps;
    page.counter("buildkit_builds_steps_total", "Steps of builds that ended.")
        .of(&[("kind", "total")], steps.total)
        .of(&[("kind", "completed")], steps.completed)
        .of(&[("kind", "cached")], steps.cached)
        .of(&[("kind", "warnings")], steps.warnings);
    let mut durations = page.histogram("buildkit_build_duration_seconds", "How long builds took.");
    for (status, took) in [("success", &ended.succeeded), ("failure", &ended.failed)] {
        for (limit, count) in Durations::LIMITS.iter().zip(&took.within) {
            durations.part("_bucket", &[("status", status), ("le", &limit.to_string())], count);
        }
        durations.part("_bucket", &[("status", status), ("le", "+Inf")], took.count);
        durations.part("_sum", &[("status", status)], took.sum.as_secs_f64());
        durations.part("_count", &[("status", status)], took.count);
    }
}

fn store(page: &mut Page, store: &layers::Figures) {
    page.gauge("kiln_store_bytes", "What the build cache takes on disk.")
        .of(&[("of", "trees")], store.trees)
        .of(&[("of", "blobs")], store.blobs);
    if store.ceiling > 0 {
        page.gauge("kiln_store_ceiling_bytes", "What the build cache may take at most.").value(store.ceiling);
    }
    page.gauge("kiln_disk_size_bytes", "Size of the file system that the build cache is on.").value(store.disk_size);
    page.gauge("kiln_disk_free_bytes", "Free space of that file system.").value(store.disk_free);
    page.counter("kiln_prunes_total", "How often records were deleted to make room, or for a client, or would have been.")
        .value(store.prunes);
    page.counter("kiln_pruned_records_total", "Records of the build cache that were deleted.").value(store.deleted_records);
    page.counter("kiln_pruned_bytes_total", "What they took on disk.").value(store.deleted_bytes);
}

/// As BuildKit labels failures: gRPC's names of codes, in Go's spelling.
fn code(kind: Kind) -> &'static str {
    match kind {
        Kind::Invalid => "InvalidArgument",
        Kind::NotFound => "NotFound",
        Kind::AlreadyExists => "AlreadyExists",
        Kind::Denied => "PermissionDenied",
        Kind::Unauthenticated => "Unauthenticated",
        Kind::Unimplemented => "Unimplemented",
        Kind::Unavailable => "Unavailable",
        Kind::Exhausted => "ResourceExhausted",
        Kind::Canceled => "Canceled",
        Kind::Deadline => "DeadlineExceeded",
        Kind::Precondition => "FailedPrecondition",
        Kind::OutOfRange => "OutOfRange",
        Kind::Internal => "Internal",
        Kind::Unknown => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_metric_is_described_once_and_each_line_belongs_to_the_last_described() {
        let mut figures = Figures::default();
        figures.ended.failures = vec![(Kind::Canceled, 3), (Kind::Unknown, 1)];
        figures.store.ceiling = 5;
        let mut page = Page::default();
        write(&mut page, &figures, &Version::default());
        crate::process::write(&mut page, std::time::SystemTime::now());
        let page = page.finish();
        let (mut described, mut current) = (HashSet::new(), String::new());
        for line in page.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                current = rest.split(' ').next().unwrap().to_owned();
                assert!(described.insert(current.clone()), "{current} is described twice");
            } else if !line.starts_with('#') {
                assert!(line.starts_with(&current), "{line} under {current}");
                assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
            }
        }
        assert!(page.contains("buildkit_builds_total{status=\"failure\",error_code=\"Canceled\"} 3\n"), "{page}");
        assert!(page.contains("buildkit_build_duration_seconds_bucket{status=\"success\",le=\"+Inf\"} 0\n"), "{page}");
        assert!(page.contains("process_resident_memory_bytes "), "{page}");
    }
}
