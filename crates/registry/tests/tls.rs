//! HTTPS: private authorities, no checks, and hosts that do not speak it.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::sync::Arc;

use oci::{Descriptor, Reference, media};
use registry::{Access, Client, Host, Keypair, Repository};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use support::{Fake, config, manifest};

fn data(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn server(client_ca: bool) -> rustls::ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = CertificateDer::pem_file_iter(data("server.crt")).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(data("server.key")).unwrap();
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    if !client_ca {
        return builder.with_no_client_auth().with_single_cert(chain, key).unwrap();
    }
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(data("ca.crt")).unwrap()).unwrap();
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
    builder.with_client_cert_verifier(verifier).with_single_cert(chain, key).unwrap()
}

fn some_manifest(fake: &Fake) -> Descriptor {
    let config = fake.add_blob("a", &b"{}"[..]);
    fake.add_manifest("a", "latest", media::OCI_MANIFEST, manifest(&config, &[]))
}

fn repository(fake: &Fake, host: Option<Host>) -> (Repository, Reference) {
    let name = format!("localhost:{}", fake.address.port());
    let mut config = config();
    if let Some(host) = host {
        config.hosts.insert(name.clone(), host);
    }
    let reference: Reference = format!("{name}/a:latest").parse().unwrap();
    (Client::new(config).repository(&reference, Access::anonymous()), reference)
}

#[tokio::test]
async fn trusts_a_private_authority_only_when_told() {
    let fake = Fake::start_tls(server(false)).await;
    let wanted = some_manifest(&fake);
    let (repository_, reference) = repository(&fake, Some(Host { http: Some(false), ca: vec![data("ca.crt")], ..Host::default() }));
    assert_eq!(repository_.resolve(&reference).await.unwrap(), wanted);

    let (repository_, reference) = repository(&fake, Some(Host { http: Some(false), ..Host::default() }));
    let error = fault::chain(&repository_.resolve(&reference).await.unwrap_err());
    assert!(error.contains("invalid peer certificate"), "{error}");

    let (repository_, reference) = repository(&fake, Some(Host { http: Some(false), insecure: true, ..Host::default() }));
    assert_eq!(repository_.resolve(&reference).await.unwrap(), wanted);
}

#[tokio::test]
async fn presents_a_client_certificate() {
    let fake = Fake::start_tls(server(true)).await;
    let wanted = some_manifest(&fake);
    let keypairs = vec![Keypair { cert: data("client.crt"), key: data("client.key") }];
    let host = Host { http: Some(false), ca: vec![data("ca.crt")], ..Host::default() };
    let (with, reference) = repository(&fake, Some(Host { keypairs, ..host.clone() }));
    assert_eq!(with.resolve(&reference).await.unwrap(), wanted);
    let (without, reference) = repository(&fake, Some(host.clone()));
    without.resolve(&reference).await.unwrap_err();

    let dir = tempfile::tempdir().unwrap();
    for (from, to) in [("ca.crt", "ca.crt"), ("client.crt", "client.cert"), ("client.key", "client.key")] {
        std::fs::copy(data(from), dir.path().join(to)).unwrap();
    }
    let tls_dirs = vec![dir.path().to_owned(), dir.path().join("missing")];
    let (by_directory, reference) = repository(&fake, Some(Host { http: Some(false), tls_dirs, ..Host::default() }));
    assert_eq!(by_directory.resolve(&reference).await.unwrap(), wanted);
}

#[tokio::test]
async fn falls_back_to_http_only_where_allowed() {
    let fake = Fake::start().await;
    let wanted = some_manifest(&fake);
    let (strict, reference) = repository(&fake, Some(Host { http: Some(false), ..Host::default() }));
    let error = fault::chain(&strict.resolve(&reference).await.unwrap_err());
    assert!(error.ends_with("server gave HTTP response to HTTPS client"), "{error}");

    let (either, reference) = repository(&fake, Some(Host { http: Some(true), insecure: true, ..Host::default() }));
    assert_eq!(either.resolve(&reference).await.unwrap(), wanted);
    assert_eq!(either.resolve(&reference).await.unwrap(), wanted);

    let (override_, reference) = repository(&fake, Some(Host { http: Some(false), ..Host::default() }));
    assert_eq!(override_.insecure(true).resolve(&reference).await.unwrap(), wanted);
}

#[tokio::test]
async fn names_the_file_that_is_missing() {
    let fake = Fake::start().await;
    let (repository_, reference) = repository(&fake, Some(Host { ca: vec!["/nowhere/ca.crt".into()], ..Host::default() }));
    let error = repository_.resolve(&reference).await.unwrap_err().to_string();
    assert_eq!(error, "failed to read /nowhere/ca.crt");
}
