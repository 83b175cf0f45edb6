//! One HTTP/1.1 client with the settings of one host; follows redirects.
use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, LOCATION, USER_AGENT};
use http::{Method, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::RootCertStore;

use crate::config::{Config, Host, Timeouts};
use crate::connect::Connector;
use crate::error::{RegistryError, Result, TransportError};
use crate::payload::{Body, Once, Payload, Progress};
use crate::tls;
use crate::traffic::Meter;

const MAX_REDIRECTS: usize = 10;

#[derive(Clone)]
pub(crate) struct Transport {
    client: legacy::Client<Connector, Body>,
    timeouts: Timeouts,
    user_agent: HeaderValue,
}

#[derive(Clone)]
pub(crate) struct Call {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub payload: Payload,
    /// Sent instead of the payload, in chunks.
    pub stream: Option<Once>,
    pub progress: Option<Progress>,
}

impl Call {
    pub fn new(method: Method, uri: Uri) -> Self {
        Self { method, uri, headers: HeaderMap::new(), payload: Payload::empty(), stream: None, progress: None }
    }

    pub fn header(mut self, name: http::header::HeaderName, value: &str) -> Self {
        // Values are our own or validated words; one that no header can hold is left out.
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }

    pub fn payload(mut self, content_type: &str, payload: Payload) -> Self {
        self.payload = payload;
        self.header(CONTENT_TYPE, content_type)
    }

    /// Carries what can be sent once only and is of unknown length.
    pub fn stream(mut self, content_type: &str, body: Once) -> Self {
        self.stream = Some(body);
        self.header(CONTENT_TYPE, content_type)
    }
}

/// An answer and where it really came from.
pub(crate) struct Answer {
    pub response: Response<Incoming>,
    pub method: Method,
    pub uri: Uri,
}

impl Transport {
    pub fn new(config: &Config, host: &Host, roots: &RootCertStore, meter: Arc<Meter>) -> Result<Self> {
        let tls = Arc::new(tls::client_config(host, roots)?);
        let connector = Connector { tls, proxy: Arc::new(config.proxy.clone()), timeouts: config.timeouts, meter };
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(config.timeouts.idle)
            .pool_max_idle_per_host(8)
            .build(connector);
        let user_agent = HeaderValue::from_str(&config.user_agent).unwrap_or(HeaderValue::from_static("buildkit"));
        Ok(Self { client, timeouts: config.timeouts, user_agent })
    }

    /// Sends a request and follows redirects. Credentials do not follow to another host or scheme.
    pub async fn send(&self, mut call: Call) -> Result<Answer> {
        call.headers.entry(USER_AGENT).or_insert_with(|| self.user_agent.clone());
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send_once(&call).await.map_err(|source| RegistryError::Request {
                method: call.method.to_string(),
                url: sanitized(&call.uri),
                source,
            })?;
            match redirect(&call, &response)? {
                Some(next) => call = next,
                None => return Ok(Answer { response, method: call.method, uri: call.uri }),
            }
        }
        let source = TransportError::Redirects { count: MAX_REDIRECTS };
        Err(RegistryError::Request { method: call.method.to_string(), url: sanitized(&call.uri), source })
    }

    async fn send_once(&self, call: &Call) -> std::result::Result<Response<Incoming>, TransportError> {
        let body = call.stream.as_ref().map_or_else(|| call.payload.body(call.progress.clone()), Once::take);
        let mut request = http::Request::new(body);
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = call.uri.clone();
        *request.headers_mut() = call.headers.clone();
        if call.stream.is_none() && !matches!(call.method, Method::GET | Method::HEAD) {
            request.headers_mut().insert(CONTENT_LENGTH, call.payload.size().into());
        }
        let answer = self.client.request(request);
        if call.stream.is_some() {
            // Takes as long as what it is made of; who sends it knows when to give up.
            return answer.await.map_err(classify);
        }
        let limit = self.timeouts.for_upload(call.payload.size());
        match tokio::time::timeout(limit, answer).await {
            Err(_) => Err(TransportError::Timeout),
            Ok(Err(error)) => Err(classify(error)),
            Ok(Ok(response)) => Ok(response),
        }
    }
}

