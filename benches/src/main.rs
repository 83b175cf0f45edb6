//! End-to-end benches: any BuildKit-compatible daemon commands, side by side, with the same client.
//!
//! ```text
//! cargo build --release -p kiln
//! cargo run --release -p kiln-benches -- [--daemon 'PATH/TO/kiln daemon'] [--daemon buildkitd] [--client buildctl] [--rounds 5] [ROW ...]
//! ```
//!
//! Without `--daemon` and `--client`, both are the kiln that was built. Each daemon command is given `--root DIR --addr unix://SOCKET`; the client command is given `--addr unix://SOCKET build …`, as buildctl
//! takes it. Rounds alternate between the daemons, so that a drift of the machine hits all alike. Medians are printed, and the ratio to the last
//! daemon. Needs Debian's busybox-static and docker-registry.
//!
//! `--llb SHAPE:OPS[:SALT]` (a shape of `graphs`, such as `chain:5000`) writes a definition to standard output instead, for `buildctl build`.
#![allow(clippy::unwrap_used)]

mod clients;
mod daemon;
mod fixtures;
mod graphs;
mod rows;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use daemon::{Bench, Failed};

struct Options {
    daemons: Vec<String>,
    client: String,
    rounds: usize,
    rows: Vec<String>,
}

fn main() -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, plan] = args.as_slice()
        && flag == "--llb"
    {
        return write_llb(plan);
    }
    let options = parse(args);
    let registry = testkit::Registry::start();
    registry.push("base", "latest", &testkit::busybox_image());
    let fixtures = fixtures::Fixtures::new(&registry.host());

    println!("{:<34}{}", "row (median)", options.daemons.iter().map(|d| format!("{:>24}", tail(d))).collect::<String>());
    for row in rows::ROWS.iter().filter(|row| options.rows.is_empty() || options.rows.iter().any(|r| row.name.contains(r.as_str()))) {
        let mut times: Vec<Vec<f64>> = vec![Vec::new(); options.daemons.len()];
        // Deleting is for after the row: what follows a large deletion pays for it on many a file system.
        let mut done = Vec::new();
        for round in 0..options.rounds {
            for (index, command) in options.daemons.iter().enumerate() {
                let mut bench = Bench::new(command, &options.client);
                match (row.run)(&mut bench, &fixtures, round) {
                    Ok(value) => times[index].push(value),
                    Err(Failed(why)) => {
                        eprintln!("{}: {why}", row.name);
                        code = ExitCode::FAILURE;
                    }
                }
                bench.stop();
                done.push(bench);
            }
        }
        print(row, &mut times);
    }
    code
}

fn write_llb(text: &str) -> ExitCode {
    let (plan, salt) = match text.splitn(3, ':').collect::<Vec<_>>()[..] {
        [shape, ops, salt] => (format!("{shape}:{ops}"), salt),
        _ => (text.to_owned(), ""),
    };
    match plan.parse::<graphs::Plan>() {
        Ok(plan) => {
            std::io::stdout().write_all(&plan.graph(salt).to_bytes()).unwrap();
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn print(row: &rows::Row, times: &mut [Vec<f64>]) {
    let medians: Vec<f64> = times.iter_mut().map(|values| median(values)).collect();
    let last = *medians.last().expect("there is a daemon");
    let cells: String = medians.iter().map(|m| format!("{:>16} {:>6.2}x", (row.show)(*m), m / last)).collect();
    println!("{:<34}{cells}", row.name);
}

/// Not a number where every round failed.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn tail(text: &str) -> &str {
    text.get(text.len().saturating_sub(22)..).unwrap_or(text)
}

fn parse(args: Vec<String>) -> Options {
    let mut options = Options { daemons: Vec::new(), client: String::new(), rounds: 5, rows: Vec::new() };
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().unwrap_or_else(|| panic!("{arg} needs a value"));
        match arg.as_str() {
            "--daemon" => options.daemons.push(value()),
            "--client" => options.client = value(),
            "--rounds" => options.rounds = value().parse().expect("--rounds takes a number"),
            flag if flag.starts_with('-') => panic!("unknown flag {flag}"),
            row => options.rows.push(row.to_owned()),
        }
    }
    if options.daemons.is_empty() {
        options.daemons.push(format!("{} daemon", testkit::kiln_binary().display()));
    }
    if options.client.is_empty() {
        options.client = testkit::kiln_binary().display().to_string();
    }
    options
}

/// How long a daemon may take to come up.
pub const START_BOUND: Duration = Duration::from_secs(20);
