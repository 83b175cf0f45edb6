//! Credentials as AWS's own tools find them: variables, a token for a role, the shared file, the container's or the machine's metadata service.
use std::time::Duration;

use fault::{Context as _, Fault, Kind, Result};
use http::Method;
use oci::Timestamp;
use registry::Web;
use serde::Deserialize;
use tokio::sync::Mutex;

use super::environment::Environment;
use super::request::{Request, Requester, escape, success, tag};
use super::sigv4::Keys;

/// How long before their end temporary credentials are renewed, in seconds.
const MARGIN: i64 = 300;
const CONTAINER: &str = "http://169.254.170.2";
const MACHINE: &str = "http://169.254.169.254";
/// A machine without a metadata service does not answer.
const PATIENCE: Duration = Duration::from_secs(2);
const MAX_ANSWER: u64 = 1 << 20;

/// Finds credentials, and remembers them while they are good.
pub struct Credentials {
    environment: std::sync::Arc<Environment>,
    requester: Requester,
    region: String,
    fixed: Option<Keys>,
    found: Mutex<Option<(Keys, Option<i64>)>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    access_key_id: String,
    secret_access_key: String,
    token: String,
    expiration: Option<Timestamp>,
}

impl Credentials {
    /// `fixed` are those that the client gave.
    pub fn new(fixed: Option<Keys>, environment: std::sync::Arc<Environment>, web: Web, region: String) -> Self {
        Self { environment, requester: Requester { web, attempts: 2 }, region, fixed, found: Mutex::default() }
    }

    pub async fn get(&self) -> Result<Keys> {
        if let Some(fixed) = &self.fixed {
            return Ok(fixed.clone());
        }
        let mut found = self.found.lock().await;
        let now = Timestamp::from(std::time::SystemTime::now()).unix_seconds();
        if let Some((keys, end)) = &*found
            && end.is_none_or(|end| end - MARGIN > now)
        {
            return Ok(keys.clone());
        }
        let (keys, end) = self.find().await?;
        *found = Some((keys.clone(), end));
        Ok(keys)
    }

    async fn find(&self) -> Result<(Keys, Option<i64>)> {
        let environment = &self.environment;
        if let (Some(access), Some(secret)) = (environment.get("AWS_ACCESS_KEY_ID"), environment.get("AWS_SECRET_ACCESS_KEY")) {
            let token = environment.get("AWS_SESSION_TOKEN").map(str::to_owned);
            return Ok((Keys { access: access.to_owned(), secret: secret.to_owned(), token }, None));
        }
        if let (Some(file), Some(role)) = (environment.get("AWS_WEB_IDENTITY_TOKEN_FILE"), environment.get("AWS_ROLE_ARN")) {
            return self.by_web_identity(file, role).await.context("failed to assume the role with a web identity");
        }
        if let Some(keys) = self.shared_file().await? {
            return Ok((keys, None));
        }
        if let Some(found) = self.container().await? {
            return Ok(found);
        }
        if environment.get("AWS_EC2_METADATA_DISABLED").is_none_or(|v| !v.eq_ignore_ascii_case("true"))
            && let Ok(Ok(found)) = tokio::time::timeout(PATIENCE, self.machine()).await
        {
            return Ok(found);
        }
        let why = "no AWS credentials found: give access_key_id and secret_access_key, or set up the daemon's environment";
        Err(Fault::new(Kind::Unauthenticated, why))
    }

    async fn by_web_identity(&self, file: &str, role: &str) -> Result<(Keys, Option<i64>)> {
        let token = read(file).await?;
        let session = self.environment.get("AWS_ROLE_SESSION_NAME").unwrap_or("kiln");
        let base = match self.environment.get("AWS_ENDPOINT_URL_STS") {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => format!("https://sts.{}.amazonaws.com", self.region),
        };
        let body = format!(
            "Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleArn={}&RoleSessionName={}&WebIdentityToken={}",
            escape(role, false),
            escape(session, false),
            escape(token.trim(), false)
        );
        let make = || {
            Ok(Request::new(Method::POST, format!("{base}/"))
                .header("content-type", "application/x-www-form-urlencoded")
                .bytes(body.clone()))
        };
        let answer = success(self.requester.send(make).await?, "the token service refused").await?;
        let text = String::from_utf8_lossy(&answer.bytes(MAX_ANSWER).await?).into_owned();
        let part = |name| tag(&text, name).map(str::to_owned).ok_or_else(|| Fault::invalid(format!("the answer has no {name}")));
        let keys = Keys { access: part("AccessKeyId")?, secret: part("SecretAccessKey")?, token: Some(part("SessionToken")?) };
        Ok((keys, part("Expiration")?.parse::<Timestamp>().ok().map(Timestamp::unix_seconds)))
    }