/// The next request if `response` redirects `call`.
fn redirect(call: &Call, response: &Response<Incoming>) -> Result<Option<Call>> {
    let keep = matches!(response.status(), StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT);
    let see_other = matches!(response.status(), StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND | StatusCode::SEE_OTHER);
    if !keep && !see_other {
        return Ok(None);
    }
    let Some(location) = response.headers().get(LOCATION) else { return Ok(None) };
    let wrong = || RegistryError::Answer { url: sanitized(&call.uri), problem: "a redirect to an unusable address".into() };
    let target = location.to_str().ok().and_then(|l| resolve_location(&call.uri, l)).ok_or_else(wrong)?;
    let mut next = call.clone();
    if see_other && !matches!(call.method, Method::GET | Method::HEAD) {
        next.method = Method::GET;
        (next.payload, next.stream) = (Payload::empty(), None);
        next.headers.remove(CONTENT_TYPE);
    }
    next.headers.remove(HOST);
    if origin(&target) != origin(&call.uri) {
        next.headers.remove(AUTHORIZATION);
    }
    next.uri = target;
    Ok(Some(next))
}

/// Scheme, host and port.
pub(crate) fn origin(uri: &Uri) -> (Option<&str>, Option<&str>, u16) {
    let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    (uri.scheme_str(), uri.host(), uri.port_u16().unwrap_or(default))
}

/// A `Location` header against the URL it answered; absolute, without scheme, or a path.
pub(crate) fn resolve_location(base: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next()?;
    let scheme = base.scheme_str()?;
    let full = if location.contains("://") && !location.starts_with(['/', '?']) {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{}{location}", base.authority()?)
    } else {
        let dir = base.path().rsplit_once('/').map_or("", |(dir, _)| dir);
        format!("{scheme}://{}{dir}/{location}", base.authority()?)
    };
    let uri: Uri = full.parse().ok()?;
    matches!(uri.scheme_str(), Some("http" | "https")).then_some(uri)
}

/// The URL with the values of its query removed, but for the harmless `ns`.
pub(crate) fn sanitized(uri: &Uri) -> String {
    let path =
        format!("{}://{}{}", uri.scheme_str().unwrap_or_default(), uri.host().map(|_| authority(uri)).unwrap_or_default(), uri.path());
    let Some(query) = uri.query() else { return path };
    let hide = |pair: &str| match pair.split_once('=') {
        Some((key, value)) if key != "ns" && !value.is_empty() => format!("{key}=REDACTED"),
        _ => pair.to_owned(),
    };
    format!("{path}?{}", query.split('&').map(hide).collect::<Vec<_>>().join("&"))
}

/// Host and port, without a login.
fn authority(uri: &Uri) -> String {
    let host = uri.host().unwrap_or_default();
    uri.port_u16().map_or(host.to_owned(), |port| format!("{host}:{port}"))
}

fn classify(error: legacy::Error) -> TransportError {
    if error.is_connect() {
        return match error.source().and_then(|s| s.downcast_ref::<TransportError>()) {
            Some(own) => own.copy(),
            None => TransportError::Lost { detail: fault::chain(&error) },
        };
    }
    let inner = error.source().and_then(|s| s.downcast_ref::<hyper::Error>());
    match inner {
        Some(e) if e.is_parse() || e.is_parse_status() || e.is_parse_too_large() => TransportError::Malformed { detail: e.to_string() },
        Some(e) => lost(e),
        None => TransportError::Lost { detail: fault::chain(&error) },
    }
}

pub(crate) fn lost(error: &hyper::Error) -> TransportError {
    TransportError::Lost { detail: fault::chain(error) }
}

impl TransportError {
    /// The HTTP client keeps our error inside its own; what is needed of it is rebuilt.
    fn copy(&self) -> Self {
        let io = |e: &std::io::Error| std::io::Error::new(e.kind(), e.to_string());
        match self {
            Self::Dial { address, source } => Self::Dial { address: address.clone(), source: io(source) },
            Self::Lookup { host, why } => Self::Lookup { host: host.clone(), why: why.clone() },
            Self::DialTimeout { address } => Self::DialTimeout { address: address.clone() },
            Self::TlsTimeout => Self::TlsTimeout,
            Self::PlainAnswer => Self::PlainAnswer,
            Self::Tls { source } => Self::Tls { source: io(source) },
            Self::Proxy { proxy, status } => Self::Proxy { proxy: proxy.clone(), status: status.clone() },
            Self::ProxyAddress { proxy } => Self::ProxyAddress { proxy: proxy.clone() },
            Self::Timeout => Self::Timeout,
            Self::Lost { detail } => Self::Lost { detail: detail.clone() },
            Self::Malformed { detail } => Self::Malformed { detail: detail.clone() },
            Self::Redirects { count } => Self::Redirects { count: *count },
        }
    }
}

