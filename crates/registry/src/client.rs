use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures_util::FutureExt as _;
use http::header::{ACCEPT, AUTHORIZATION, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use oci::{Digest, Reference};
use progress::Reporter;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::auth::{self, Ask, Auth, Credentials, Scopes};
use crate::config::Config;
use crate::endpoint::{Endpoint, Endpoints};
use crate::error::{RegistryError, Result};
use crate::traffic::Traffic;
use crate::transport::{Answer, Call, origin};

/// Talks to registries. Clones share connections, tokens and limits.
#[derive(Clone)]
pub struct Client(Arc<Shared>);

struct Shared {
    endpoints: Endpoints,
    auth: Auth,
    /// Of the registries that are in use.
    limits: Mutex<HashMap<String, Weak<Limit>>>,
    /// Uploads under way, by registry and digest.
    uploads: Mutex<HashMap<String, Weak<Upload>>>,
}

/// A blob that somebody uploads to a registry and others may be waiting for.
struct Upload {
    gate: Semaphore,
    /// The repository that last got it.
    landed: Mutex<Option<String>>,
}

/// The turn to upload a blob to a registry.
pub(crate) struct Turn {
    upload: Arc<Upload>,
}

impl Turn {
    /// The repository of this registry to which the blob was uploaded while this turn was waited for.
    pub fn landed(&self) -> Option<String> {
        self.upload.landed.lock().expect("no holder of this lock panics").clone()
    }

    pub fn has_landed(&self, repository: &str) {
        *self.upload.landed.lock().expect("no holder of this lock panics") = Some(repository.to_owned());
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.upload.gate.add_permits(1);
    }
}

/// How many transfers one registry may have.
struct Limit {
    blobs: Arc<Semaphore>,
    all: Arc<Semaphore>,
}

/// On whose behalf a repository is used, and who watches.
#[derive(Clone)]
pub struct Access {
    pub credentials: Arc<dyn Credentials>,
    pub reporter: Reporter,
}

impl Access {
    pub fn anonymous() -> Self {
        Self { credentials: Arc::new(auth::Anonymous), reporter: Reporter::silent() }
    }
}

/// One repository of a registry, used on someone's behalf.
#[derive(Clone)]
pub struct Repository {
    client: Client,
    name: Reference,
    access: Access,
    insecure: bool,
}

/// A place among the transfers to one registry.
pub(crate) struct Slot {
    _permits: (Option<OwnedSemaphorePermit>, OwnedSemaphorePermit),
    /// Who comes later counts with it.
    _limit: Arc<Limit>,
}

pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

impl Client {
    pub fn new(config: Config) -> Self {
        Self(Arc::new(Shared {
            endpoints: Endpoints::new(config),
            auth: Auth::default(),
            limits: Mutex::default(),
            uploads: Mutex::default(),
        }))
    }

    /// The repository that `reference` names; its tag and digest are not looked at.
    pub fn repository(&self, reference: &Reference, access: Access) -> Repository {
        Repository { client: self.clone(), name: reference.without_suffix(), access, insecure: false }
    }

    /// What went over all connections so far.
    pub fn traffic(&self) -> Traffic {
        self.0.endpoints.meter.read()
    }

    pub(crate) fn endpoints(&self) -> &Endpoints {
        &self.0.endpoints
    }

    /// The limit that all transfers of a registry share, from the first that waits to the last that ends.
    fn limit(&self, domain: &str) -> Arc<Limit> {
        let mut limits = self.0.limits.lock().expect("no holder of this lock panics");
        if let Some(known) = limits.get(domain).and_then(Weak::upgrade) {
            return known;
        }
        limits.retain(|_, limit| limit.strong_count() > 0);
        let count = self.0.endpoints.config.concurrency.max(1);
        let limit = Arc::new(Limit { blobs: Arc::new(Semaphore::new(count)), all: Arc::new(Semaphore::new(count + 1)) });
        limits.insert(domain.to_owned(), Arc::downgrade(&limit));
        limit
    }
}

impl Repository {
    /// Without certificate checks, and over plain HTTP where the host speaks no TLS.
    pub fn insecure(mut self, insecure: bool) -> Self {
        self.insecure = insecure;
        self
    }

    pub fn name(&self) -> &Reference {
        &self.name
    }

    pub(crate) fn endpoints(&self) -> &Endpoints {
        &self.client.0.endpoints
    }

    pub(crate) fn stall(&self) -> Duration {
        self.endpoints().config.timeouts.stall
    }

    pub(crate) fn pull_endpoints(&self) -> Result<Vec<Endpoint>> {
        self.endpoints().for_pull(self.name.domain(), self.insecure)
    }

    pub(crate) fn push_endpoint(&self) -> Result<Endpoint> {
        self.endpoints().origin(self.name.domain(), self.insecure)
    }

    pub(crate) fn url(&self, endpoint: &Endpoint, suffix: &str, query: &[String]) -> Result<http::Uri> {
        self.endpoints().url(endpoint, self.name.path(), suffix, query)
    }

    /// Waits until nobody else uploads this blob to this registry: it may be there then, or be had from another repository.
    pub(crate) async fn turn(&self, digest: &Digest) -> Turn {
        let upload = self.upload(digest);
        upload.gate.acquire().await.expect("these semaphores are never closed").forget();
        Turn { upload }
    }

    /// `None`: somebody else uploads it at this moment.
    pub(crate) fn try_turn(&self, digest: &Digest) -> Option<Turn> {
        let upload = self.upload(digest);
        upload.gate.try_acquire().ok()?.forget();
        Some(Turn { upload })
    }

    fn upload(&self, digest: &Digest) -> Arc<Upload> {
        let mut uploads = self.client.0.uploads.lock().expect("no holder of this lock panics");
        uploads.retain(|_, upload| upload.strong_count() > 0);
        let key = format!("{}@{digest}", self.name.domain());
        let known = uploads.get(&key).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let upload = Arc::new(Upload { gate: Semaphore::new(1), landed: Mutex::default() });
            uploads.insert(key, Arc::downgrade(&upload));
            upload
        })
    }

    /// Waits for a place among this registry's transfers. JSON documents have one more than blobs, so that a manifest need not wait for layers.
    pub(crate) async fn slot(&self, media_type: &str) -> Slot {
        let limit = self.client.limit(self.name.domain());
        let acquire =
            |semaphore: &Arc<Semaphore>| semaphore.clone().acquire_owned().map(|permit| permit.expect("these semaphores are never closed"));
        let blob = if media_type.ends_with("+json") { None } else { Some(acquire(&limit.blobs).await) };
        let any = acquire(&limit.all).await;
        Slot { _permits: (blob, any), _limit: limit }
    }

    /// Sends a call with authorization. Where one client's login does not do, the next client's is tried.
    pub(crate) async fn send(&self, endpoint: &Endpoint, scopes: &Scopes, push: bool, call: Call) -> Result<Answer> {
        let mut holders: Vec<_> = self.access.credentials.holders().into_iter().map(Some).collect();
        if holders.is_empty() {
            holders.push(None);
        }
        let last = holders.len() - 1;
        for (index, holder) in holders.into_iter().enumerate() {
            let transport = &endpoint.transport;
            let ask = Ask { host: &endpoint.host, repository: self.name.path(), push, scopes: scopes.clone(), holder, transport };
            let outcome = self.send_as(endpoint, &ask, call.clone()).await;
            let refused = match &outcome {
                Ok(answer) => matches!(answer.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN),
                Err(RegistryError::Authorize { .. } | RegistryError::Unauthorized { .. }) => true,
                Err(_) => false,
            };
            if !refused || index == last {
                return outcome;
            }
        }
        unreachable!("the last holder's outcome is returned")
    }

    async fn send_as(&self, endpoint: &Endpoint, ask: &Ask<'_>, call: Call) -> Result<Answer> {
        let auth = &self.client.0.auth;
        // Unknown challenge, stale token, more scopes: each costs one round.
        for round in 0.. {
            let grant = auth.authorization(ask).await.map_err(|e| RegistryError::Authorize { source: Box::new(e) })?;
            let mut call = call.clone();
            if let Some(value) = grant.as_ref().and_then(|g| HeaderValue::from_str(&g.header).ok()) {
                call.headers.insert(AUTHORIZATION, value);
            }
            let own = call.uri.clone();
            let answer = self.endpoints().send(endpoint, call).await?;
            if answer.status() != StatusCode::UNAUTHORIZED || round == 3 || origin(&answer.uri).1 != origin(&own).1 {
                return Ok(answer);
            }
            let headers = answer.response.headers().get_all(WWW_AUTHENTICATE);
            let challenges = auth::parse(headers.iter().filter_map(|v| v.to_str().ok()));
            if !auth.challenged(ask, &challenges, grant.as_ref())? {
                return Ok(answer);
            }
        }
        unreachable!("the third round returns")
    }

    /// Asks the mirrors in turn, each once, then the registry itself with retries. Of several errors the one that got furthest stands.
    pub(crate) async fn pull<'a, T>(&'a self, ask: impl Fn(Endpoint) -> BoxFuture<'a, Result<T>>) -> Result<T> {
        let mut endpoints = self.pull_endpoints()?;
        let origin = endpoints.pop().expect("the origin is always there");
        let mut worst: Option<RegistryError> = None;
        for mirror in endpoints {
            let host = mirror.host.clone();
            match ask(mirror).await {
                Ok(done) => return Ok(done),
                Err(error) => {
                    tracing::debug!(mirror = host, error = %fault::chain(&error), "mirror failed, trying the next host");
                    worst = Some(further(worst, error));
                }
            }
        }
        match self.retrying(|| ask(origin.clone())).await {
            Ok(done) => Ok(done),
            Err(error) => Err(further(worst, error)),
        }
    }

    /// Repeats what failed for a passing reason, with growing waits.
    pub(crate) async fn retrying<'a, T>(&self, attempt: impl Fn() -> BoxFuture<'a, Result<T>>) -> Result<T> {
        let mut backoff = self.backoff();
        loop {
            match attempt().await {
                Ok(done) => return Ok(done),
                Err(error) => match backoff.wait(&error) {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => return Err(error),
                },
            }
        }
    }

    pub(crate) fn backoff(&self) -> Backoff {
        let retry = self.endpoints().config.retry;
        Backoff {
            reporter: self.access.reporter.clone(),
            next: retry.first,
            first: retry.first,
            left: retry.attempts.saturating_sub(1),
            attempts: retry.attempts,
        }
    }

    pub(crate) fn scopes(&self, push: bool) -> Scopes {
        Scopes::repository(self.name.path(), push)
    }
}

