use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt as _;

use crate::client::Client;
use crate::config::Host;
use crate::error::{RegistryError, Result, TransportError};
use crate::payload::Payload;
use crate::transport::{Answer, Call, Transport, lost};

/// A plain HTTP client with the same roots of trust, proxies and timeouts as the registry client, for sources that are mere URLs.
#[derive(Clone)]
pub struct Web {
    transport: Transport,
    stall: std::time::Duration,
}

/// An answer whose body is still to be read.
pub struct WebAnswer {
    answer: Answer,
    stall: std::time::Duration,
}

impl Client {
    pub fn web(&self) -> Result<Web> {
        let endpoints = self.endpoints();
        Ok(Web { transport: endpoints.transport("", &Host::default(), false)?, stall: endpoints.config.timeouts.stall })
    }
}

impl Web {
    /// Sends a request without a body and follows redirects; an `Authorization` stays with the first host.
    pub async fn send(&self, method: Method, url: &str, headers: &HeaderMap) -> Result<WebAnswer> {
        let uri = url.split('#').next().unwrap_or_default().parse().map_err(|_| RegistryError::Host { host: url.to_owned() })?;
        let call = Call { headers: headers.clone(), ..Call::new(method, uri) };
        Ok(WebAnswer { answer: self.transport.send(call).await?, stall: self.stall })
    }

    /// [`Web::send`] with a body, whose type is among the headers if it has one.
    pub async fn send_with(&self, method: Method, url: &str, headers: &HeaderMap, payload: Payload) -> Result<WebAnswer> {
        let uri = url.split('#').next().unwrap_or_default().parse().map_err(|_| RegistryError::Host { host: url.to_owned() })?;
        let call = Call { headers: headers.clone(), payload, ..Call::new(method, uri) };
        Ok(WebAnswer { answer: self.transport.send(call).await?, stall: self.stall })
    }
}

impl WebAnswer {
    pub fn status(&self) -> StatusCode {
        self.answer.status()
    }

    /// A header's value, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.answer.header(name)
    }

    /// The whole body, of at most `limit` bytes.
    pub async fn bytes(self, limit: u64) -> Result<Bytes> {
        self.answer.bytes(limit, self.stall).await
    }

    /// The next bytes of the body; `None` at its end.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        let (method, url) = (self.answer.method.to_string(), self.answer.url());
        let fail = |source| RegistryError::Request { method: method.clone(), url: url.clone(), source };
        loop {
            let frame = tokio::time::timeout(self.stall, self.answer.response.frame()).await.map_err(|_| fail(TransportError::Timeout))?;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(fail(lost(&error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Ok(Some(data)),
                    _ => continue,
                },
            }
        }
    }
}
