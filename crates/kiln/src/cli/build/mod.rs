//! `build`: flags to a build, its progress on standard error, and what is left to do when it is done.
mod caches;
mod everyday;
mod failure;
mod finish;
mod outputs;
mod plan;
mod policy;
mod sources;
mod stdin;

use fault::{Context as _, Fault, Result};
use tokio::sync::mpsc;

pub use failure::print as print_failure;

use super::args::{Spec, Takes};
use super::connect::connect;
use super::{Call, display, history};

/// buildctl's flags.
pub const FLAGS: &[Spec] = &[
    (&["output", "o"], Takes::Value),
    (&["progress"], Takes::Value),
    (&["trace"], Takes::Value),
    (&["local"], Takes::Value),
    (&["oci-layout"], Takes::Value),
    (&["frontend"], Takes::Value),
    (&["opt"], Takes::Value),
    (&["no-cache"], Takes::Nothing),
    (&["export-cache"], Takes::Value),
    (&["import-cache"], Takes::Value),
    (&["secret"], Takes::Value),
    (&["allow"], Takes::Value),
    (&["ssh"], Takes::Value),
    (&["metadata-file"], Takes::Value),
    (&["source-policy-file"], Takes::Value),
    (&["proxy-network"], Takes::Nothing),
    (&["ref-file"], Takes::Value),
    (&["registry-auth-tlscontext"], Takes::Value),
    (&["debug-json-cache-metrics"], Takes::Value),
];

/// The everyday form's own.
pub const EVERYDAY_FLAGS: &[Spec] = &[
    (&["tag", "t"], Takes::Value),
    (&["file", "f"], Takes::Value),
    (&["target"], Takes::Value),
    (&["build-arg"], Takes::Value),
    (&["build-context"], Takes::Value),
    (&["label"], Takes::Value),
    (&["platform"], Takes::Value),
    (&["push"], Takes::Nothing),
    (&["pull"], Takes::Nothing),
    (&["quiet", "q"], Takes::Nothing),
    (&["cache-from"], Takes::Value),
    (&["cache-to"], Takes::Value),
    (&["add-host"], Takes::Value),
    (&["network"], Takes::Value),
    (&["iidfile"], Takes::Value),
    (&["why"], Takes::Nothing),
];

/// Known flags that do nothing here, and what to do instead.
const UNSUPPORTED: [(&str, &str); 2] = [
    ("registry-auth-tlscontext", "tokens are fetched by the daemon, whose configuration has the registry's certificates"),
    ("debug-json-cache-metrics", "use --progress rawjson or --trace"),
];

pub async fn run(call: &Call) -> Result<()> {
    let kind = display::choose(if call.args.is_set("quiet") { "quiet" } else { call.args.text("progress") }, &call.environment.wishes());
    let kind = kind.map_err(Fault::invalid)?;
    for (flag, instead) in UNSUPPORTED {
        if call.args.has(flag) {
            return Err(Fault::new(fault::Kind::Unimplemented, format!("--{flag} is not supported: {instead}")));
        }
    }
    let plan = plan::make(call, Box::new(std::io::stdin())).map_err(Fault::invalid)?;
    if let Some(file) = call.args.get("ref-file") {
        finish::write(file, plan.build.id.as_bytes())?;
    }
    let tee = match call.args.get("trace") {
        None => None,
        Some(path) => {
            let file = std::fs::File::create(path).with_context(|| format!("failed to create {path}"))?;
            Some(Box::new(file) as Box<dyn std::io::Write + Send>)
        }
    };
    let client = connect(call).await?;
    // buildctl asks too: a daemon that cannot answer this cannot build.
    client.workers(Vec::new()).await.context("listing workers for Build")?;
    let plan::Plan { build, session, after, written: _written } = plan;
    let id = build.id.clone();
    let (sender, parts) = mpsc::channel(64);
    let building = client::build::run(&client, session, build, sender);
    let building = async {
        tokio::select! {
            outcome = building => outcome,
            () = interrupted() => Err(Fault::new(fault::Kind::Canceled, "context canceled")),
        }
    };
    let (outcome, shown) = tokio::join!(building, display::show(kind, parts, tee));
    if call.args.is_set("why") {
        // Also of a build that failed: it is then that people ask.
        match history::explain(&client, &id).await {
            Ok(text) => eprint!("\n{text}"),
            Err(fault) => eprintln!("\nwhy steps ran is not known: {fault}"),
        }
    }
    let outcome = outcome?;
    shown.context("failed to show progress")?;
    finish::after(call, &after, &outcome)
}

/// Resolves when the user wants no more. A second interrupt ends the program at once, by the usual means.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    task::spawn("second interrupt", async move {
        interrupt.recv().await;
        std::process::exit(130);
    });
}

#[cfg(test)]
mod tests {
    use super::{EVERYDAY_FLAGS, FLAGS};
    use crate::cli::args::Args;

    #[test]
    fn commands_in_the_guides_are_commands() {
        let guides = [include_str!("../../../../../docs/operating.md"), include_str!("../../../../../README.md")];
        let commands: Vec<&str> =
            guides.iter().flat_map(|guide| guide.lines()).filter_map(|line| line.strip_prefix("kiln build ")).collect();
        assert!(commands.len() >= 6, "{commands:?}");
        let specs = [FLAGS, EVERYDAY_FLAGS].concat();
        for command in commands {
            let words: Vec<String> = command.split(" #").next().unwrap().split_whitespace().map(str::to_owned).collect();
            let args = Args::parse(&specs, &words).unwrap_or_else(|error| panic!("kiln build {command}: {error}"));
            assert_eq!(args.operands.len(), 1, "kiln build {command}");
        }
    }
}
