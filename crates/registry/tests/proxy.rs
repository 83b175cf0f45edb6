//! Through an HTTP proxy: whole URLs for plain HTTP, tunnels for HTTPS.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use oci::{Reference, media};
use registry::{Access, Client, Host, Proxy};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use support::{Fake, config, manifest};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

fn some_manifest(fake: &Fake) -> oci::Descriptor {
    let config = fake.add_blob("a", &b"{}"[..]);
    fake.add_manifest("a", "latest", media::OCI_MANIFEST, manifest(&config, &[]))
}

#[tokio::test]
async fn plain_requests_name_the_whole_url() {
    let fake = Fake::start().await;
    let wanted = some_manifest(&fake);
    let mut config = config();
    config.proxy = Proxy { http: Some(format!("http://{}", fake.host())), ..Proxy::default() };
    config.hosts.insert("registry.invalid:5000".into(), Host { http: Some(true), ..Host::default() });
    let reference: Reference = "registry.invalid:5000/a:latest".parse().unwrap();
    let repository = Client::new(config).repository(&reference, Access::anonymous());
    assert_eq!(repository.resolve(&reference).await.unwrap(), wanted);
    assert_eq!(fake.seen()[0].headers["host"], "registry.invalid:5000");
}

/// A proxy that tunnels everything to one place, or refuses. Returns its address and what it was asked for.
async fn tunnel(target: SocketAddr, answer: &'static str) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let log = asked.clone();
    tokio::spawn(async move {
        loop {
            let (mut from, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(from.read_u8().await.unwrap());
            }
            log.lock().unwrap().push(String::from_utf8(head).unwrap());
            from.write_all(answer.as_bytes()).await.unwrap();
            if answer.contains("200") {
                let mut to = TcpStream::connect(target).await.unwrap();
                tokio::spawn(async move { tokio::io::copy_bidirectional(&mut from, &mut to).await });
            }
        }
    });
    (address, asked)
}

async fn behind_tls() -> Fake {
    let data = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    let chain = CertificateDer::pem_file_iter(data("server.crt")).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(data("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Fake::start_tls(builder.with_no_client_auth().with_single_cert(chain, key).unwrap()).await
}

#[tokio::test]
async fn tls_goes_through_a_tunnel() {
    let fake = behind_tls().await;
    let wanted = some_manifest(&fake);
    for (answer, works) in [("HTTP/1.1 200 OK\r\nVia: x\r\n\r\n", true), ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", false)] {
        let (proxy, asked) = tunnel(fake.address, answer).await;
        let mut config = config();
        config.proxy = Proxy { https: Some(format!("http://user:pass@{proxy}")), ..Proxy::default() };
        config.hosts.insert("registry.invalid".into(), Host { insecure: true, http: Some(false), ..Host::default() });
        let reference: Reference = "registry.invalid/a:latest".parse().unwrap();
        let outcome = Client::new(config).repository(&reference, Access::anonymous()).resolve(&reference).await;
        if works {
            assert_eq!(outcome.unwrap(), wanted);
        } else {
            let error = fault::chain(&outcome.unwrap_err());
            assert!(error.ends_with(&format!("proxy {proxy} refused the tunnel: HTTP/1.1 407 Proxy Authentication Required")), "{error}");
        }
        let head = asked.lock().unwrap()[0].clone();
        assert!(
            head.starts_with("CONNECT registry.invalid:443 HTTP/1.1\r\n") && head.contains("Proxy-Authorization: Basic dXNlcjpwYXNz\r\n"),
            "{head}"
        );
    }
}
