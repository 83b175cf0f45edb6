//! Many clients at once.
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use crate::daemon::{Bench, Failed};
use crate::fixtures::Fixtures;

const CLIENTS: usize = 32;
/// How many steps each client's build has.
const STEPS: usize = 5;

/// The seconds until all clients have the same build, which is new to the daemon.
pub fn same(bench: &mut Bench, fixtures: &Fixtures) -> Result<f64, Failed> {
    all(bench, fixtures, |_| "all".to_owned())
}

/// The seconds until all clients have a build each that has no step in common with another's.
pub fn different(bench: &mut Bench, fixtures: &Fixtures) -> Result<f64, Failed> {
    all(bench, fixtures, |client| client.to_string())
}

fn all(bench: &mut Bench, fixtures: &Fixtures, name: impl Fn(usize) -> String) -> Result<f64, Failed> {
    fixtures.started(bench)?;
    let dirs: Vec<PathBuf> = (0..CLIENTS)
        .map(|client| {
            let dir = bench.scratch().join(format!("client{client}"));
            fs::create_dir(&dir).unwrap();
            let mut dockerfile = format!("FROM {}\n", fixtures.base());
            for step in 0..STEPS {
                writeln!(dockerfile, "RUN echo {} {step} > /out{step}", name(client)).unwrap();
            }
            fs::write(dir.join("Dockerfile"), dockerfile).unwrap();
            dir
        })
        .collect();
    let bench = &*bench;
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let clients: Vec<_> = dirs.iter().map(|dir| scope.spawn(move || bench.build(dir, &[]))).collect();
        clients.into_iter().try_for_each(|client| client.join().expect("a client's thread returns what went wrong").map(drop))
    })?;
    Ok(begun.elapsed().as_secs_f64())
}
