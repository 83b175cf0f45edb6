//! Directories with Dockerfiles, made once, and the builds that every row begins with.
use std::cell::Cell;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::daemon::{Bench, Failed};

pub struct Fixtures {
    home: TempDir,
    pub host: String,
    pub runs: PathBuf,
    pub parallel: PathBuf,
    pub context: PathBuf,
    pub copies: PathBuf,
    pub lines: PathBuf,
    /// Twelve layers of some 27 MB each.
    pub layered: PathBuf,
    /// Ten stages of fifty small copies.
    pub records: PathBuf,
    pushed: Cell<bool>,
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
        let lines = |count: usize, line: &dyn Fn(usize) -> String| (0..count).map(line).collect::<String>();
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
        let layered = dir("layered", "FROM scratch\n".to_owned() + &lines(12, &|i| format!("COPY l{i} /l{i}\n")));
        fill_layers(&layered);
        let stage = |s: usize| format!("FROM scratch AS r{s}\n{}", lines(50, &|i| format!("COPY f /r{s}/f{i}\n")));
        let collected = lines(10, &|s| format!("COPY --from=r{s} /r{s}/f0 /{s}\n"));
        let records = dir("records", lines(10, &stage) + "FROM scratch\n" + &collected);
        fs::write(records.join("f"), "f").unwrap();
        Self {
            host: host.to_owned(),
            runs: dir("runs", base.clone() + &lines(50, &|i| format!("RUN echo step {i}\n"))),
            parallel: dir("parallel", parallel + &collect),
            context,
            copies,
            layered,
            records,
            lines: dir("lines", base + "RUN seq 1 200000\n"),
            pushed: Cell::default(),
            home,
        }
    }

    /// The seconds of a first build, on a daemon that has the base image.
    pub fn fresh(&self, bench: &mut Bench, dir: &Path) -> Result<f64, Failed> {
        self.started(bench)?;
        bench.build(dir, &[])
    }

    /// The seconds of a second build, after a change.
    pub fn again(&self, bench: &mut Bench, dir: &Path, change: impl Fn(&Path)) -> Result<f64, Failed> {
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

    /// A Dockerfile that is based on the layered image, which the first daemon that comes here pushes.
    pub fn on_layered(&self, bench: &Bench) -> Result<PathBuf, Failed> {
        let image = format!("{}/layered:latest", self.host);
        let dir = self.home.path().join("on-layered");
        if !self.pushed.get() {
            let mut other = bench.sibling();
            other.start()?;
            other.build(&self.layered, &["--output", &format!("type=image,name={image},push=true")])?;
            fs::create_dir_all(&dir).unwrap();
            // The copy makes the daemon unpack.
            fs::write(dir.join("Dockerfile"), format!("FROM {image} AS base\nFROM scratch\nCOPY --from=base /l0/f0 /l11/f1 /\n")).unwrap();
            self.pushed.set(true);
        }
        Ok(dir)
    }
}

/// Changes one of the many files.
pub fn touch(dir: &Path, round: usize) {
    fs::write(dir.join("d7/f7"), format!("changed {round} {:?}\n", std::time::SystemTime::now())).unwrap();
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
    let block = noise();
    for b in 0..3u8 {
        let data: Vec<u8> = (0..100u8).flat_map(|i| block.iter().map(move |x| x.wrapping_add(i).wrapping_mul(b | 1))).collect();
        fs::write(dir.join(format!("big{b}")), data).unwrap();
    }
}

/// Twelve directories of 27 files of a megabyte.
fn fill_layers(dir: &Path) {
    let block = noise();
    for l in 0..12u8 {
        let sub = dir.join(format!("l{l}"));
        fs::create_dir(&sub).unwrap();
        for f in 0..27u8 {
            let data: Vec<u8> = block.iter().map(|x| x.wrapping_add(f).wrapping_mul(2 * l + 1)).collect();
            fs::write(sub.join(format!("f{f}")), data).unwrap();
        }
    }
}

/// A megabyte with six random bits in each byte.
fn noise() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let random = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state & 0x3f) as u8
    });
    random.take(1 << 20).collect()
}
