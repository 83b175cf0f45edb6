//! From flags to a daemon that answers.
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use client::{Client, Endpoint, Tls};
use fault::{Context as _, Fault, Kind, Result};

use super::args::Args;
use super::{Call, Mode, one_shot};
use crate::open_files;

const DEFAULT_ADDRESS: &str = "unix:///run/buildkit/buildkitd.sock";

/// Connects to the daemon that flags or environment name. As kiln, where nothing is named, to one of our own, started if need be.
pub async fn connect(call: &Call) -> Result<Client> {
    let client = reach(call).await?;
    // A daemon that was started for it has seen the limit that we were given.
    open_files::raise();
    Ok(client)
}

async fn reach(call: &Call) -> Result<Client> {
    let limit = Duration::from_secs(call.args.number("timeout").map_err(Fault::invalid)?.unwrap_or(5));
    let limit = if limit.is_zero() { Duration::from_secs(u64::from(u32::MAX)) } else { limit };
    let Some(address) = address(call) else { return one_shot::connect(call).await };
    let endpoint = Endpoint::parse(&address, tls(&call.args).map_err(Fault::invalid)?)?;
    if !call.args.is_set("wait") {
        return Ok(Client::connect(&endpoint, limit).await?);
    }
    let begun = Instant::now();
    loop {
        let tried = async {
            let client = Client::connect(&endpoint, limit).await?;
            match client.info().await {
                Err(fault) if fault.kind() == Kind::Unavailable => Err(fault),
                // A daemon too old to tell about itself answers all the same.
                _ => Ok(client),
            }
        };
        match tried.await {
            Err(fault) if fault.kind() == Kind::Unavailable && begun.elapsed() < limit => {
                tokio::time::sleep(Duration::from_millis(200)).await
            }
            outcome => return outcome,
        }
    }
}

/// The address that was named; buildctl always has one.
pub fn address(call: &Call) -> Option<String> {
    let named = call.args.get("addr").or_else(|| call.environment.filled("BUILDKIT_HOST")).map(str::to_owned);
    match call.mode {
        Mode::Buildctl => Some(named.unwrap_or_else(|| DEFAULT_ADDRESS.to_owned())),
        Mode::Kiln => named,
    }
}

/// The flags as TLS material; `None` if none of them is given, which means plain text.
fn tls(args: &Args) -> Result<Option<Tls>, String> {
    let file = |name: &str| args.get(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    let (mut ca, mut certificate, mut key) = (file("tlscacert"), file("tlscert"), file("tlskey"));
    if let Some(dir) = file("tlsdir") {
        if ca.is_some() || certificate.is_some() || key.is_some() {
            return Err("cannot specify tlsdir and tlscacert/tlscert/tlskey at the same time".into());
        }
        ca = Some(one_of(&dir, ["ca.pem", "ca.crt"])?);
        certificate = Some(one_of(&dir, ["cert.pem", "tls.crt"])?);
        key = Some(one_of(&dir, ["key.pem", "tls.key"])?);
    }
    if ca.is_none() && certificate.is_none() && key.is_none() && !args.has("tlsservername") {
        return Ok(None);
    }
    let read = |path: PathBuf| std::fs::read(&path).map_err(|e| format!("failed to read {}: {e}", path.display()));
    let identity = match (certificate, key) {
        (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
        (None, None) => None,
        _ => return Err("tlscert and tlskey go together".into()),
    };
    Ok(Some(Tls { server_name: args.text("tlsservername").to_owned(), ca: ca.map(read).transpose()?, identity }))
}

fn one_of(dir: &Path, names: [&str; 2]) -> Result<PathBuf, String> {
    let found = names.iter().map(|name| dir.join(name)).find(|path| path.exists());
    found.ok_or_else(|| format!("directory did not contain one of the needed files: {} or {}", names[0], names[1]))
}

/// A file of the user, with its name in the failure.
pub fn read_file(path: &str) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("failed to read {path}"))
}
