//! A small registry with faults to order.
#![allow(dead_code, clippy::unwrap_used)]
use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use oci::{Descriptor, Digest, Reference, media};
use progress::Reporter;
use registry::{Access, Client, Config, Credentials, Holder, Repository, Retry};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

pub type Reply = Response<UnsyncBoxBody<Bytes, std::io::Error>>;

#[derive(Debug, Clone)]
pub struct Seen {
    pub method: Method,
    pub path: String,
    pub query: String,
    pub headers: http::HeaderMap,
}

/// What to do instead of answering properly.
pub enum Act {
    Pass,
    Reply(Reply),
    /// Answer properly, but break the connection after so many bytes of the body.
    Cut(usize),
    /// Close the connection without an answer.
    Hang,
    /// Close it once so many bytes of the request's body have come.
    Break(usize),
    /// Answer properly, but only once told to.
    Wait(oneshot::Receiver<()>),
}

type Hook = Box<dyn FnMut(&Seen) -> Act + Send>;

#[derive(Clone, Default)]
pub enum Login {
    #[default]
    Open,
    Basic(&'static str, &'static str),
    /// Tokens from `/token`: anonymous may pull where `anonymous`, this login may do anything.
    Bearer {
        anonymous: bool,
        user: &'static str,
        secret: &'static str,
        get: bool,
    },
}

#[derive(Default)]
pub struct State {
    pub blobs: HashMap<(String, String), Bytes>,
    pub manifests: HashMap<(String, String), (String, Bytes)>,
    /// The repository and what came so far.
    pub uploads: HashMap<String, (String, Vec<u8>)>,
    pub seen: Vec<Seen>,
    pub login: Login,
    pub tokens: HashMap<String, String>,
    pub plain_heads: bool,
    pub running: usize,
    pub most: usize,
    /// No request is answered before so many were under way at a time, ...
    pub gather: usize,
    /// ... and for so long after that.
    pub delay: Duration,
    hooks: Vec<Hook>,
    next: usize,
}

#[derive(Clone)]
pub struct Fake {
    pub state: Arc<Mutex<State>>,
    pub address: SocketAddr,
}

