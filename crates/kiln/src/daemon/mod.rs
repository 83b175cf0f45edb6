//! The daemon: flags and config to a running server, and its orderly end.
mod config;
mod file;
mod flags;
mod gc;
mod listen;
pub mod lock;
mod logging;
mod network;
mod notify;
mod provenance_env;
mod rootless;
mod serve;
mod tls;

use std::ffi::OsString;
use std::process::ExitCode;

use flags::{Flags, Parsed};

/// Bytes; taken only as far as they are used. Trees are walked recursively, and one that a step made may have two thousand levels before its paths become
/// too long for the kernel, and with that for us.
const STACK: usize = 16 << 20;
/// Threads for work that blocks: so many, ...
const BLOCKING_THREADS: usize = 64;
/// ... and for each core those of the layers that are packed at a time: two for each layer, which wait for those that compress.
const PACKING_THREADS: usize = 4;

/// Runs the daemon called `program` with these arguments until it is told to stop.
pub fn main(program: &str, args: Vec<OsString>) -> ExitCode {
    match start(program, args) {
        Ok(code) => code,
        Err(message) => {
            eprintln!("{program}: {message}");
            ExitCode::FAILURE
        }
    }
}

fn start(program: &str, args: Vec<OsString>) -> Result<ExitCode, String> {
    let flags = match Flags::parse(args)? {
        Parsed::Run(flags) => *flags,
        Parsed::Version => {
            println!("{}", crate::version::line(program));
            return Ok(ExitCode::SUCCESS);
        }
        Parsed::Help => {
            println!("{}", flags::usage(program));
            return Ok(ExitCode::SUCCESS);
        }
    };
    rootless::settle()?;
    let config = config::load(flags)?;
    logging::start(&config.log)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    // New files get the modes that they are created with.
    rustix::process::umask(rustix::fs::Mode::empty());
    let given_files = crate::open_files::raise();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("kiln")
        .max_blocking_threads(BLOCKING_THREADS + PACKING_THREADS * std::thread::available_parallelism().map_or(1, usize::from))
        .thread_stack_size(STACK)
        .build()
        .map_err(|e| format!("failed to start the runtime: {e}"))?;
    let outcome = runtime.block_on(serve::run(config, given_files));
    // What is still running after the grace period is not waited for.
    runtime.shutdown_background();
    outcome.map(|()| ExitCode::SUCCESS)
}
