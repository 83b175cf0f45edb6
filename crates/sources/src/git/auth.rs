//! What the clients contribute to reach a remote: secrets, an ssh agent, known hosts.
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use fault::{Context as _, Result};
use session::Forward;

use super::cli::{Git, GitSettings};
use super::error::GitError;
use super::request::Request;
use super::url;
use crate::store::Context;

/// The git program for a remote, with what it needs to be let in. All of that ends when this drops.
pub(super) struct Access<'a> {
    pub git: Git<'a>,
    _agent: Option<Forward>,
    _known_hosts: Option<KnownHosts>,
}

struct KnownHosts(std::path::PathBuf);

impl Drop for KnownHosts {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl<'a> Access<'a> {
    pub async fn open(settings: &'a GitSettings, request: &Request, context: &'a Context) -> Result<Self> {
        let agent = match request.ssh.as_str() {
            "" => None,
            id => {
                let forward = Forward::open(&settings.scratch, &context.sessions, id).await?;
                Some(forward.ok_or_else(|| GitError::NoAgent { id: id.to_owned() })?)
            }
        };
        let known_hosts = match request.known_hosts.as_str() {
            "" => None,
            hosts => Some(KnownHosts::write(settings, hosts)?),
        };
        // A bundle comes from elsewhere: the remote's secrets are not for it.
        let secrets = if request.bundle.is_empty() { authorization(request, context).await } else { None };
        let git = Git {
            settings,
            reporter: &context.reporter,
            cancel: &context.cancel,
            secrets: secrets.into_iter().collect(),
            agent: agent.as_ref().map(|forward| forward.path().to_owned()),
            known_hosts: known_hosts.as_ref().map(|file| file.0.clone()),
            git_dir: None,
            work_tree: None,
        };
        Ok(Self { git, _agent: agent, _known_hosts: known_hosts })
    }
}

impl KnownHosts {
    fn write(settings: &GitSettings, hosts: &str) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        std::fs::create_dir_all(&settings.scratch).context("failed to create the directory for known hosts")?;
        let file = Self(settings.scratch.join(format!("known-hosts-{}", COUNT.fetch_add(1, Ordering::Relaxed))));
        std::fs::write(&file.0, hosts).context("failed to write known hosts")?;
        Ok(file)
    }
}

/// The header that lets git in over HTTP, as git's configuration has it, if a client has a secret for the remote.
async fn authorization(request: &Request, context: &Context) -> Option<(String, String)> {
    let names = secret_names(request);
    if names.is_empty() {
        return None;
    }
    for session in context.sessions.all() {
        for (name, is_token) in &names {
            match session.secret(name).await {
                Ok(Some(secret)) => return Some(header(&request.remote, &secret, *is_token)),
                Ok(None) => {}
                // Who serves no secrets has none; if the remote wants one it will say so.
                Err(fault) => {
                    tracing::debug!(%fault, name, "no secret for a git remote");
                    break;
                }
            }
        }
    }
    None
}

/// Those for the host first; whether each is a token.
fn secret_names(request: &Request) -> Vec<(String, bool)> {
    let Some(host) = url::host(&request.remote) else { return Vec::new() };
    let kinds = [(&request.header_secret, false), (&request.token_secret, true)];
    let given = || kinds.iter().filter(|(name, _)| !name.is_empty());
    let for_host = given().map(|(name, token)| (format!("{name}.{host}"), *token));
    for_host.chain(given().map(|(name, token)| ((*name).clone(), *token))).collect()
}

fn header(remote: &str, secret: &[u8], is_token: bool) -> (String, String) {
    let value = if is_token {
        let pair = [b"x-access-token:", secret].concat();
        format!("basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
    } else {
        String::from_utf8_lossy(secret).into_owned()
    };
    (format!("http.{}.extraheader", scope(remote)), format!("Authorization: {value}"))
}

/// A secret is for its remote only; but on GitHub, where submodules commonly are on the same account, for the whole host.
fn scope(remote: &str) -> &str {
    let hosts = ["https://github.com/", "https://www.github.com/"];
    hosts.into_iter().find(|host| remote.starts_with(host)).unwrap_or(remote)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(remote: &str) -> Request {
        let (header_secret, token_secret) = ("H".to_owned(), "T".to_owned());
        Request { remote: remote.into(), header_secret, token_secret, ..Request::default() }
    }

    #[test]
    fn secrets_of_the_host_come_first() {
        let names: Vec<_> = secret_names(&request("https://u@h:1/x.git")).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["H.h:1", "T.h:1", "H", "T"]);
        assert!(secret_names(&request("git@h:x")).is_empty());
    }

    #[test]
    fn secrets_are_for_their_remote() {
        let (key, value) = header("https://h/x.git", b"tok", true);
        assert_eq!((key.as_str(), value.as_str()), ("http.https://h/x.git.extraheader", "Authorization: basic eC1hY2Nlc3MtdG9rZW46dG9r"));
        let (key, value) = header("https://github.com/a/b", b"Bearer x", false);
        assert_eq!((key.as_str(), value.as_str()), ("http.https://github.com/.extraheader", "Authorization: Bearer x"));
    }
}
