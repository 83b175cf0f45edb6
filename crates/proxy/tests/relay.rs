//! Requests through the proxy, over loopback.
#![allow(clippy::unwrap_used, reason = "tests")]
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use async_trait::async_trait;
use fault::{Fault, Kind};
use oci::Digest;
use proxy::{Captured, Incomplete, Judge, Material, Outlet, Proxy, Request, Serving};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// The world: every name is this server.
struct World(SocketAddr);

#[async_trait]
impl Outlet for World {
    async fn connect(&self, host: &str, _port: u16) -> io::Result<TcpStream> {
        match host {
            "nowhere.test" => Err(io::Error::other("no such host")),
            _ => TcpStream::connect(self.0).await,
        }
    }
}

/// Answers each connection with the answer for the path that it asks for.
async fn world() -> World {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    task::spawn("world", async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            task::spawn("answer", async move {
                let asked = head(&mut connection).await;
                let path = asked.split(' ').nth(1).unwrap_or_default().to_owned();
                let answer = match path.as_str() {
                    "/body" => "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
                    "/chunks" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_owned(),
                    "/moved" => "HTTP/1.1 302 Found\r\nLocation: /body\r\nContent-Length: 0\r\n\r\n".to_owned(),
                    "/cut" => "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello".to_owned(),
                    "/echo" => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{asked}", asked.len()),
                    _ => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned(),
                };
                let _ = connection.write_all(answer.as_bytes()).await;
            });
        }
    });
    World(address)
}

async fn head(connection: &mut (impl AsyncRead + Unpin)) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        match connection.read_u8().await {
            // A handshake: this server knows no encryption, and hangs up.
            Ok(22) if text.is_empty() => break,
            Ok(byte) => text.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(text).unwrap()
}

/// Refuses what is denied, and has something else fetched for what is old.
struct Rules;

#[async_trait]
impl Judge for Rules {
    async fn judge(&self, url: &str) -> fault::Result<String> {
        match url {
            "http://a.test/denied" => Err(Fault::new(Kind::Denied, "no")),
            "http://a.test/old" => Ok("http://b.test/body".to_owned()),
            other => Ok(other.to_owned()),
        }
    }
}

async fn serve(proxy: &Proxy) -> (SocketAddr, Serving) {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (address, proxy.serve(listener, Arc::new(world().await), Arc::new(Rules)).unwrap())
}

/// The whole answer to one request, after which the client says that it is done.
async fn ask<S: AsyncRead + AsyncWrite + Unpin>(mut connection: S, request: &str) -> String {
    connection.write_all(request.as_bytes()).await.unwrap();
    connection.shutdown().await.unwrap();
    let mut answer = Vec::new();
    let _ = connection.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

fn request(method: &str, url: &str, status: u16) -> Request {
    Request { method: method.into(), url: url.into(), redirect: None, status }
}

#[tokio::test]
async fn what_a_step_fetched_is_known_afterwards() {
    let proxy = Proxy::new(RootCertStore::empty()).unwrap();
    let (address, serving) = serve(&proxy).await;
    let get = async |url: &str, method: &str, more: &str| {
        let connection = TcpStream::connect(address).await.unwrap();
        ask(connection, &format!("{method} {url} HTTP/1.1\r\nHost: x\r\n{more}\r\n")).await
    };
    assert!(get("http://a.test/body", "GET", "").await.ends_with("\r\n\r\nhello"));
    assert!(get("http://a.test/chunks", "GET", "").await.contains("hello"));
    assert!(get("http://me:secret@c.test:80/moved", "GET", "").await.starts_with("HTTP/1.1 302"));
    assert!(get("http://c.test/body", "GET", "").await.ends_with("hello"));
    assert!(get("http://a.test/denied", "GET", "").await.starts_with("HTTP/1.1 403 Forbidden\r\n"));
    assert!(get("http://a.test/old", "GET", "").await.ends_with("hello"));
    assert!(get("http://a.test/old", "POST", "Content-Length: 0\r\n").await.starts_with("HTTP/1.1 403"));
    assert!(get("http://a.test/none", "GET", "").await.starts_with("HTTP/1.1 404"));
    assert!(get("http://a.test/cut", "GET", "").await.ends_with("hello"));
    assert!(get("http://nowhere.test/", "GET", "").await.starts_with("HTTP/1.1 502 Bad Gateway\r\n"));
    assert!(get("http://a.test/body", "PUT", "Content-Length: 0\r\n").await.ends_with("hello"));
    let echo = get("http://a.test/echo", "GET", "Range: bytes=0-\r\nAccept-Encoding: gzip\r\nProxy-Connection: x\r\n").await.to_lowercase();
    assert!(echo.contains("host: a.test\r\n") && echo.contains("get /echo http/1.1\r\n"), "{echo}");
    assert!(!echo.contains("accept-encoding") && !echo.contains("proxy-connection"), "{echo}");

    let Captured { requests, mut materials, incomplete } = serving.finish().await;
    let hello = Digest::of("hello");
    materials.sort_by(|a, b| a.url.cmp(&b.url));
    let urls =
        ["http://a.test/body", "http://a.test/chunks", "http://b.test/body", "http://c.test/body", "http://xxxxx:xxxxx@c.test/moved"];
    // The last one is known by where its redirect led only if that names the same place.
    let known: Vec<Material> = urls[..4].iter().map(|url| Material { url: (*url).to_owned(), digest: hello.clone() }).collect();
    assert_eq!(materials, known);
    let gap = |method: &str, url: &str, reason| Incomplete { method: method.into(), url: url.into(), reason };
    assert_eq!(
        incomplete,
        [
            gap("GET", "http://a.test/none", "unsuccessful_response"),
            gap("GET", "http://a.test/cut", "body_read_failed"),
            gap("GET", "http://nowhere.test/", "upstream_error"),
            gap("PUT", "http://a.test/body", "method_not_materializable"),
            gap("GET", "http://a.test/echo", "partial_response"),
        ]
    );
    assert_eq!(requests[0], request("GET", "http://a.test/body", 200));
    assert_eq!(requests[2].url, urls[4]);
    assert!(requests.iter().all(|request| !request.url.contains("secret") && !request.url.contains("denied")));
}

#[tokio::test]
async fn encrypted_requests_are_seen_too() {
    let proxy = Proxy::new(RootCertStore::empty()).unwrap();
    let (address, serving) = serve(&proxy).await;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(proxy.certificate().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
    for (host, place) in [("a.test", "a.test:443"), ("127.0.0.1", "127.0.0.1:8443")] {
        let mut connection = TcpStream::connect(address).await.unwrap();
        connection.write_all(format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n").as_bytes()).await.unwrap();
        assert!(head(&mut connection).await.starts_with("HTTP/1.1 200"));
        let name = ServerName::try_from(host.to_owned()).unwrap();
        let stream = tokio_rustls::TlsConnector::from(config.clone()).connect(name, connection).await.unwrap();
        // The step trusts the proxy; the proxy does not trust a server that is none.
        let answer = ask(stream, "GET /body HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{answer}");
    }
    let captured = serving.finish().await;
    let urls: Vec<&str> = captured.requests.iter().map(|request| request.url.as_str()).collect();
    assert_eq!(urls, ["https://a.test/body", "https://127.0.0.1:8443/body"]);
}