    async fn shared_file(&self) -> Result<Option<Keys>> {
        let path = match (self.environment.get("AWS_SHARED_CREDENTIALS_FILE"), self.environment.get("HOME")) {
            (Some(path), _) => path.to_owned(),
            (None, Some(home)) => format!("{home}/.aws/credentials"),
            (None, None) => return Ok(None),
        };
        let Ok(text) = read(&path).await else { return Ok(None) };
        Ok(profile(&text, self.environment.get("AWS_PROFILE").unwrap_or("default")))
    }

    async fn container(&self) -> Result<Option<(Keys, Option<i64>)>> {
        let relative = self.environment.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI").map(|path| format!("{CONTAINER}{path}"));
        let full = self.environment.get("AWS_CONTAINER_CREDENTIALS_FULL_URI").map(str::to_owned);
        let Some(url) = relative.or(full) else { return Ok(None) };
        let token = match self.environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
            Some(file) => Some(read(file).await?.trim().to_owned()),
            None => self.environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN").map(str::to_owned),
        };
        let make = || {
            let request = Request::new(Method::GET, url.clone());
            Ok(match &token {
                Some(token) => request.header("authorization", token.clone()),
                None => request,
            })
        };
        self.answer(make).await.map(Some).context("failed to get the container's credentials")
    }

    async fn machine(&self) -> Result<(Keys, Option<i64>)> {
        let base = self.environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT").unwrap_or(MACHINE).trim_end_matches('/').to_owned();
        let ask =
            || Ok(Request::new(Method::PUT, format!("{base}/latest/api/token")).header("x-aws-ec2-metadata-token-ttl-seconds", "300"));
        let token = self.text(ask).await?;
        let url = format!("{base}/latest/meta-data/iam/security-credentials/");
        let get = |url: String| Ok(Request::new(Method::GET, url).header("x-aws-ec2-metadata-token", token.clone()));
        let role = self.text(|| get(url.clone())).await?;
        let role = role.lines().next().unwrap_or_default().trim().to_owned();
        self.answer(|| get(format!("{url}{role}"))).await
    }

    async fn text(&self, make: impl Fn() -> Result<Request> + Send + Sync) -> Result<String> {
        let answer = success(self.requester.send(make).await?, "the metadata service refused").await?;
        Ok(String::from_utf8_lossy(&answer.bytes(MAX_ANSWER).await?).into_owned())
    }

    async fn answer(&self, make: impl Fn() -> Result<Request> + Send + Sync) -> Result<(Keys, Option<i64>)> {
        let text = self.text(make).await?;
        let answer: Answer = serde_json::from_str(&text).map_err(|e| Fault::invalid(format!("bad credentials document: {e}")))?;
        let keys = Keys { access: answer.access_key_id, secret: answer.secret_access_key, token: Some(answer.token) };
        Ok((keys, answer.expiration.map(Timestamp::unix_seconds)))
    }
}

pub(super) async fn read(path: &str) -> Result<String> {
    let owned = path.to_owned();
    task::blocking(move || Ok(std::fs::read_to_string(&owned)?)).await.with_context(|| format!("failed to read {path}"))
}

/// The keys of one profile of a credentials file.
fn profile(text: &str, name: &str) -> Option<Keys> {
    let mut current = "";
    let (mut access, mut secret, mut token) = (None, None, None);
    for line in text.lines().map(str::trim).filter(|l| !l.starts_with(['#', ';'])) {
        if let Some(section) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            current = section.trim();
        } else if let Some((key, value)) = line.split_once('=').filter(|_| current == name) {
            let value = Some(value.trim().to_owned());
            match key.trim() {
                "aws_access_key_id" => access = value,
                "aws_secret_access_key" => secret = value,
                "aws_session_token" => token = value,
                _ => {}
            }
        }
    }
    Some(Keys { access: access?, secret: secret?, token })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_told_apart() {
        let text = "# mine\n[default]\naws_access_key_id = A\naws_secret_access_key=s=1\n\n[other]\naws_access_key_id=B\naws_secret_access_key=t\naws_session_token=u\n";
        assert_eq!(profile(text, "default"), Some(Keys { access: "A".into(), secret: "s=1".into(), token: None }));
        assert_eq!(profile(text, "other").unwrap().token.as_deref(), Some("u"));
        assert_eq!(profile(text, "none"), None);
    }
}
