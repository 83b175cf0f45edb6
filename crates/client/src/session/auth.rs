//! `Auth`: credentials for registries, from a docker config and its helpers.
//!
//! Tokens are left to the daemon: it fetches them itself with these credentials where a client serves no tokens.
use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use fault::{Context as _, Fault, Kind, Result};
use proto::moby::filesync::v1 as pb;
use proto::moby::filesync::v1::auth_server::Auth;
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tonic::{Request, Response, Status};

/// Where credentials come from.
#[async_trait]
pub trait Lookup: Send + Sync {
    /// User name and secret; both empty for anonymous.
    async fn credentials(&self, host: &str) -> Result<session::Credentials>;
}

pub struct Service(pub Arc<dyn Lookup>);

#[tonic::async_trait]
impl Auth for Service {
    async fn credentials(&self, request: Request<pb::CredentialsRequest>) -> Result<Response<pb::CredentialsResponse>, Status> {
        let found = self.0.credentials(&request.into_inner().host).await.map_err(|fault| wire::status::of_build(&fault))?;
        Ok(Response::new(pb::CredentialsResponse { username: found.username, secret: found.secret }))
    }

    async fn fetch_token(&self, _: Request<pb::FetchTokenRequest>) -> Result<Response<pb::FetchTokenResponse>, Status> {
        Err(Status::unimplemented("this client fetches no tokens"))
    }

    async fn get_token_authority(
        &self,
        _: Request<pb::GetTokenAuthorityRequest>,
    ) -> Result<Response<pb::GetTokenAuthorityResponse>, Status> {
        Err(Status::unimplemented("this client fetches no tokens"))
    }

    async fn verify_token_authority(
        &self,
        _: Request<pb::VerifyTokenAuthorityRequest>,
    ) -> Result<Response<pb::VerifyTokenAuthorityResponse>, Status> {
        Err(Status::unimplemented("this client fetches no tokens"))
    }
}

/// The parts of docker's `config.json` that are about credentials.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct DockerConfig {
    auths: BTreeMap<String, Entry>,
    #[serde(rename = "credsStore")]
    store: String,
    #[serde(rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    #[serde(rename = "identitytoken")]
    identity_token: String,
}

/// What Docker Hub's credentials are stored under.
const HUB_KEY: &str = "https://index.docker.io/v1/";

impl DockerConfig {
    pub fn parse(json: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(json)
    }

    fn stored(&self, key: &str) -> Option<session::Credentials> {
        let bare = |text: &str| {
            let text = text.trim_start_matches("https://").trim_start_matches("http://");
            text.split('/').next().unwrap_or_default().to_owned()
        };
        let entry = self.auths.get(key).or_else(|| self.auths.iter().find(|(name, _)| bare(name) == bare(key)).map(|(_, entry)| entry))?;
        if !entry.identity_token.is_empty() {
            return Some(session::Credentials { username: String::new(), secret: entry.identity_token.clone() });
        }
        if !entry.username.is_empty() {
            return Some(session::Credentials { username: entry.username.clone(), secret: entry.password.clone() });
        }
        let decoded = base64::engine::general_purpose::STANDARD.decode(&entry.auth).ok()?;
        let decoded = String::from_utf8(decoded).ok()?;
        let (username, secret) = decoded.split_once(':')?;
        Some(session::Credentials { username: username.to_owned(), secret: secret.trim_end_matches('\0').to_owned() })
    }
}

#[async_trait]
impl Lookup for DockerConfig {
    async fn credentials(&self, host: &str) -> Result<session::Credentials> {
        let key = if matches!(host, "registry-1.docker.io" | "docker.io" | "index.docker.io") { HUB_KEY } else { host };
        let helper = self.helpers.get(key).or_else(|| self.helpers.get(host)).unwrap_or(&self.store);
        if !helper.is_empty()
            && let Some(found) = ask_helper(helper, key).await?
        {
            return Ok(found);
        }
        Ok(self.stored(key).unwrap_or_default())
    }
}

#[derive(Deserialize)]
struct HelperAnswer {
    #[serde(rename = "Username", default)]
    username: String,
    #[serde(rename = "Secret", default)]
    secret: String,
}

/// `None`: the helper knows no credentials for that key.
async fn ask_helper(helper: &str, key: &str) -> Result<Option<session::Credentials>> {
    let program = format!("docker-credential-{helper}");
    let mut command = tokio::process::Command::new(&program);
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().with_context(|| format!("failed to run {program}"))?;
    let mut input = child.stdin.take().expect("asked for a pipe");
    // A helper that does not read its input says so in its answer.
    let _ = input.write_all(key.as_bytes()).await;
    drop(input);
    let output = child.wait_with_output().await.with_context(|| format!("failed to run {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        if text.contains("credentials not found") {
            return Ok(None);
        }
        return Err(Fault::new(Kind::Unknown, format!("error getting credentials: {program}: {}", text.trim())));
    }
    let malformed = |e| Fault::new(Kind::Unknown, format!("error getting credentials: {program} answered {e}"));
    let answer: HelperAnswer = serde_json::from_str(&text).map_err(malformed)?;
    // The way in which helpers mark an identity token.
    let username = if answer.username == "<token>" { String::new() } else { answer.username };
    Ok(Some(session::Credentials { username, secret: answer.secret }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn entries_in_all_their_forms() {
        let config = DockerConfig::parse(
            r#"{"auths": {
                "https://index.docker.io/v1/": {"auth": "dTpwOnE="},
                "r.example": {"username": "a", "password": "b"},
                "https://old.example/v2/": {"identitytoken": "t"},
                "broken": {"auth": "!"}
            }, "HttpHeaders": {}}"#,
        )
        .unwrap();
        let expect = |username: &str, secret: &str| session::Credentials { username: username.into(), secret: secret.into() };
        for (host, found) in [
            ("registry-1.docker.io", expect("u", "p:q")),
            ("r.example", expect("a", "b")),
            ("old.example", expect("", "t")),
            ("broken", expect("", "")),
            ("unknown", expect("", "")),
        ] {
            assert_eq!(config.credentials(host).await.unwrap(), found, "{host}");
        }
    }
}
