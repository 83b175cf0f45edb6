//! A client's session as the holder of credentials.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use fault::{Fault, Kind, Result};
use oci::{Digest, media};
use progress::Reporter;
use registry::Access;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use session::{
    ContentStore, Credentials, Download, Duplex, ExporterRequest, FileStream, FilesRequest, Group, Session, Token, TokenRequest, Upload,
};
use support::{Fake, Login, client, manifest};

/// A client that has a key, or only a login.
struct Client {
    id: &'static str,
    key: Option<[u8; 32]>,
    /// Signs with this key instead of its own.
    forged: Option<[u8; 32]>,
    secret: &'static str,
    requests: Mutex<Vec<TokenRequest>>,
    logins: AtomicUsize,
}

impl Client {
    fn new(id: &'static str, key: Option<[u8; 32]>, secret: &'static str) -> Self {
        Self { id, key, forged: None, secret, requests: Mutex::default(), logins: 0.into() }
    }
}

fn unimplemented<T>() -> Result<T> {
    Err(Fault::new(Kind::Unimplemented, "not in this test"))
}

#[async_trait]
impl Session for Client {
    fn id(&self) -> &str {
        self.id
    }
    fn shared_key(&self) -> &str {
        ""
    }
    fn supports(&self, _: &str) -> bool {
        true
    }
    async fn closed(&self) {
        std::future::pending().await
    }
    async fn files(&self, _: FilesRequest) -> Result<Box<dyn FileStream>> {
        unimplemented()
    }
    async fn upload(&self, _: usize, _: &BTreeMap<String, String>) -> Result<Box<dyn Upload>> {
        unimplemented()
    }
    async fn upload_tree(&self, _: usize, _: &BTreeMap<String, String>, _: bool) -> Result<Box<dyn FileStream>> {
        unimplemented()
    }
    async fn secret(&self, _: &str) -> Result<Option<Bytes>> {
        unimplemented()
    }
    async fn ssh_available(&self, _: &str) -> Result<bool> {
        unimplemented()
    }
    async fn ssh(&self, _: &str) -> Result<Box<dyn Duplex>> {
        unimplemented()
    }
    async fn credentials(&self, _: &str) -> Result<Credentials> {
        self.logins.fetch_add(1, Ordering::SeqCst);
        Ok(Credentials { username: "me".into(), secret: self.secret.into() })
    }
    async fn fetch_token(&self, request: TokenRequest) -> Result<Token> {
        self.requests.lock().unwrap().push(request);
        Ok(Token { token: "theirs".into(), expires_in: 0, issued_at: 0 })
    }
    async fn token_authority(&self, _: &str, salt: &[u8]) -> Result<Option<Bytes>> {
        assert_eq!(salt.len(), 32);
        match self.key {
            Some(seed) => Ok(Some(Bytes::copy_from_slice(pair(seed).public_key().as_ref()))),
            None => unimplemented(),
        }
    }
    async fn verify_token_authority(&self, _: &str, payload: &[u8], _: &[u8]) -> Result<Bytes> {
        let signature = pair(self.forged.or(self.key).unwrap()).sign(payload);
        Ok([signature.as_ref(), payload].concat().into())
    }
    fn content(&self, _: &str) -> Arc<dyn ContentStore> {
        panic!("not in this test")
    }
    async fn pull_upload(&self, _: &str) -> Result<Box<dyn Download>> {
        unimplemented()
    }
    async fn find_exporters(&self, _: &BTreeMap<String, Bytes>, _: &[String]) -> Result<Vec<ExporterRequest>> {
        unimplemented()
    }
    async fn finalize_export(&self, _: &BTreeMap<String, String>) -> Result<()> {
        unimplemented()
    }
}

fn pair(seed: [u8; 32]) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&seed).unwrap()
}

async fn guarded() -> (Fake, Digest) {
    let fake = Fake::start().await;
    fake.login(Login::Bearer { anonymous: false, user: "me", secret: "s3cret", get: true });
    let config = fake.add_blob("a", &b"{}"[..]);
    let described = fake.add_manifest("a", "latest", media::OCI_MANIFEST, manifest(&config, &[]));
    fake.state.lock().unwrap().tokens.insert("theirs".into(), "repository:a:pull".into());
    (fake, described.digest)
}

fn access(clients: &[&Arc<Client>]) -> Access {
    let group = Group::new(clients.iter().map(|c| (*c).clone() as Arc<dyn Session>));
    Access { credentials: Arc::new(group), reporter: Reporter::silent() }
}

#[tokio::test]
async fn a_client_with_a_key_fetches_the_token() {
    let (fake, digest) = guarded().await;
    let reference = fake.reference("a:latest");
    let one = Arc::new(Client::new("one", Some([1; 32]), ""));
    let registry = client();
    let found = registry.repository(&reference, access(&[&one])).resolve(&reference).await.unwrap();
    assert_eq!(found.digest, digest);
    let requests = one.requests.lock().unwrap().clone();
    let [request] = requests.as_slice() else { panic!("{requests:?}") };
    assert_eq!(
        (request.client_id.as_str(), request.host.as_str(), request.service.as_str()),
        ("buildkit-client", fake.host().as_str(), "test")
    );
    assert_eq!(request.scopes, ["repository:a:pull"]);
    assert_eq!(one.logins.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_forged_key_gets_no_one_elses_token() {
    let (fake, _) = guarded().await;
    let reference = fake.reference("a:latest");
    let registry = client();
    let one = Arc::new(Client::new("one", Some([1; 32]), ""));
    registry.repository(&reference, access(&[&one])).resolve(&reference).await.unwrap();
    let thief = Arc::new(Client { forged: Some([2; 32]), ..Client::new("thief", Some([1; 32]), "") });
    let error = registry.repository(&reference, access(&[&thief])).resolve(&reference).await.unwrap_err();
    assert!(fault::chain(&error).contains("could not prove its token authority"), "{}", fault::chain(&error));
    assert!(thief.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_client_without_keys_tells_its_login() {
    let (fake, digest) = guarded().await;
    let reference = fake.reference("a:latest");
    let (wrong, right) = (Arc::new(Client::new("wrong", None, "nope")), Arc::new(Client::new("right", None, "s3cret")));
    let found = client().repository(&reference, access(&[&wrong, &right])).resolve(&reference).await.unwrap();
    assert_eq!(found.digest, digest);
    assert_eq!((wrong.logins.load(Ordering::SeqCst), right.logins.load(Ordering::SeqCst)), (1, 1));
}
