//! HTTP requests that are made again when that may help.
use std::time::Duration;

use bytes::Bytes;
use fault::{Fault, Kind, Result};
use futures_util::stream::try_unfold;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use layers::ByteStream;
use registry::{Payload, Web, WebAnswer};

/// The longest wait between two attempts.
const LONGEST: Duration = Duration::from_secs(20);
/// What is read of an answer that says what went wrong.
const MAX_ERROR: u64 = 64 << 10;

#[derive(Clone)]
pub struct Request {
    pub method: Method,
    pub url: String,
    pub headers: Vec<(String, String)>,
    pub payload: Payload,
}

impl Request {
    pub fn new(method: Method, url: String) -> Self {
        Self { method, url, headers: Vec::new(), payload: Payload::Bytes(Bytes::new()) }
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub fn payload(mut self, payload: Payload) -> Self {
        self.payload = payload;
        self
    }

    pub fn bytes(self, bytes: impl Into<Bytes>) -> Self {
        self.payload(Payload::Bytes(bytes.into()))
    }

    /// Asks for the bytes from `offset` on.
    pub fn starting_at(self, offset: u64) -> Self {
        if offset == 0 { self } else { self.header("range", format!("bytes={offset}-")) }
    }
}

/// Sends requests.
#[derive(Clone)]
pub struct Requester {
    pub web: Web,
    /// How often a request is made, at most.
    pub attempts: u32,
}

impl Requester {
    /// Any answer but those that ask for patience. `make` is asked anew for each attempt: signatures age.
    pub async fn send(&self, make: impl Fn() -> Result<Request> + Send + Sync) -> Result<WebAnswer> {
        let mut pause = Duration::from_millis(200);
        for attempt in 1.. {
            let request = make()?;
            let mut headers = HeaderMap::new();
            for (name, value) in &request.headers {
                let bad = || Fault::invalid(format!("contains value with non-printable ASCII characters: {name}"));
                let name = HeaderName::try_from(name.as_str()).map_err(|_| bad())?;
                headers.append(name, HeaderValue::from_str(value).map_err(|_| bad())?);
            }
            let outcome = self.web.send_with(request.method, &request.url, &headers, request.payload).await;
            let wait = match &outcome {
                Ok(answer) if is_passing(answer.status()) => retry_after(answer).unwrap_or(pause),
                Err(error) if fault::Classified::kind(error).retryable() => pause,
                _ => return Ok(outcome?),
            };
            if attempt >= self.attempts {
                return Ok(outcome?);
            }
            tokio::time::sleep(wait.min(LONGEST)).await;
            pause *= 2;
        }
        unreachable!("the last attempt returns")
    }
}

fn is_passing(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::REQUEST_TIMEOUT || status.is_server_error()
}

fn retry_after(answer: &WebAnswer) -> Option<Duration> {
    answer.header("retry-after")?.parse().ok().map(Duration::from_secs)
}

/// The answer, if it is a success.
pub async fn success(answer: WebAnswer, what: &str) -> Result<WebAnswer> {
    if answer.status().is_success() { Ok(answer) } else { Err(failure(answer, what).await) }
}

/// What an answer says went wrong.
pub async fn failure(answer: WebAnswer, what: &str) -> Fault {
    let status = answer.status();
    let code = answer.header("x-ms-error-code").map(str::to_owned);
    let body = answer.bytes(MAX_ERROR).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&body);
    let code = code.or_else(|| tag(&text, "Code").map(str::to_owned)).unwrap_or_default();
    let message = tag(&text, "Message").map_or_else(|| text.chars().take(256).collect(), str::to_owned);
    let message: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let words = [code.as_str(), message.trim()].into_iter().filter(|w| !w.is_empty()).collect::<Vec<_>>().join(": ");
    let kind = match status {
        StatusCode::NOT_FOUND => Kind::NotFound,
        StatusCode::UNAUTHORIZED => Kind::Unauthenticated,
        StatusCode::FORBIDDEN => Kind::Denied,
        StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED => Kind::AlreadyExists,
        status if is_passing(status) => Kind::Unavailable,
        _ => Kind::Unknown,
    };
    Fault::new(kind, format!("{what}: {status}{}{words}", if words.is_empty() { "" } else { ": " }))
}

/// The text of the first element of this name.
pub fn tag<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    Some(rest.split_once("</")?.0)
}

/// The rest of an answer's body. `offset` was asked for; where it was ignored, so many bytes are left out.
pub fn stream(answer: WebAnswer, offset: u64) -> ByteStream {
    let skip = if answer.status() == StatusCode::PARTIAL_CONTENT { 0 } else { offset };
    Box::pin(try_unfold((answer, skip), |(mut answer, mut skip)| async move {
        loop {
            let Some(mut chunk) = answer.next().await? else { return Ok(None) };
            let left_out = skip.min(chunk.len() as u64);
            skip -= left_out;
            let chunk = chunk.split_off(left_out as usize);
            if !chunk.is_empty() {
                return Ok(Some((chunk, (answer, skip))));
            }
        }
    }))
}

/// Percent-encoding of everything but unreserved characters and, in paths, slashes.
pub fn escape(text: &str, in_path: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            b'/' if in_path => out.push('/'),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_and_tags() {
        assert_eq!(escape("blobs/sha256:ab c~é", true), "blobs/sha256%3Aab%20c~%C3%A9");
        assert_eq!(escape("a/b", false), "a%2Fb");
        assert_eq!(tag("<Error><Code>NoSuchKey</Code><Message>gone</Message></Error>", "Code"), Some("NoSuchKey"));
        assert_eq!(tag("<Code>", "Message"), None);
    }
}