impl Fake {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fake = Self { state: Arc::default(), address: listener.local_addr().unwrap() };
        let serve = fake.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve.clone().connection(stream));
            }
        });
        fake
    }

    /// The same registry behind TLS.
    pub async fn start_tls(config: rustls::ServerConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fake = Self { state: Arc::default(), address: listener.local_addr().unwrap() };
        let serve = fake.clone();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (serve, acceptor) = (serve.clone(), acceptor.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        serve.connection(stream).await;
                    }
                });
            }
        });
        fake
    }

    async fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(self, stream: S) {
        let flushes = watch::Sender::new(0);
        let stream = Flushing { stream, flushes: flushes.clone() };
        let service = hyper::service::service_fn(move |request| {
            let (this, flushes) = (self.clone(), flushes.clone());
            async move { this.answer(request, flushes).await }
        });
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }

    pub fn host(&self) -> String {
        self.address.to_string()
    }

    pub fn reference(&self, name: &str) -> Reference {
        format!("{}/{name}", self.host()).parse().unwrap()
    }

    /// The hook sees every request first.
    pub fn hook(&self, hook: impl FnMut(&Seen) -> Act + Send + 'static) {
        self.state.lock().unwrap().hooks.push(Box::new(hook));
    }

    pub fn login(&self, login: Login) {
        self.state.lock().unwrap().login = login;
    }

    pub fn add_blob(&self, repository: &str, data: impl Into<Bytes>) -> Descriptor {
        let data = data.into();
        let descriptor = Descriptor::of(media::OCI_LAYER_GZIP, &data);
        self.state.lock().unwrap().blobs.insert((repository.into(), descriptor.digest.to_string()), data);
        descriptor
    }

    pub fn add_manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: impl Into<Bytes>) -> Descriptor {
        let bytes = bytes.into();
        let descriptor = Descriptor::of(media_type, &bytes);
        let mut state = self.state.lock().unwrap();
        for name in [tag, descriptor.digest.as_str()] {
            state.manifests.insert((repository.into(), name.into()), (media_type.into(), bytes.clone()));
        }
        descriptor
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.state.lock().unwrap().seen.clone()
    }

    pub fn count(&self, method: &str, part: &str) -> usize {
        self.seen().iter().filter(|s| s.method == method && s.path.contains(part)).count()
    }

    async fn answer(self, request: Request<Incoming>, flushes: watch::Sender<u64>) -> Result<Reply, std::io::Error> {
        let seen = Seen {
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            query: request.uri().query().unwrap_or_default().to_owned(),
            headers: request.headers().clone(),
        };
        let (mut cut, mut broken, mut wait) = (None, None, None);
        let (gather, delay) = {
            let state = self.state.lock().unwrap();
            (state.gather, state.delay)
        };
        {
            let mut state = self.state.lock().unwrap();
            state.seen.push(seen.clone());
            state.running += 1;
            state.most = state.most.max(state.running);
            let mut hooks = std::mem::take(&mut state.hooks);
            let act = hooks.iter_mut().map(|hook| hook(&seen)).find(|act| !matches!(act, Act::Pass));
            state.hooks = hooks;
            match act {
                None | Some(Act::Pass) => {}
                Some(Act::Reply(reply)) => {
                    state.running -= 1;
                    return Ok(reply);
                }
                Some(Act::Cut(bytes)) => cut = Some(bytes),
                Some(Act::Break(bytes)) => broken = Some(bytes),
                Some(Act::Wait(told)) => wait = Some(told),
                Some(Act::Hang) => {
                    state.running -= 1;
                    return Err(std::io::Error::other("hung up"));
                }
            }
        }
        let mut body = request.into_body();
        if let Some(bytes) = broken {
            let mut read = 0;
            while read < bytes {
                read += body.frame().await.unwrap().unwrap().into_data().unwrap().len();
            }
            self.state.lock().unwrap().running -= 1;
            return Err(std::io::Error::other("hung up"));
        }
        let body = match body.collect().await {
            Ok(body) => body.to_bytes(),
            Err(_) => {
                self.state.lock().unwrap().running -= 1;
                return Err(std::io::Error::other("the client hung up"));
            }
        };
        if let Some(told) = wait {
            told.await.unwrap();
        }
        while self.state.lock().unwrap().most < gather {
            tokio::task::yield_now().await;
        }
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let reply = self.serve(&seen, body);
        self.state.lock().unwrap().running -= 1;
        Ok(match cut {
            None => reply,
            Some(bytes) => truncated(reply, bytes, flushes).await,
        })
    }

    fn serve(&self, seen: &Seen, body: Bytes) -> Reply {
        let mut state = self.state.lock().unwrap();
        if seen.path == "/token" {
            return state.token(seen, &body);
        }
        let Some(rest) = seen.path.strip_prefix("/v2/") else { return status(404, "") };
        let (repository, kind, name) = split(rest);
        if let Some(refusal) = state.authorize(&self.address, seen, &repository) {
            return refusal;
        }
        state.dispatch(seen, &repository, &kind, &name, body)
    }
}

