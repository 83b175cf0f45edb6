//! What is measured. Each row gets a daemon that has not been started, and returns seconds or megabytes.
use crate::clients;
use crate::daemon::{Bench, Failed};
use crate::fixtures::{Fixtures, touch};
use crate::graphs::{self, Plan, Shape};

pub struct Row {
    pub name: &'static str,
    pub run: fn(&mut Bench, &Fixtures, usize) -> Result<f64, Failed>,
    pub show: fn(f64) -> String,
}

const fn timed(name: &'static str, run: fn(&mut Bench, &Fixtures, usize) -> Result<f64, Failed>) -> Row {
    Row { name, run, show: seconds }
}

const fn weighed(name: &'static str, run: fn(&mut Bench, &Fixtures, usize) -> Result<f64, Failed>) -> Row {
    Row { name, run, show: megabytes }
}

const CHAIN: Plan = Plan { shape: Shape::Chain, ops: 5000 };
const WIDE: Plan = Plan { shape: Shape::Wide, ops: 5000 };

pub const ROWS: [Row; 31] = [
    timed("start to first answer", |b, _, _| b.start()),
    weighed("idle memory", |b, _, _| {
        b.start()?;
        Ok(b.memory())
    }),
    timed("50 sequential RUN", |b, f, _| f.fresh(b, &f.runs)),
    timed("50 sequential RUN, cached", |b, f, _| f.again(b, &f.runs, |_| ())),
    timed("40 parallel RUN, 40 COPY --from", |b, f, _| f.fresh(b, &f.parallel)),
    timed("context 30000 files + 300 MB, cold", |b, f, _| f.fresh(b, &f.context)),
    weighed("context, peak memory", |b, f, _| {
        f.fresh(b, &f.context)?;
        Ok(b.peak_memory())
    }),
    timed("context, nothing changed", |b, f, _| f.again(b, &f.context, |_| ())),
    timed("context, one file changed", |b, f, round| f.again(b, &f.context, |dir| touch(dir, round))),
    timed("COPY --from tree, then --chown", |b, f, _| {
        f.started(b)?;
        b.build(&f.copies, &["--opt", "target=tree"])?;
        b.build(&f.copies, &[])
    }),
    timed("push gzip 330 MB, cold blobs", |b, f, round| push(b, f, round, "")),
    timed("push zstd 330 MB, cold blobs", |b, f, round| push(b, f, round, ",compression=zstd,force-compression=true")),
    weighed("push gzip, peak memory", |b, f, round| {
        push(b, f, round + 500, "")?;
        Ok(b.peak_memory())
    }),
    weighed("push zstd, peak memory", |b, f, round| {
        push(b, f, round + 600, ",compression=zstd,force-compression=true")?;
        Ok(b.peak_memory())
    }),
    timed("OCI tar, cold", |b, f, _| oci_tar(b, f)),
    timed("OCI tar, blobs present", |b, f, _| {
        oci_tar(b, f)?;
        let output = format!("type=oci,dest={}", path(b, "again.tar"));
        b.build(&f.context, &["--output", &output])
    }),
    timed("local export of 30000 files", |b, f, _| {
        f.fresh(b, &f.context)?;
        let output = format!("type=local,dest={}", path(b, "out"));
        b.build(&f.context, &["--output", &output])
    }),
    timed("pull 330 MB, 12 layers", |b, f, _| {
        let dir = f.on_layered(b)?;
        b.start()?;
        b.build(&dir, &[])
    }),
    timed("32 clients, the same build", |b, f, _| clients::same(b, f)),
    timed("32 clients, different builds", |b, f, _| clients::different(b, f)),
    timed("a step that prints 200000 lines", |b, f, _| f.fresh(b, &f.lines)),
    timed("prune of 500 records", |b, f, _| {
        f.fresh(b, &f.records)?;
        b.client(&["prune", "--all"])
    }),
    timed("chain of 5000 file ops", |b, _, r| graphs::fresh(b, CHAIN, r)),
    timed("chain of 5000 file ops, cached", |b, _, r| graphs::again(b, CHAIN, r)),
    timed("graph of 5000 file ops", |b, _, r| graphs::fresh(b, WIDE, r)),
    timed("graph of 5000 file ops, cached", |b, _, r| graphs::again(b, WIDE, r)),
    timed("graph of 20000 file ops", |b, _, r| graphs::fresh(b, Plan { ops: 20000, ..WIDE }, r)),
    timed("graph of 20000 file ops, cached", |b, _, r| graphs::again(b, Plan { ops: 20000, ..WIDE }, r)),
    timed("510 small copies of a Dockerfile", |b, f, _| f.fresh(b, &f.records)),
    timed("restart with 500 records", |b, f, _| {
        f.fresh(b, &f.records)?;
        b.stop();
        b.start()
    }),
    timed("restart, then rebuild", |b, f, _| {
        f.fresh(b, &f.records)?;
        b.stop();
        b.start()?;
        b.build(&f.records, &[])
    }),
];

/// Of content that no blob is of yet, to a repository of its own.
fn push(bench: &mut Bench, fixtures: &Fixtures, round: usize, attributes: &str) -> Result<f64, Failed> {
    fixtures.started(bench)?;
    touch(&fixtures.context, round + 1000);
    bench.build(&fixtures.context, &[])?;
    let place = bench.scratch().file_name().expect("a directory has a name").to_string_lossy().to_lowercase().replace("kiln-bench-", "");
    let output = format!("type=image,name={}/pushed/{place}x:latest,push=true{attributes}", fixtures.host);
    bench.build(&fixtures.context, &["--output", &output])
}

fn oci_tar(bench: &mut Bench, fixtures: &Fixtures) -> Result<f64, Failed> {
    fixtures.fresh(bench, &fixtures.context)?;
    let output = format!("type=oci,dest={}", path(bench, "out.tar"));
    bench.build(&fixtures.context, &["--output", &output])
}

fn path(bench: &Bench, name: &str) -> String {
    bench.scratch().join(name).display().to_string()
}

fn seconds(value: f64) -> String {
    format!("{value:.3} s")
}

fn megabytes(value: f64) -> String {
    format!("{value:.1} MB")
}