impl Answer {
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name).and_then(|v| v.to_str().ok())
    }

    pub fn url(&self) -> String {
        sanitized(&self.uri)
    }

    /// Reads the whole body, of at most `limit` bytes.
    pub async fn bytes(mut self, limit: u64, stall: Duration) -> Result<Bytes> {
        let (url, method) = (self.url(), self.method.to_string());
        let fail = |source| RegistryError::Request { method: method.clone(), url: url.clone(), source };
        let mut all = Vec::new();
        loop {
            let frame = tokio::time::timeout(stall, self.response.frame()).await.map_err(|_| fail(TransportError::Timeout))?;
            let Some(frame) = frame else { return Ok(all.into()) };
            let frame = frame.map_err(|e| fail(lost(&e)))?;
            if let Some(data) = frame.data_ref() {
                if (all.len() + data.len()) as u64 > limit {
                    return Err(RegistryError::TooLarge { url, limit });
                }
                all.extend_from_slice(data);
            }
        }
    }

    /// The error for a status that is none of those expected, with what the registry says about it.
    pub async fn unexpected(self) -> RegistryError {
        let (method, url, status) = (self.method.to_string(), self.url(), self.status());
        let retry_after = self.header("retry-after").and_then(|v| v.parse().ok()).map(|s: u64| Duration::from_secs(s.min(30)));
        let body = self.bytes(64 << 10, Duration::from_secs(10)).await.unwrap_or_default();
        RegistryError::Status { method, url, status, detail: error_detail(&body), retry_after }
    }
}

/// The messages of a registry's JSON error body, or the start of any other short text.
fn error_detail(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        #[serde(default)]
        errors: Vec<Entry>,
        #[serde(default)]
        details: String,
        #[serde(default)]
        message: String,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let text = match serde_json::from_slice::<Errors>(body) {
        Ok(parsed) => {
            let entry = |e: Entry| match (e.code.to_lowercase().replace('_', " "), e.message) {
                (code, message) if message.is_empty() => code,
                (code, message) => format!("{code}: {message}"),
            };
            let mut all: Vec<String> = parsed.errors.into_iter().map(entry).collect();
            all.extend([parsed.details, parsed.message].into_iter().filter(|t| !t.is_empty()));
            all.join("; ")
        }
        Err(_) => {
            let text = String::from_utf8_lossy(&body[..body.len().min(256)]).trim().to_owned();
            if text.starts_with('<') { String::new() } else { text }
        }
    };
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if clean.is_empty() { clean } else { format!(": {clean}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolves_locations() {
        let base: Uri = "https://r.io:5000/v2/a/blobs/uploads/".parse().unwrap();
        for (location, want) in [
            ("/v2/x?a=b", "https://r.io:5000/v2/x?a=b"),
            ("http://cdn.io/x", "http://cdn.io/x"),
            ("//cdn.io/x", "https://cdn.io/x"),
            ("id?s=1", "https://r.io:5000/v2/a/blobs/uploads/id?s=1"),
            ("/x?to=http://y", "https://r.io:5000/x?to=http://y"),
        ] {
            assert_eq!(resolve_location(&base, location).unwrap().to_string(), want);
        }
        assert_eq!(resolve_location(&base, "ftp://x/"), None);
    }

    #[test]
    fn hides_query_values() {
        let uri: Uri = "https://user:pw@r.io/x?X-Sig=abc&ns=docker.io&e=".parse().unwrap();
        assert_eq!(sanitized(&uri), "https://r.io/x?X-Sig=REDACTED&ns=docker.io&e=");
    }

    #[test]
    fn reads_error_bodies() {
        let body = br#"{"errors":[{"code":"NAME_UNKNOWN","message":"repository\nname"},{"code":"DENIED"}]}"#;
        assert_eq!(error_detail(body), ": name unknown: repository name; denied");
        assert_eq!(error_detail(b"<html>"), "");
        assert_eq!(error_detail(b"busy\n"), ": busy");
    }
}
