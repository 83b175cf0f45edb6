//! `cargo xtask <check|test|codegen|bench>`: what CI runs is what a person runs.
mod codegen;

fn main() -> std::process::ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match args.first().map(String::as_str) {
        Some("codegen") => codegen::run(args.iter().any(|a| a == "--check")),
        _ => Err("usage: cargo xtask <codegen [--check]>".into()),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xtask: {e}");
            std::process::ExitCode::FAILURE
        }
    }
}

pub type Outcome = Result<(), Box<dyn std::error::Error>>;
