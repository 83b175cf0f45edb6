//! kiln: a BuildKit-compatible build daemon, client and one-shot builder.
//!
//! Owns the command line, the environment and config files; wires the rooms together, runs them and drains them. The name it is called by
//! picks what it is: `kilnd` and `buildkitd` are the daemon, `buildctl` is that client, `buildctl-daemonless.sh` is both for one command, anything else is kiln with its commands.
mod cli;
mod daemon;
mod open_files;
mod version;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    let name = args.first().map(Path::new).and_then(Path::file_name).and_then(|n| n.to_str()).unwrap_or("kiln").to_owned();
    // Before anything else, and before any thread: the sandbox's helper wants a small and quiet process.
    if name == sandbox::helper::NAME {
        sandbox::helper::main();
    }
    sandbox::load_no_name_services();
    args.drain(..1.min(args.len()));
    match name.as_str() {
        "kilnd" | "buildkitd" => daemon::main(&name, args),
        "buildctl-daemonless" | "buildctl-daemonless.sh" => cli::daemonless::main(args),
        "buildctl" => cli::main(args, cli::Mode::Buildctl),
        _ if args.first().is_some_and(|a| a == "daemon") => {
            args.remove(0);
            daemon::main("kiln daemon", args)
        }
        _ => cli::main(args, cli::Mode::Kiln),
    }
}