impl State {
    fn dispatch(&mut self, seen: &Seen, repository: &str, kind: &str, name: &str, body: Bytes) -> Reply {
        let key = (repository.to_owned(), name.to_owned());
        match (seen.method.as_str(), kind) {
            ("GET" | "HEAD", "manifests") => match self.manifests.get(&key) {
                None => status(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#),
                Some((media_type, bytes)) => {
                    let mut reply = Response::builder().header("Content-Type", media_type);
                    if !self.plain_heads {
                        reply = reply.header("Docker-Content-Digest", Digest::of(bytes).to_string());
                    }
                    if seen.method == "HEAD" {
                        if !self.plain_heads {
                            reply = reply.header("Content-Length", bytes.len());
                        }
                        return reply.body(full(Bytes::new())).unwrap();
                    }
                    reply.body(full(bytes.clone())).unwrap()
                }
            },
            ("PUT", "manifests") => {
                let media_type = seen.headers["content-type"].to_str().unwrap().to_owned();
                let digest = Digest::of(&body).to_string();
                for name in [name, digest.as_str()] {
                    self.manifests.insert((repository.into(), name.into()), (media_type.clone(), body.clone()));
                }
                status(201, "")
            }
            ("HEAD", "blobs") => match self.blobs.get(&key) {
                Some(blob) => Response::builder().header("Content-Length", blob.len()).body(full(Bytes::new())).unwrap(),
                None => status(404, ""),
            },
            ("GET", "blobs") => match self.blobs.get(&key) {
                Some(blob) => ranged(blob, seen),
                None => status(404, r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown to registry"}]}"#),
            },
            ("POST", "uploads") => {
                if let (Some(mount), Some(from)) = (parameter(&seen.query, "mount"), parameter(&seen.query, "from")) {
                    let blob = self.blobs.get(&(from, mount.clone())).cloned();
                    if let Some(blob) = blob {
                        self.blobs.insert((repository.into(), mount), blob);
                        return status(201, "");
                    }
                }
                self.next += 1;
                let id = format!("u{}", self.next);
                self.uploads.insert(id.clone(), (repository.into(), Vec::new()));
                let location = format!("/v2/{repository}/blobs/uploads/{id}?_state=secret");
                Response::builder().status(202).header("Location", location).body(full(Bytes::new())).unwrap()
            }
            ("PATCH", "uploads") => {
                let Some((_, data)) = self.uploads.get_mut(name) else { return status(404, "") };
                data.extend_from_slice(&body);
                // The state has to be taken from here.
                let location = format!("/v2/{repository}/blobs/uploads/{name}?_state=patched");
                Response::builder().status(202).header("Location", location).body(full(Bytes::new())).unwrap()
            }
            ("DELETE", "uploads") => status(if self.uploads.remove(name).is_some() { 204 } else { 404 }, ""),
            ("PUT", "uploads") => {
                let digest = parameter(&seen.query, "digest").unwrap();
                let Some((_, mut data)) = self.uploads.remove(name) else {
                    return status(404, r#"{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}"#);
                };
                data.extend_from_slice(&body);
                let body = Bytes::from(data);
                if Digest::of(&body).to_string() != digest {
                    return status(
                        400,
                        r#"{"errors":[{"code":"DIGEST_INVALID","message":"provided digest did not match uploaded content"}]}"#,
                    );
                }
                self.blobs.insert((repository.into(), digest), body);
                status(201, "")
            }
            _ => status(405, ""),
        }
    }

    fn authorize(&self, address: &SocketAddr, seen: &Seen, repository: &str) -> Option<Reply> {
        let given = seen.headers.get("authorization").map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default();
        let challenge = |text: String| {
            let body = full(Bytes::from_static(br#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#));
            Some(Response::builder().status(401).header("WWW-Authenticate", text).body(body).unwrap())
        };
        match &self.login {
            Login::Open => None,
            Login::Basic(user, secret) => {
                let wanted = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{secret}")));
                if given == wanted { None } else { challenge("Basic realm=\"test\"".into()) }
            }
            Login::Bearer { .. } => {
                let action = if matches!(seen.method.as_str(), "GET" | "HEAD") { "pull" } else { "pull,push" };
                let scope = format!("repository:{repository}:{action}");
                let allowed = given.strip_prefix("Bearer ").and_then(|t| self.tokens.get(t));
                let error = match allowed {
                    Some(scopes) if scopes.split(' ').any(|s| covers(s, repository, action)) => return None,
                    Some(_) => ",error=\"insufficient_scope\"",
                    None if given.is_empty() => "",
                    None => ",error=\"invalid_token\"",
                };
                challenge(format!("Bearer realm=\"http://{address}/token\",service=\"test\",scope=\"{scope}\"{error}"))
            }
        }
    }

    fn token(&mut self, seen: &Seen, body: &Bytes) -> Reply {
        let Login::Bearer { anonymous, user, secret, get } = self.login.clone() else { return status(404, "") };
        let form = String::from_utf8_lossy(body).into_owned();
        let fields = if seen.method == "POST" { &form } else { &seen.query };
        let basic = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{secret}")));
        let logged_in = match seen.headers.get("authorization") {
            Some(_) if seen.method == "GET" && !get => return status(401, ""),
            Some(value) => *value == *basic,
            None => parameter(fields, "password").as_deref() == Some(secret),
        };
        if !logged_in && (!anonymous || seen.headers.contains_key("authorization")) {
            return status(401, r#"{"details":"incorrect username or password"}"#);
        }
        let scopes: Vec<String> = fields.split('&').filter_map(|p| p.strip_prefix("scope=")).map(decode).collect();
        let granted: Vec<String> = scopes
            .iter()
            .flat_map(|s| s.split(' '))
            .map(|s| if logged_in { s.to_owned() } else { s.replace("pull,push", "pull") })
            .collect();
        self.next += 1;
        let token = format!("token{}", self.next);
        self.tokens.insert(token.clone(), granted.join(" "));
        status(200, &format!(r#"{{"token":"{token}","expires_in":300}}"#))
    }
}

fn covers(scope: &str, repository: &str, action: &str) -> bool {
    let Some(rest) = scope.strip_prefix("repository:") else { return false };
    rest.rsplit_once(':').is_some_and(|(name, actions)| name == repository && action.split(',').all(|a| actions.split(',').any(|b| a == b)))
}

/// repository, kind, last part
fn split(rest: &str) -> (String, String, String) {
    for kind in ["/blobs/uploads/", "/blobs/", "/manifests/"] {
        if let Some((repository, name)) = rest.rsplit_once(kind) {
            let kind = kind.trim_matches('/').rsplit('/').next().unwrap();
            return (repository.into(), kind.into(), name.into());
        }
    }
    (rest.into(), String::new(), String::new())
}

fn ranged(blob: &Bytes, seen: &Seen) -> Reply {
    let from = seen.headers.get("range").and_then(|v| v.to_str().unwrap().strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    match from {
        None => Response::new(full(blob.clone())),
        Some(from) => Response::builder()
            .status(206)
            .header("Content-Range", format!("bytes {from}-{}/{}", blob.len() - 1, blob.len()))
            .body(full(blob.slice(from..)))
            .unwrap(),
    }
}

/// A connection that tells each time all is out that was written.
struct Flushing<S> {
    stream: S,
    flushes: watch::Sender<u64>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Flushing<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Flushing<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        // Called only once nothing waits to be written.
        std::task::ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.flushes.send_modify(|count| *count += 1);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The same answer with its length announced, but only the start of it sent.
async fn truncated(reply: Reply, bytes: usize, flushes: watch::Sender<u64>) -> Reply {
    let (mut parts, body) = reply.into_parts();
    let data = body.collect().await.unwrap().to_bytes();
    parts.headers.insert("Content-Length", data.len().into());
    let chunks = vec![Ok(Frame::data(data.slice(..bytes))), Err(std::io::Error::other("cut"))];
    // The first part is out before the connection is torn down.
    let stream = futures_util::stream::unfold((chunks.into_iter(), flushes), |(mut chunks, flushes)| async {
        let chunk = chunks.next()?;
        if chunk.is_err() {
            flushes.subscribe().changed().await.unwrap();
        }
        Some((chunk, (chunks, flushes)))
    });
    Response::from_parts(parts, StreamBody::new(stream).boxed_unsync())
}

pub fn full(bytes: Bytes) -> UnsyncBoxBody<Bytes, std::io::Error> {
    Full::new(bytes).map_err(|never: Infallible| match never {}).boxed_unsync()
}

pub fn status(code: u16, body: &str) -> Reply {
    Response::builder().status(StatusCode::from_u16(code).unwrap()).body(full(Bytes::from(body.to_owned()))).unwrap()
}

pub fn parameter(query: &str, name: &str) -> Option<String> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=').map(decode))
}

fn decode(text: &str) -> String {
    let mut out = Vec::new();
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'+' => out.push(b' '),
            b'%' => {
                out.push(u8::from_str_radix(&text[at + 1..at + 3], 16).unwrap());
                at += 2;
            }
            other => out.push(other),
        }
        at += 1;
    }
    String::from_utf8(out).unwrap()
}

/// Quick retries.
pub fn config() -> Config {
    Config { retry: Retry { first: Duration::from_millis(1), attempts: 4 }, ..Config::default() }
}

pub fn client() -> Client {
    Client::new(config())
}

pub fn open(client: &Client, reference: &Reference) -> Repository {
    client.repository(reference, Access::anonymous())
}

pub fn access(holders: &[Arc<TestHolder>]) -> Access {
    Access { credentials: Arc::new(Holders(holders.to_vec())), reporter: Reporter::silent() }
}

struct Holders(Vec<Arc<TestHolder>>);

impl Credentials for Holders {
    fn holders(&self) -> Vec<Arc<dyn Holder>> {
        self.0.iter().map(|h| h.clone() as Arc<dyn Holder>).collect()
    }
}

/// A client with a login, which it tells, or with which it fetches tokens itself.
pub struct TestHolder {
    pub id: String,
    pub login: (&'static str, &'static str),
    pub key: Option<[u8; 32]>,
    pub tokens: BTreeMap<&'static str, &'static str>,
    pub fetched: AtomicUsize,
    pub asked: AtomicUsize,
}

impl TestHolder {
    pub fn with_login(id: &str, username: &'static str, secret: &'static str) -> Arc<Self> {
        Arc::new(Self { id: id.into(), login: (username, secret), key: None, tokens: BTreeMap::new(), fetched: 0.into(), asked: 0.into() })
    }

    pub fn with_key(id: &str, key: [u8; 32], token: &'static str) -> Arc<Self> {
        let tokens = BTreeMap::from([("", token)]);
        Arc::new(Self { id: id.into(), login: ("", ""), key: Some(key), tokens, fetched: 0.into(), asked: 0.into() })
    }
}

#[async_trait]
impl Holder for TestHolder {
    fn id(&self) -> &str {
        &self.id
    }

    async fn proven_key(&self, _: &str) -> fault::Result<Option<[u8; 32]>> {
        Ok(self.key)
    }

    async fn fetch_token(&self, request: session::TokenRequest) -> fault::Result<session::Token> {
        assert_eq!(request.client_id, "buildkit-client");
        self.fetched.fetch_add(1, Ordering::SeqCst);
        Ok(session::Token { token: self.tokens[""].into(), expires_in: 300, issued_at: 0 })
    }

    async fn login(&self, _: &str) -> fault::Result<session::Credentials> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Ok(session::Credentials { username: self.login.0.into(), secret: self.login.1.into() })
    }
}

pub async fn read(repository: &Repository, descriptor: &Descriptor, offset: u64) -> Result<Vec<u8>, registry::RegistryError> {
    let mut stream = repository.blob(descriptor, offset).await?;
    let mut all = Vec::new();
    while let Some(chunk) = stream.next().await? {
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

/// Not compressible, not constant.
pub fn noise(length: usize) -> Bytes {
    let mut x = 0x2545_f491u32;
    (0..length)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            x as u8
        })
        .collect::<Vec<u8>>()
        .into()
}

pub fn manifest(config: &Descriptor, layers: &[Descriptor]) -> Bytes {
    let manifest = oci::Manifest {
        schema_version: 2,
        media_type: media::OCI_MANIFEST.into(),
        artifact_type: String::new(),
        config: config.clone(),
        layers: layers.to_vec(),
        subject: None,
        annotations: BTreeMap::new(),
    };
    manifest.to_bytes().into()
}
