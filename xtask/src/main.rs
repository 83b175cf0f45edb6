//! `cargo xtask <check|test|codegen|tidy>`: what CI runs is what a person runs.
mod codegen;
mod debian;
mod test;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

pub type Outcome = Result<(), Box<dyn std::error::Error>>;

const USAGE: &str = "usage: cargo xtask <command>
  check            formatting, lints, generated code, the tidy test
  test [FILTER]    installs what is missing (Debian packages, when root) and runs all four rings of tests
  codegen [--check]  writes (or compares) the code generated from proto/
  tidy             only the invariants of ARCHITECTURE.md";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let flag = |name: &str| args.iter().any(|a| a == name);
    let outcome = match args.first().map(String::as_str) {
        Some("check") => check(),
        Some("test") => test::all_rings(&root(), &args[1..]),
        Some("codegen") => codegen::run(flag("--check")),
        Some("tidy") => tidy::run(&root()),
        _ => Err(USAGE.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xtask: {e}");
            ExitCode::FAILURE
        }
    }
}

fn check() -> Outcome {
    cargo(&["fmt", "--all", "--check"])?;
    tidy::run(&root())?;
    codegen::run(true)?;
    // Tests may unwrap: clippy.toml says so for their functions, and an attribute at its top for the rest of a file of tests.
    cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])
}

fn cargo(args: &[&str]) -> Outcome {
    run(Command::new("cargo").args(args).current_dir(root()))
}

/// Runs a command that must succeed.
pub fn run(command: &mut Command) -> Outcome {
    eprintln!("+ {command:?}");
    let status = command.status().map_err(|e| format!("{:?}: {e}", command.get_program()))?;
    if status.success() { Ok(()) } else { Err(format!("{:?} ended with {status}", command.get_program()).into()) }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_owned()
}
