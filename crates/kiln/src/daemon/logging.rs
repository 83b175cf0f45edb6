//! Structured logs on standard error.
use tracing_subscriber::EnvFilter;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    pub json: bool,
    pub level: String,
}

pub fn start(log: &Log) -> Result<(), String> {
    let level = match log.level.as_str() {
        "panic" | "fatal" | "error" => "error",
        "warn" | "warning" => "warn",
        "info" => "info",
        "debug" => "debug",
        "trace" => "trace",
        other => return Err(format!("unsupported log level {other:?}")),
    };
    // The libraries below talk much at debug level and say little about builds.
    let filter = EnvFilter::new(format!("{level},h2=info,hyper=info,hyper_util=info,tower=info,tonic=info,rustls=info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    let outcome = if log.json { builder.json().try_init() } else { builder.try_init() };
    outcome.map_err(|e| format!("failed to start the log: {e}"))
}