/// Counts failures, says how long to wait, and tells the watcher of the vertex.
pub(crate) struct Backoff {
    reporter: Reporter,
    next: Duration,
    first: Duration,
    left: u32,
    attempts: u32,
}

impl Backoff {
    /// `None`: give up.
    pub fn wait(&mut self, error: &RegistryError) -> Option<Duration> {
        if !error.is_transient() {
            return None;
        }
        self.reporter.log(2, format!("error: {}\n", fault::chain(error)));
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let pause = error.retry_after().map_or(self.next, |asked| asked.max(self.next));
        self.next *= 2;
        self.reporter.log(2, format!("retrying in {pause:?}\n"));
        Some(pause)
    }

    /// There was progress since the last failure.
    pub fn reset(&mut self) {
        (self.next, self.left) = (self.first, self.attempts.saturating_sub(1));
    }
}

/// Transport < not found < status < anything said about the content.
fn further(old: Option<RegistryError>, new: RegistryError) -> RegistryError {
    let weight = |e: &RegistryError| match e {
        RegistryError::Request { .. } | RegistryError::Authorize { .. } => 1,
        RegistryError::NotFound { .. } => 2,
        RegistryError::Status { .. } | RegistryError::PullDenied { .. } => 3,
        _ => 4,
    };
    match old {
        Some(old) if weight(&old) > weight(&new) => old,
        _ => new,
    }
}

/// `Accept` for one type, or anything.
pub(crate) fn accepting(call: Call, media_type: &str) -> Call {
    call.header(ACCEPT, &if media_type.is_empty() { "*/*".to_owned() } else { format!("{media_type}, */*") })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    fn repository(client: &Client, name: &str) -> Repository {
        client.repository(&name.parse().unwrap(), Access::anonymous())
    }

    #[tokio::test]
    async fn a_registry_is_limited_while_it_is_used_and_forgotten_afterwards() {
        let client = Client::new(Config { concurrency: 1, ..Config::default() });
        let held = repository(&client, "one.example/a").slot(LAYER).await;
        let waiting = tokio::spawn({
            let other = repository(&client, "one.example/b");
            async move { other.slot(LAYER).await }
        });
        tokio::task::yield_now().await;
        for number in 0..100 {
            repository(&client, &format!("r{number}.example/a")).slot(LAYER).await;
        }
        let known = || client.0.limits.lock().unwrap().len();
        assert!(known() <= 2, "{}", known());
        assert!(!waiting.is_finished(), "the first still has the only place");
        drop(held);
        waiting.await.unwrap();
    }
}
