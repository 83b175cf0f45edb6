//! What is measured. Each row gets a daemon that has not been started, and returns seconds or megabytes.
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::clients;
use crate::daemon::{Bench, Failed};
use crate::graphs::{self, Plan, Shape};

pub struct Row {
    pub name: &'static str,
    pub run: fn(&mut Bench, &Fixtures, usize) -> Result<f64, Failed>,
    pub show: fn(f64) -> String,
}

const CHAIN: Plan = Plan { shape: Shape::Chain, ops: 5000 };
const WIDE: Plan = Plan { shape: Shape::Wide, ops: 5000 };

pub const ROWS: [Row; 20] = [
    Row { name: "start to first answer", run: |b, _, _| b.start(), show: seconds },
    Row { name: "idle memory", run: idle_memory, show: megabytes },
    Row { name: "50 sequential RUN", run: |b, f, _| f.fresh(b, &f.runs), show: seconds },
    Row { name: "50 sequential RUN, cached", run: |b, f, _| f.again(b, &f.runs, |_| ()), show: seconds },
    Row { name: "40 parallel RUN, 40 COPY --from", run: |b, f, _| f.fresh(b, &f.parallel), show: seconds },
    Row { name: "context 30000 files + 300 MB, cold", run: |b, f, _| f.fresh(b, &f.context), show: seconds },
    Row { name: "context, nothing changed", run: |b, f, _| f.again(b, &f.context, |_| ()), show: seconds },
    Row { name: "context, one file changed", run: |b, f, round| f.again(b, &f.context, |dir| touch(dir, round)), show: seconds },
    Row { name: "COPY --from tree, then --chown", run: copy_from, show: seconds },
    Row { name: "push gzip 330 MB, cold", run: push, show: seconds },
    Row { name: "local export of 30000 files", run: local_export, show: seconds },
    Row { name: "a step that prints 200000 lines", run: |b, f, _| f.fresh(b, &f.lines), show: seconds },
    Row { name: "chain of 5000 file ops", run: |b, _, r| graphs::fresh(b, CHAIN, r), show: seconds },
    Row { name: "chain of 5000 file ops, cached", run: |b, _, r| graphs::again(b, CHAIN, r), show: seconds },
    Row { name: "graph of 5000 file ops", run: |b, _, r| graphs::fresh(b, WIDE, r), show: seconds },
    Row { name: "graph of 5000 file ops, cached", run: |b, _, r| graphs::again(b, WIDE, r), show: seconds },
    Row { name: "graph of 20000 file ops", run: |b, _, r| graphs::fresh(b, Plan { ops: 20000, ..WIDE }, r), show: seconds },
    Row { name: "graph of 20000 file ops, cached", run: |b, _, r| graphs::again(b, Plan { ops: 20000, ..WIDE }, r), show: seconds },
    Row { name: "32 clients, the same build", run: |b, f, _| clients::same(b, f), show: seconds },
    Row { name: "32 clients, different builds", run: |b, f, _| clients::different(b, f), show: seconds },
];

/// Directories with Dockerfiles, made once.
pub struct Fixtures {
    _home: TempDir,
    host: String,
    runs: PathBuf,
    parallel: PathBuf,
    context: PathBuf,
    copies: PathBuf,
    lines: PathBuf,
}

