//! How requests to Azure storage are authorized: with the account's key, or with a token found as Azure's own tools find it.
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fault::{Context as _, Fault, Kind, Result};
use http::Method;
use oci::Timestamp;
use registry::Web;
use ring::hmac;
use serde::Deserialize;
use tokio::sync::Mutex;

use super::aws::read;
use super::environment::Environment;
use super::request::{Request, Requester, escape, success};

const RESOURCE: &str = "https://storage.azure.com";
const LOGIN: &str = "https://login.microsoftonline.com";
const MACHINE: &str = "http://169.254.169.254/metadata/identity/oauth2/token";
/// How long before its end a token is renewed, in seconds.
const MARGIN: i64 = 300;
const PATIENCE: Duration = Duration::from_secs(3);
const MAX_ANSWER: u64 = 1 << 20;

pub enum Authorization {
    SharedKey {
        account: String,
        key: hmac::Key,
    },
    Token(Box<Tokens>),
    /// The address says it all.
    Signed,
}

impl Authorization {
    /// `secret` is the account's key in base64; without one, a token is looked for when it is needed.
    pub fn new(account: &str, secret: Option<&str>, environment: Arc<Environment>, web: Web) -> Result<Self> {
        let Some(secret) = secret else { return Ok(Self::Token(Box::new(Tokens::new(environment, web)))) };
        let raw = STANDARD.decode(secret).map_err(|e| Fault::invalid(format!("failed to create shared key: {e}")))?;
        Ok(Self::SharedKey { account: account.to_owned(), key: hmac::Key::new(hmac::HMAC_SHA256, &raw) })
    }

    /// What to put into `authorization`, where that does not depend on the request.
    pub async fn bearer(&self) -> Result<Option<String>> {
        match self {
            Self::Token(tokens) => Ok(Some(format!("Bearer {}", tokens.get().await?))),
            Self::SharedKey { .. } | Self::Signed => Ok(None),
        }
    }

    /// The signature of a request by the account's key. `path` is escaped and begins with a slash; `query` is neither escaped nor sorted.
    pub fn sign(&self, method: &str, path: &str, query: &[(&str, String)], headers: &[(String, String)], size: u64) -> Option<String> {
        let Self::SharedKey { account, key } = self else { return None };
        let text = to_sign(account, method, path, query, headers, size);
        Some(format!("SharedKey {account}:{}", STANDARD.encode(hmac::sign(key, text.as_bytes()))))
    }
}

/// As the service's documentation of Shared Key has it.
fn to_sign(account: &str, method: &str, path: &str, query: &[(&str, String)], headers: &[(String, String)], size: u64) -> String {
    let header = |name: &str| headers.iter().find(|(k, _)| k.eq_ignore_ascii_case(name)).map_or("", |(_, v)| v.as_str());
    let length = if size == 0 { String::new() } else { size.to_string() };
    let standard = [
        header("content-encoding"),
        header("content-language"),
        &length,
        header("content-md5"),
        header("content-type"),
        "", // the date is in x-ms-date
        header("if-modified-since"),
        header("if-match"),
        header("if-none-match"),
        header("if-unmodified-since"),
        header("range"),
    ];
    let mut own: Vec<(String, &str)> =
        headers.iter().map(|(k, v)| (k.to_ascii_lowercase(), v.trim())).filter(|(k, _)| k.starts_with("x-ms-")).collect();
    own.sort();
    let own: String = own.iter().map(|(k, v)| format!("{k}:{v}\n")).collect();
    let mut query: Vec<(String, &str)> = query.iter().map(|(k, v)| (k.to_ascii_lowercase(), v.as_str())).collect();
    query.sort();
    let query: String = query.iter().map(|(k, v)| format!("\n{k}:{v}")).collect();
    format!("{method}\n{}\n{own}/{account}{path}{query}", standard.join("\n"))
}

/// Finds tokens: a client's secret, a workload's identity, a managed identity.
pub struct Tokens {
    environment: Arc<Environment>,
    requester: Requester,
    found: Mutex<Option<(String, i64)>>,
}

#[derive(Deserialize)]
struct Answer {
    access_token: String,
    /// Seconds; some services write them as text.
    #[serde(default)]
    expires_in: serde_json::Value,
}

impl Tokens {
    fn new(environment: Arc<Environment>, web: Web) -> Self {
        Self { environment, requester: Requester { web, attempts: 2 }, found: Mutex::default() }
    }

