//! The command line of a client: buildctl's commands under either name, and kiln's everyday ones.
mod args;
mod build;
mod connect;
pub mod daemonless;
mod debug;
mod dial;
mod display;
mod environment;
mod history;
mod one_shot;
mod output;
mod records;
mod text;
mod usage;

use std::ffi::OsString;
use std::process::ExitCode;

use fault::Fault;

use args::{Args, Spec, Takes};
use environment::Environment;

/// Whose command line it is. As kiln, a daemon is started where none is named; `build` takes docker's everyday flags too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Buildctl,
    Kiln,
}

/// What a command needs beside its own flags.
pub struct Call {
    pub mode: Mode,
    pub args: Args,
    pub environment: Environment,
}

/// Flags of every command.
const GLOBALS: &[Spec] = &[
    (&["debug"], Takes::Nothing),
    (&["addr"], Takes::Value),
    (&["log-format"], Takes::Value),
    (&["tlsservername"], Takes::Value),
    (&["tlscacert"], Takes::Value),
    (&["tlscert"], Takes::Value),
    (&["tlskey"], Takes::Value),
    (&["tlsdir"], Takes::Value),
    (&["timeout"], Takes::Value),
    (&["wait"], Takes::Nothing),
    (&["root"], Takes::Value),
    (&["help", "h"], Takes::Nothing),
    (&["version", "v"], Takes::Nothing),
];

const RECORD_FLAGS: &[Spec] = &[(&["filter", "f"], Takes::Value), (&["verbose"], Takes::Nothing), (&["format"], Takes::Value)];

const PRUNE_FLAGS: &[Spec] = &[
    (&["keep-duration"], Takes::Value),
    (&["keep-storage"], Takes::Value),
    (&["keep-storage-min"], Takes::Value),
    (&["free-storage"], Takes::Value),
    (&["all"], Takes::Nothing),
];

const DEBUG_FLAGS: &[Spec] = &[
    (&["progress"], Takes::Value),
    (&["trace"], Takes::Value),
    (&["completed"], Takes::Nothing),
    (&["ref"], Takes::Value),
    (&["pin"], Takes::Nothing),
    (&["unpin"], Takes::Nothing),
    (&["delete"], Takes::Nothing),
    (&["dot"], Takes::Nothing),
];

/// Runs the command that `args` (without the program's name) ask for.
pub fn main(args: Vec<OsString>, mode: Mode) -> ExitCode {
    let outcome = args::utf8(args).and_then(|args| prepare(args, mode)).map_err(Fault::invalid).and_then(|todo| match todo {
        Todo::Print(text) => {
            output::print_line(text);
            Ok(ExitCode::SUCCESS)
        }
        Todo::Run(command, call) => run(command, call),
    });
    outcome.unwrap_or_else(|fault| {
        build::print_failure(&fault);
        ExitCode::FAILURE
    })
}