impl Fixtures {
    pub fn new(host: &str) -> Self {
        let home = tempfile::Builder::new().prefix("kiln-fixtures-").tempdir().unwrap();
        let base = format!("FROM {host}/base:latest\n");
        let dir = |name: &str, dockerfile: String| {
            let dir = home.path().join(name);
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("Dockerfile"), dockerfile).unwrap();
            dir
        };
        let mut runs = base.clone();
        for i in 0..50 {
            writeln!(runs, "RUN echo step {i}").unwrap();
        }
        let mut parallel = String::new();
        let mut collect = "FROM scratch\n".to_owned();
        for i in 0..40 {
            writeln!(parallel, "FROM {host}/base:latest AS s{i}\nRUN echo {i} > /out{i}").unwrap();
            writeln!(collect, "COPY --from=s{i} /out{i} /").unwrap();
        }
        let context = dir("context", "FROM scratch\nCOPY . /\n".into());
        fill(&context);
        let copies = dir("copies", "FROM scratch AS tree\nCOPY . /\nFROM scratch AS plain\nCOPY --from=tree / /a\nFROM plain\nCOPY --from=tree --chown=1000:1000 / /b\n".into());
        fill(&copies);
        Self {
            host: host.to_owned(),
            runs: dir("runs", runs),
            parallel: dir("parallel", parallel + &collect),
            context,
            copies,
            lines: dir("lines", base + "RUN seq 1 200000\n"),
            _home: home,
        }
    }

    /// The seconds of a first build, on a daemon that has the base image.
    fn fresh(&self, bench: &mut Bench, dir: &Path) -> Result<f64, Failed> {
        self.started(bench)?;
        bench.build(dir, &[])
    }

    /// The seconds of a second build, after a change.
    fn again(&self, bench: &mut Bench, dir: &Path, change: impl Fn(&Path)) -> Result<f64, Failed> {
        self.started(bench)?;
        bench.build(dir, &[])?;
        change(dir);
        bench.build(dir, &[])
    }

    /// Where the base image is.
    pub fn base(&self) -> String {
        format!("{}/base:latest", self.host)
    }

    /// A running daemon that has pulled and unpacked the base image.
    pub fn started(&self, bench: &mut Bench) -> Result<(), Failed> {
        bench.start()?;
        let warm = bench.scratch().join("warm");
        fs::create_dir(&warm).unwrap();
        fs::write(warm.join("Dockerfile"), format!("FROM {}/base:latest\nRUN true\n", self.host)).unwrap();
        bench.build(&warm, &[]).map(drop)
    }
}

fn idle_memory(bench: &mut Bench, _: &Fixtures, _: usize) -> Result<f64, Failed> {
    bench.start()?;
    Ok(bench.memory())
}

fn copy_from(bench: &mut Bench, fixtures: &Fixtures, _: usize) -> Result<f64, Failed> {
    fixtures.started(bench)?;
    bench.build(&fixtures.copies, &["--opt", "target=tree"])?;
    bench.build(&fixtures.copies, &[])
}

fn push(bench: &mut Bench, fixtures: &Fixtures, round: usize) -> Result<f64, Failed> {
    fixtures.started(bench)?;
    touch(&fixtures.context, round + 1000);
    bench.build(&fixtures.context, &[])?;
    let output = format!("type=image,name={}/pushed{}:latest,push=true", fixtures.host, std::process::id() as usize + round);
    bench.build(&fixtures.context, &["--output", &output])
}

fn local_export(bench: &mut Bench, fixtures: &Fixtures, _: usize) -> Result<f64, Failed> {
    fixtures.started(bench)?;
    bench.build(&fixtures.context, &[])?;
    let output = format!("type=local,dest={}", bench.scratch().join("out").display());
    bench.build(&fixtures.context, &["--output", &output])
}

/// 30,000 small files in 300 directories, and 300 MB in three files that do not compress to nothing.
fn fill(dir: &Path) {
    for d in 0..300 {
        let sub = dir.join(format!("d{d}"));
        fs::create_dir(&sub).unwrap();
        for f in 0..100 {
            fs::write(sub.join(format!("f{f}")), format!("file {d}/{f}\n").repeat(10)).unwrap();
        }
    }
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let block: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state & 0x3f) as u8
    })
    .take(1 << 20)
    .collect();
    for b in 0..3u8 {
        let data: Vec<u8> = (0..100u8).flat_map(|i| block.iter().map(move |x| x.wrapping_add(i).wrapping_mul(b | 1))).collect();
        fs::write(dir.join(format!("big{b}")), data).unwrap();
    }
}

fn touch(dir: &Path, round: usize) {
    fs::write(dir.join("d7/f7"), format!("changed {round} {:?}\n", std::time::SystemTime::now())).unwrap();
}

fn seconds(value: f64) -> String {
    format!("{value:.3} s")
}

fn megabytes(value: f64) -> String {
    format!("{value:.1} MB")
}