    async fn get(&self) -> Result<String> {
        let mut found = self.found.lock().await;
        let now = Timestamp::from(SystemTime::now()).unix_seconds();
        if let Some((token, end)) = &*found
            && end - MARGIN > now
        {
            return Ok(token.clone());
        }
        let answer = self.find().await.context("failed to create default azure credentials")?;
        let lasts = match &answer.expires_in {
            serde_json::Value::Number(n) => n.as_i64(),
            serde_json::Value::String(s) => s.parse().ok(),
            _ => None,
        };
        *found = Some((answer.access_token.clone(), now + lasts.unwrap_or(600)));
        Ok(answer.access_token)
    }

    async fn find(&self) -> Result<Answer> {
        let get = |name| self.environment.get(name);
        if let (Some(tenant), Some(client)) = (get("AZURE_TENANT_ID"), get("AZURE_CLIENT_ID")) {
            if let Some(secret) = get("AZURE_CLIENT_SECRET") {
                return self.log_in(tenant, client, &format!("client_secret={}", escape(secret, false))).await;
            }
            if let Some(file) = get("AZURE_FEDERATED_TOKEN_FILE") {
                let kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
                let assertion = read(file).await?;
                let proof = format!("client_assertion_type={}&client_assertion={}", escape(kind, false), escape(assertion.trim(), false));
                return self.log_in(tenant, client, &proof).await;
            }
        }
        match tokio::time::timeout(PATIENCE, self.managed()).await {
            Ok(Ok(answer)) => Ok(answer),
            _ => {
                let why = "no Azure credentials found: give secret_access_key, or set up the daemon's environment";
                Err(Fault::new(Kind::Unauthenticated, why))
            }
        }
    }

    async fn log_in(&self, tenant: &str, client: &str, proof: &str) -> Result<Answer> {
        let host = self.environment.get("AZURE_AUTHORITY_HOST").unwrap_or(LOGIN).trim_end_matches('/');
        let url = format!("{host}/{tenant}/oauth2/v2.0/token");
        let scope = escape(&format!("{RESOURCE}/.default"), false);
        let body = format!("grant_type=client_credentials&client_id={}&scope={scope}&{proof}", escape(client, false));
        let make = || {
            let request = Request::new(Method::POST, url.clone());
            Ok(request.header("content-type", "application/x-www-form-urlencoded").bytes(body.clone()))
        };
        self.ask(make).await
    }

    async fn managed(&self) -> Result<Answer> {
        let client = self.environment.get("AZURE_CLIENT_ID").map_or(String::new(), |id| format!("&client_id={}", escape(id, false)));
        let resource = escape(RESOURCE, false);
        let place = (self.environment.get("IDENTITY_ENDPOINT"), self.environment.get("IDENTITY_HEADER"));
        let (url, header) = match place {
            (Some(endpoint), Some(secret)) => {
                (format!("{endpoint}?api-version=2019-08-01&resource={resource}{client}"), ("x-identity-header", secret.to_owned()))
            }
            _ => (format!("{MACHINE}?api-version=2018-02-01&resource={resource}{client}"), ("metadata", "true".to_owned())),
        };
        self.ask(|| Ok(Request::new(Method::GET, url.clone()).header(header.0, header.1.clone()))).await
    }

    async fn ask(&self, make: impl Fn() -> Result<Request> + Send + Sync) -> Result<Answer> {
        let answer = success(self.requester.send(make).await?, "the token service refused").await?;
        let bytes = answer.bytes(MAX_ANSWER).await?;
        serde_json::from_slice(&bytes).map_err(|e| Fault::invalid(format!("bad answer of the token service: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_to_sign_is_as_documented() {
        let headers =
            [("x-ms-version".to_owned(), "2015-02-21".to_owned()), ("x-ms-date".to_owned(), "Fri, 26 Jun 2015 23:39:12 GMT".to_owned())];
        let query = [("restype", "container".to_owned()), ("comp", "metadata".to_owned()), ("timeout", "20".to_owned())];
        let text = to_sign("myaccount", "GET", "/myaccount/mycontainer", &query, &headers, 0);
        let want = "GET\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:Fri, 26 Jun 2015 23:39:12 GMT\nx-ms-version:2015-02-21\n/myaccount/myaccount/mycontainer\ncomp:metadata\nrestype:container\ntimeout:20";
        assert_eq!(text, want);
    }
}
