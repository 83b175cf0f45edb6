//! Makes connections: plain or TLS, direct or through a proxy.
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use base64::Engine as _;
use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::config::{Proxy, Timeouts};
use crate::error::TransportError;
use crate::traffic::Meter;

#[derive(Clone)]
pub(crate) struct Connector {
    pub tls: Arc<rustls::ClientConfig>,
    pub proxy: Arc<Proxy>,
    pub timeouts: Timeouts,
    pub meter: Arc<Meter>,
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = TransportError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, TransportError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { Ok(TokioIo::new(Stream { pipe: this.connect(&uri).await?, meter: this.meter.clone() })) })
    }
}

impl Connector {
    async fn connect(&self, uri: &Uri) -> Result<Pipe, TransportError> {
        let https = uri.scheme_str() == Some("https");
        let host = uri.host().unwrap_or_default();
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        let proxy = self.proxy.pick(https, host);
        let tcp = match proxy {
            None => self.dial(host, port).await?,
            Some(proxy) => self.dial_proxy(proxy, https.then(|| format!("{host}:{port}"))).await?,
        };
        if !https {
            return Ok(Pipe::Plain { tcp, proxied: proxy.is_some() });
        }
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let invalid = |e| TransportError::Tls { source: std::io::Error::new(std::io::ErrorKind::InvalidInput, e) };
        let name = ServerName::try_from(bare).map_err(invalid)?;
        let handshake = TlsConnector::from(self.tls.clone()).connect(name, tcp);
        match tokio::time::timeout(self.timeouts.tls, handshake).await {
            Err(_) => Err(TransportError::TlsTimeout),
            Ok(Err(error)) if is_plain_answer(&error) => Err(TransportError::PlainAnswer),
            Ok(Err(source)) => Err(TransportError::Tls { source }),
            Ok(Ok(stream)) => Ok(Pipe::Tls(Box::new(stream))),
        }
    }

    async fn dial(&self, host: &str, port: u16) -> Result<TcpStream, TransportError> {
        let address = format!("{host}:{port}");
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        match tokio::time::timeout(self.timeouts.dial, TcpStream::connect((bare, port))).await {
            Err(_) => Err(TransportError::DialTimeout { address }),
            Ok(Err(source)) => match source.to_string().strip_prefix("failed to lookup address information: ") {
                // What Go programs say; people and scripts look for it.
                Some("Name or service not known") => Err(TransportError::Lookup { host: bare.to_owned(), why: "no such host".into() }),
                Some(why) => Err(TransportError::Lookup { host: bare.to_owned(), why: why.to_owned() }),
                None => Err(TransportError::Dial { address, source }),
            },
            Ok(Ok(tcp)) => {
                // Only latency is at stake.
                let _ = tcp.set_nodelay(true);
                Ok(tcp)
            }
        }
    }

    /// Connects to the proxy and, where `tunnel` names a target, asks for a tunnel to it.
    async fn dial_proxy(&self, proxy: &str, tunnel: Option<String>) -> Result<TcpStream, TransportError> {
        let wrong = || TransportError::ProxyAddress { proxy: redacted(proxy) };
        let (login, host, port) = proxy_parts(proxy).ok_or_else(wrong)?;
        let mut tcp = self.dial(&host, port).await?;
        let Some(target) = tunnel else { return Ok(tcp) };
        let lost = |e: std::io::Error| TransportError::Lost { detail: e.to_string() };
        let auth = login
            .map(|l| format!("Proxy-Authorization: Basic {}\r\n", base64::engine::general_purpose::STANDARD.encode(l)))
            .unwrap_or_default();
        let handshake = async {
            tcp.write_all(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{auth}\r\n").as_bytes()).await.map_err(lost)?;
            let mut head = Vec::new();
            // A byte at a time, so that nothing of the tunnel is swallowed; it happens once a connection.
            while !head.ends_with(b"\r\n\r\n") && head.len() < 16 << 10 {
                head.push(tcp.read_u8().await.map_err(lost)?);
            }
            let line = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
            match line.split(' ').nth(1) {
                Some(code) if code.starts_with('2') => Ok(()),
                _ => Err(TransportError::Proxy { proxy: format!("{host}:{port}"), status: line }),
            }
        };
        tokio::time::timeout(self.timeouts.dial, handshake)
            .await
            .map_err(|_| TransportError::DialTimeout { address: target.clone() })??;
        Ok(tcp)
    }
}

/// (`user:password`, host, port) of `http://user:password@host:port`; the scheme may be missing.
fn proxy_parts(proxy: &str) -> Option<(Option<String>, String, u16)> {
    let rest = match proxy.split_once("://") {
        Some(("http", rest)) => rest,
        Some(_) => return None,
        None => proxy,
    };
    let rest = rest.split('/').next()?;
    let (login, address) = rest.rsplit_once('@').map_or((None, rest), |(login, address)| (Some(login.to_owned()), address));
    let authority: http::uri::Authority = address.parse().ok()?;
    Some((login, authority.host().to_owned(), authority.port_u16().unwrap_or(80)))
}

fn redacted(proxy: &str) -> String {
    proxy.rsplit_once('@').map_or(proxy, |(_, address)| address).to_owned()
}

/// The peer talks something that is not TLS, most likely plain HTTP.
fn is_plain_answer(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidMessage(_)))
}

/// A connection to a server, metered.
pub(crate) struct Stream {
    pipe: Pipe,
    meter: Arc<Meter>,
}

enum Pipe {
    Plain { tcp: TcpStream, proxied: bool },
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

trait Duplex: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Duplex for T {}

impl Pipe {
    fn pin(&mut self) -> Pin<&mut dyn Duplex> {
        match self {
            Self::Plain { tcp, .. } => Pin::new(tcp),
            Self::Tls(tls) => Pin::new(tls),
        }
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        // Through a proxy, a plain request names the whole URL.
        Connected::new().proxy(matches!(self.pipe, Pipe::Plain { proxied: true, .. }))
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let outcome = self.pipe.pin().poll_read(cx, buf);
        self.meter.received(buf.filled().len() - before);
        outcome
    }
}

impl Stream {
    fn count(&self, written: Poll<std::io::Result<usize>>) -> Poll<std::io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &written {
            self.meter.sent(*bytes);
        }
        written
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        let written = self.pipe.pin().poll_write(cx, buf);
        self.count(written)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[std::io::IoSlice<'_>]) -> Poll<std::io::Result<usize>> {
        let written = self.pipe.pin().poll_write_vectored(cx, bufs);
        self.count(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.pipe.pin().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.pipe.pin().poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_proxy_addresses() {
        assert_eq!(proxy_parts("http://u:p@h:3128/"), Some((Some("u:p".into()), "h".into(), 3128)));
        assert_eq!(proxy_parts("h:1"), Some((None, "h".into(), 1)));
        assert_eq!(proxy_parts("socks5://h:1"), None);
        assert_eq!(redacted("http://u:p@h:1"), "h:1");
    }
}
