//! Fetches a bearer token from a registry's token server.
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use http::header::AUTHORIZATION;
use http::{Method, StatusCode, Uri};
use serde::Deserialize;

use crate::error::{RegistryError, Result};
use crate::payload::Payload;
use crate::transport::{Call, Transport, sanitized};

pub(crate) const CLIENT_ID: &str = "buildkit-client";
/// A token that does not say how long it lives, lives this many seconds.
const DEFAULT_LIFE: i64 = 60;
const LIMIT: u64 = 1 << 20;

/// What a challenge asks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Realm {
    pub url: String,
    pub service: String,
}

#[derive(Debug, Clone)]
pub(crate) struct Bearer {
    pub token: String,
    /// `None`: until it is refused.
    pub life: Option<Duration>,
}

#[derive(Deserialize)]
struct Reply {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<f64>,
    #[serde(default)]
    issued_at: Option<String>,
}

/// Asks with a login, by GET as the Docker registry wants it, then by POST where that is refused.
pub(crate) async fn with_login(transport: &Transport, realm: &Realm, scopes: &[String], username: &str, secret: &str) -> Result<Bearer> {
    let login = (!username.is_empty()).then_some((username, secret));
    let refused = match get(transport, realm, scopes, Some((username, secret))).await {
        Err(error) => match error.status() {
            Some(StatusCode::NOT_FOUND | StatusCode::UNAUTHORIZED) => error,
            Some(StatusCode::METHOD_NOT_ALLOWED) if login.is_some() => error,
            _ => return Err(error),
        },
        done => return done,
    };
    tracing::debug!(realm = realm.url, %refused, "token server refused GET, trying POST");
    post(transport, realm, scopes, login, secret).await
}

pub(crate) async fn anonymous(transport: &Transport, realm: &Realm, scopes: &[String]) -> Result<Bearer> {
    get(transport, realm, scopes, None).await
}

async fn get(transport: &Transport, realm: &Realm, scopes: &[String], login: Option<(&str, &str)>) -> Result<Bearer> {
    let mut query: Vec<(&str, &str)> = Vec::new();
    if !realm.service.is_empty() {
        query.push(("service", &realm.service));
    }
    query.extend(scopes.iter().map(|s| ("scope", s.as_str())));
    let separator = if realm.url.contains('?') { '&' } else { '?' };
    let mut call = Call::new(Method::GET, parse(&format!("{}{separator}{}", realm.url, form(&query)))?);
    if let Some((username, secret)) = login {
        call = call.header(AUTHORIZATION, &basic(username, secret));
    }
    ask(transport, call).await
}

async fn post(transport: &Transport, realm: &Realm, scopes: &[String], login: Option<(&str, &str)>, refresh: &str) -> Result<Bearer> {
    let scope = scopes.join(" ");
    let mut fields = vec![("service", realm.service.as_str()), ("client_id", CLIENT_ID)];
    if !scope.is_empty() {
        fields.push(("scope", &scope));
    }
    match login {
        Some((username, secret)) => fields.extend([("grant_type", "password"), ("username", username), ("password", secret)]),
        None => fields.extend([("grant_type", "refresh_token"), ("refresh_token", refresh)]),
    }
    let payload = Payload::Bytes(form(&fields).into_bytes().into());
    let call = Call::new(Method::POST, parse(&realm.url)?).payload("application/x-www-form-urlencoded; charset=utf-8", payload);
    ask(transport, call).await
}

async fn ask(transport: &Transport, call: Call) -> Result<Bearer> {
    let answer = transport.send(call).await?;
    if !answer.status().is_success() {
        return Err(answer.unexpected().await);
    }
    let url = sanitized(&answer.uri);
    let wrong = |problem: String| RegistryError::Answer { url: url.clone(), problem };
    let body = answer.bytes(LIMIT, Duration::from_secs(30)).await?;
    let reply: Reply = serde_json::from_slice(&body).map_err(|e| wrong(format!("an unreadable token response: {e}")))?;
    let token = [reply.access_token, reply.token].into_iter().flatten().find(|t| !t.is_empty());
    let token = token.ok_or_else(|| wrong("no token in the response".into()))?;
    let issued = reply.issued_at.and_then(|t| t.parse::<oci::Timestamp>().ok()).map(|t| t.unix_seconds());
    Ok(Bearer { token, life: life(reply.expires_in.unwrap_or(0.0) as i64, issued) })
}

/// Nine tenths of the time that is left. Where by its own account a token is old already (clocks differ), it is used until refused.
pub(crate) fn life(expires_in: i64, issued_at: Option<i64>) -> Option<Duration> {
    let expires_in = if expires_in <= 0 { DEFAULT_LIFE } else { expires_in };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
    let left = issued_at.unwrap_or(now).saturating_add(expires_in / 10 * 9 + expires_in % 10 * 9 / 10).saturating_sub(now);
    u64::try_from(left).ok().filter(|left| *left > 0).map(|left| Duration::from_secs(left.min(86_400)))
}

pub(crate) fn basic(username: &str, secret: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{username}:{secret}")))
}

fn parse(url: &str) -> Result<Uri> {
    let uri: Option<Uri> = url.parse().ok();
    let usable = uri.filter(|u| matches!(u.scheme_str(), Some("http" | "https")) && u.host().is_some());
    usable.ok_or_else(|| RegistryError::Answer {
        url: url.split('?').next().unwrap_or_default().to_owned(),
        problem: "an unusable token realm".into(),
    })
}

/// `application/x-www-form-urlencoded`.
pub(crate) fn form(fields: &[(&str, &str)]) -> String {
    fields.iter().map(|(key, value)| format!("{}={}", escape(key), escape(value))).collect::<Vec<_>>().join("&")
}

pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte as char),
            b' ' => out.push('+'),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_nine_tenths() {
        assert_eq!(life(0, None), Some(Duration::from_secs(54)));
        assert_eq!(life(300, None), Some(Duration::from_secs(270)));
        assert_eq!(life(300, Some(1000)), None);
        assert_eq!(life(i64::MAX, None), Some(Duration::from_secs(86_400)));
    }

    #[test]
    fn escapes_forms() {
        assert_eq!(form(&[("scope", "repository:a/b:pull,push"), ("x", "a b&é")]), "scope=repository%3Aa%2Fb%3Apull%2Cpush&x=a+b%26%C3%A9");
    }
}