enum Todo {
    Print(String),
    Run(Command, Box<Call>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Command {
    Build,
    DiskUsage,
    Prune,
    PruneHistories,
    DialStdio,
    Debug(debug::What),
    History(history::What),
}

fn prepare(args: Vec<String>, mode: Mode) -> Result<Todo, String> {
    let (mut head, rest) = Args::parse_head(GLOBALS, &args)?;
    let program = if mode == Mode::Buildctl { "buildctl" } else { "kiln" };
    if head.is_set("version") {
        return Ok(Todo::Print(crate::version::line(program)));
    }
    let Some((name, mut rest)) = rest.split_first() else {
        return Ok(Todo::Print(usage::overview(mode)));
    };
    let (command, own): (Command, Vec<Spec>) = match name.as_str() {
        "build" | "b" => (Command::Build, build::FLAGS.iter().chain(build::EVERYDAY_FLAGS).copied().collect()),
        "du" => (Command::DiskUsage, RECORD_FLAGS.to_vec()),
        "prune" => (Command::Prune, [RECORD_FLAGS, PRUNE_FLAGS].concat()),
        "prune-histories" => (Command::PruneHistories, RECORD_FLAGS.to_vec()),
        "dial-stdio" => (Command::DialStdio, Vec::new()),
        "debug" => {
            let (sub, below) = rest.split_first().ok_or_else(|| format!("debug what? One of {}", debug::NAMES.join(", ")))?;
            rest = below;
            (Command::Debug(debug::What::parse(sub)?), [RECORD_FLAGS, DEBUG_FLAGS].concat())
        }
        "history" if mode == Mode::Kiln => {
            let (sub, below) = rest.split_first().map_or(("ls", rest), |(sub, below)| match sub.starts_with('-') {
                true => ("ls", rest),
                false => (sub.as_str(), below),
            });
            rest = below;
            (Command::History(history::What::parse(sub)?), [RECORD_FLAGS, DEBUG_FLAGS, &[(&["all"], Takes::Nothing)]].concat())
        }
        "version" => return Ok(Todo::Print(crate::version::line(program))),
        "help" => return Ok(Todo::Print(usage::overview(mode))),
        other => return Err(format!("No help topic for '{other}'")),
    };
    // A letter that means something else behind a command than in front of it.
    let globals = GLOBALS.iter().map(|(names, takes)| if names.contains(&"v") { (&["version"][..], *takes) } else { (*names, *takes) });
    let verbose: Spec = (&["verbose", "v"], Takes::Nothing);
    let specs: Vec<Spec> = own.into_iter().map(|spec| if spec.0 == ["verbose"] { verbose } else { spec }).chain(globals).collect();
    let below = Args::parse(&specs, rest)?;
    if below.is_set("help") {
        return Ok(Todo::Print(usage::of(command, mode)));
    }
    head.merge(below);
    Ok(Todo::Run(command, Box::new(Call { mode, args: head, environment: Environment::read() })))
}

fn run(command: Command, call: Box<Call>) -> fault::Result<ExitCode> {
    start_log(&call.args)?;
    let runtime = runtime()?;
    let outcome = runtime.block_on(async {
        match command {
            Command::Build => build::run(&call).await,
            Command::DiskUsage => records::disk_usage(&call).await,
            Command::Prune => records::prune(&call).await,
            Command::PruneHistories => debug::prune_histories(&call).await,
            Command::DialStdio => dial::run(&call).await,
            Command::Debug(what) => debug::run(what, &call).await,
            Command::History(what) => history::run(what, &call).await,
        }
    });
    // A read of standard input that nobody waits for any more must not hold the process.
    runtime.shutdown_background();
    outcome.map(|()| ExitCode::SUCCESS)
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

/// Warnings go to standard error; with `--debug`, everything does.
fn start_log(args: &Args) -> fault::Result<()> {
    let level = if args.is_set("debug") { tracing::Level::DEBUG } else { tracing::Level::WARN };
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(level);
    match args.text("log-format") {
        "json" => log.json().init(),
        "" | "text" if args.is_set("debug") => log.init(),
        "" | "text" => log.without_time().with_target(false).init(),
        other => return Err(Fault::invalid(format!("unsupported log type {other:?}"))),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(mode: Mode, line: &str) -> Result<(Command, Args), String> {
        match prepare(line.split(' ').map(str::to_owned).collect(), mode)? {
            Todo::Run(command, call) => Ok((command, call.args)),
            Todo::Print(text) => Err(text),
        }
    }

    #[test]
    fn commands_and_where_their_flags_may_stand() {
        let (what, args) = command(Mode::Buildctl, "--addr unix:///a debug workers -v --timeout=9").unwrap();
        assert_eq!((what, args.text("addr"), args.text("timeout")), (Command::Debug(debug::What::Workers), "unix:///a", "9"));
        assert!(args.is_set("verbose"));
        let (what, args) = command(Mode::Buildctl, "b --frontend dockerfile.v0 --local context=. --opt=filename=x --opt target=y").unwrap();
        assert_eq!((what, args.all("opt").len(), args.text("local")), (Command::Build, 2, "context=."));
        let (_, args) = command(Mode::Kiln, "build -t a -t b --push ctx").unwrap();
        assert_eq!((args.all("tag").len(), args.operands.as_slice()), (2, ["ctx".to_owned()].as_slice()));
        assert_eq!(command(Mode::Buildctl, "nope").unwrap_err(), "No help topic for 'nope'");
        assert!(command(Mode::Buildctl, "--version").unwrap_err().starts_with("buildctl github.com/"));
        assert_eq!(command(Mode::Buildctl, "--version").unwrap_err().split(' ').count(), 4);
    }
}
