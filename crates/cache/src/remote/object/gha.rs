//! `gha`: a cache in the cache service of GitHub Actions, by its old protocol or by the one with signed addresses of blobs.
use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use fault::{Context as _, Fault, Kind, Result};
use futures_util::future::try_join_all;
use futures_util::stream::{StreamExt as _, TryStreamExt as _, iter};
use http::{Method, StatusCode};
use layers::ByteStream;
use oci::{Digest, Timestamp};
use registry::{Payload, WebAnswer};
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use super::super::attrs::Attrs;
use super::azblob::{AzureBlobs, refused};
use super::azure::Authorization;
use super::gha_token::Token;
use super::request::{Request, Requester, escape, stream, success};
use super::s3::go_duration;
use super::{MAX_CONFIG, Store, Stores};

/// Of the entries, not of the protocol.
const VERSION: &str = "1";
const BLOBS: &str = "buildkit-blob-1-";
const CHUNK: u64 = 32 << 20;
const PARALLEL: usize = 4;
const MAX_ANSWER: u64 = 32 << 10;
/// How long a name that somebody began to write may stay so before the next number is taken.
const BLOCKED: Duration = Duration::from_secs(15);
const RETRY: Duration = Duration::from_secs(2);
const RESULTS: &str = "results-receiver.actions.githubusercontent.com";
const GITHUB: &str = "https://api.github.com";

pub struct GhaStore {
    requester: Requester,
    token: Token,
    url: String,
    scope: String,
    /// Signed addresses rather than the old protocol.
    v2: bool,
    timeout: Duration,
    /// Token and repository for the list of keys.
    list: Option<(String, String)>,
    keys: OnceCell<Option<BTreeSet<String>>>,
}

pub fn open(attrs: &Attrs, stores: &Stores) -> Result<GhaStore> {
    let text = |key: &str| attrs.text(key).filter(|v| !v.is_empty());
    let token = attrs.text("token").ok_or_else(|| Fault::invalid("token not set for github actions cache"))?;
    let asked: Option<u32> = match attrs.text("version") {
        None => None,
        Some(version) => {
            let wrong = || Fault::invalid(format!("failed to parse api version {version:?}, expected positive integer"));
            Some(version.parse().map_err(|_| wrong())?)
        }
    };
    let (url, v2) = match (text("url_v2").filter(|_| asked != Some(1)), text("url")) {
        (Some(url), _) => (url, true),
        (None, Some(url)) => (url, asked.map_or(url.contains(RESULTS), |version| version > 1)),
        (None, None) => return Err(Fault::invalid("url not set for github actions cache")),
    };
    let timeout = match attrs.text("timeout") {
        None => Duration::from_secs(600),
        Some(text) => {
            go_duration(text).ok_or_else(|| Fault::invalid(format!("failed to parse timeout for github actions cache: {text:?}")))?
        }
    };
    let now = Timestamp::from(SystemTime::now()).unix_seconds();
    Ok(GhaStore {
        requester: Requester { web: stores.client.web()?, attempts: 6 },
        token: Token::parse(token, now)?,
        url: url.trim_end_matches('/').to_owned(),
        scope: attrs.text("scope").unwrap_or("buildkit").to_owned(),
        v2,
        timeout,
        list: text("ghtoken").zip(text("repository")).map(|(token, repository)| (token.to_owned(), repository.to_owned())),
        keys: OnceCell::new(),
    })
}

/// An entry that was found.
struct Found {
    key: String,
    url: String,
}

/// A place for an entry that is being written.
enum Place {
    Old { id: i64 },
    Signed { key: String, url: String },
}

#[derive(Serialize)]
struct Named<'a> {
    key: &'a str,
    version: &'a str,
}

impl GhaStore {
    fn blob(&self, digest: &Digest) -> String {
        format!("{BLOBS}{digest}")
    }

    /// The name of the config that a job with this scope of GitHub's sees.
    fn index(&self, scope: &str) -> String {
        format!("index-{}-{VERSION}-{}", self.scope, &Digest::of(scope).hex()[..8])
    }

    async fn find(&self, key: &str) -> Result<Option<Found>> {
        let bytes = if self.v2 {
            #[derive(Serialize)]
            struct Wanted<'a> {
                key: &'a str,
                restore_keys: [&'a str; 1],
                version: &'a str,
            }
            let wanted = json(&Wanted { key, restore_keys: [key], version: &entry_version() })?;
            self.bytes(success(self.ask("GetCacheEntryDownloadURL", wanted).await?, "failed to look for a cache entry").await?).await?
        } else {
            let path = format!("cache?keys={}&version={}", escape(key, false), entry_version());
            let answer = self.call(Method::GET, &path, Vec::new(), Bytes::new().into()).await?;
            self.bytes(success(answer, "failed to look for a cache entry").await?).await?
        };
        if bytes.is_empty() {
            return Ok(None);
        }
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct Answer {
            ok: bool,
            signed_download_url: String,
            matched_key: String,
            #[serde(rename = "cacheKey")]
            cache_key: String,
            #[serde(rename = "archiveLocation")]
            archive_location: String,
        }
        let answer: Answer = parse(&bytes)?;
        Ok(match self.v2 {
            true => answer.ok.then_some(Found { key: answer.matched_key, url: answer.signed_download_url }),
            false => (!answer.cache_key.is_empty()).then_some(Found { key: answer.cache_key, url: answer.archive_location }),
        })
    }

    async fn read(&self, found: &Found, offset: u64) -> Result<WebAnswer> {
        let make = || Ok(Request::new(Method::GET, found.url.clone()).starting_at(offset));
        let answer = self.requester.send(make).await?;
        if answer.status().is_success() { Ok(answer) } else { Err(refused(answer, "failed to read a cache entry").await) }
    }

    /// `AlreadyExists` if somebody wrote or writes it.
    async fn reserve(&self, key: &str) -> Result<Place> {
        let named = json(&Named { key, version: &entry_version() })?;
        let answer = match self.v2 {
            true => self.ask("CreateCacheEntry", named).await?,
            false => self.call(Method::POST, "caches", vec![("content-type", "application/json".into())], named.into()).await?,
        };
        if !answer.status().is_success() {
            let fault = refused(answer, "failed to reserve a cache entry").await;
            let text = fault.to_string().to_lowercase();
            let exists = ["already exists", "already_exists", "alreadyexists"].iter().any(|words| text.contains(words));
            return Err(if exists { Fault::new(Kind::AlreadyExists, format!("cache entry {key} already exists")) } else { fault });
        }
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct Answer {
            ok: bool,
            signed_upload_url: String,
            #[serde(alias = "cacheID")]
            #[serde(rename = "cacheId")]
            cache_id: i64,
        }
        let answer: Answer = parse(&self.bytes(answer).await?)?;
        match self.v2 {
            true if answer.ok => Ok(Place::Signed { key: key.to_owned(), url: answer.signed_upload_url }),
            false if answer.cache_id != 0 => Ok(Place::Old { id: answer.cache_id }),
            _ => Err(Fault::new(Kind::Unavailable, "failed to reserve cache")),
        }
    }

    async fn fill(&self, place: &Place, payload: Payload) -> Result<()> {
        let size = payload.size();
        match place {
            Place::Signed { url, .. } => {
                let blobs = AzureBlobs { requester: self.requester.clone(), authorization: Authorization::Signed, base: url.clone() };
                match payload {
                    Payload::File { file, .. } => blobs.put_file("", file, size, false).await,
                    payload => blobs.put_whole("", payload, false).await,
                }
            }
            Place::Old { id } => {
                let chunks = (0..size.div_ceil(CHUNK)).map(|n| (n * CHUNK, CHUNK.min(size - n * CHUNK)));
                let sends = chunks.map(|(offset, length)| {
                    let part = part(&payload, offset, length);
                    let range = format!("bytes {offset}-{}/*", offset + length - 1);
                    let headers = vec![("content-type", "application/octet-stream".to_owned()), ("content-range", range)];
                    async move {
                        let answer = self.call(Method::PATCH, &format!("caches/{id}"), headers, part).await?;
                        success(answer, "failed to write a cache entry").await.map(|_| ())
                    }
                });
                iter(sends.collect::<Vec<_>>()).buffer_unordered(PARALLEL).try_collect::<Vec<()>>().await.map(|_| ())
            }
        }
    }

    async fn commit(&self, place: &Place, size: u64) -> Result<()> {
        match place {
            Place::Old { id } => {
                let body = Bytes::from(format!(r#"{{"size":{size}}}"#));
                let headers = vec![("content-type", "application/json".to_owned())];
                let answer = self.call(Method::POST, &format!("caches/{id}"), headers, body.into()).await?;
                success(answer, &format!("error committing cache {id}")).await.map(|_| ())
            }
            Place::Signed { key, .. } => {
                #[derive(Serialize)]
                struct Done<'a> {
                    key: &'a str,
                    size_bytes: u64,
                    version: &'a str,
                }
                #[derive(Deserialize)]
                struct Answer {
                    #[serde(default)]
                    ok: bool,
                }
                let done = json(&Done { key, size_bytes: size, version: &entry_version() })?;
                let answer = self.ask("FinalizeCacheEntryUpload", done).await?;
                let answer: Answer = parse(&self.bytes(success(answer, "error committing cache").await?).await?)?;
                if answer.ok { Ok(()) } else { Err(Fault::new(Kind::Unavailable, "failed to commit cache")) }
            }
        }
    }

    async fn save(&self, key: &str, payload: Payload) -> Result<()> {
        let size = payload.size();
        let place = self.reserve(key).await?;
        self.fill(&place, payload).await?;
        self.commit(&place, size).await
    }

    /// Entries never change, so a name that does has numbers; the highest counts.
    async fn save_next(&self, key: &str, bytes: Bytes) -> Result<()> {
        let mut blocked = Duration::ZERO;
        loop {
            let newest = self.find(&format!("{key}#")).await?;
            let number = match &newest {
                None => 0,
                Some(found) => {
                    let number = found.key.strip_prefix(&format!("{key}#")).and_then(|n| n.parse::<u64>().ok());
                    number.ok_or_else(|| Fault::invalid(format!("failed to parse {key} index: {:?}", found.key)))?
                }
            };
            let mut next = number + 1;
            loop {
                match self.save(&format!("{key}#{next}"), Payload::Bytes(bytes.clone())).await {
                    Err(fault) if fault.kind() == Kind::AlreadyExists && blocked <= BLOCKED => break,
                    // Its writer has died, it seems.
                    Err(fault) if fault.kind() == Kind::AlreadyExists => next += 1,
                    outcome => return outcome,
                }
            }
            blocked += RETRY;
            tokio::time::sleep(RETRY).await;
        }
    }

    /// The keys of all blobs, where the client gave what it takes to list them.
    async fn listed(&self) -> &Option<BTreeSet<String>> {
        self.keys
            .get_or_init(|| async {
                let (token, repository) = self.list.as_ref()?;
                match self.list_keys(token, repository).await {
                    Ok(keys) => Some(keys),
                    Err(fault) => {
                        tracing::warn!(%fault, "the keys of the GitHub Actions cache cannot be listed");
                        None
                    }
                }
            })
            .await
    }

    async fn list_keys(&self, token: &str, repository: &str) -> Result<BTreeSet<String>> {
        #[derive(Deserialize)]
        struct Entry {
            key: String,
        }
        #[derive(Deserialize)]
        struct Page {
            total_count: usize,
            actions_caches: Vec<Entry>,
        }
        const PER_PAGE: usize = 100;
        let mut keys = BTreeSet::new();
        for scope in &self.token.scopes {
            for page in 1.. {
                let scope = escape(&scope.scope, false);
                let url = format!("{GITHUB}/repos/{repository}/actions/caches?key={BLOBS}&page={page}&per_page={PER_PAGE}&ref={scope}");
                let make = || {
                    let request = Request::new(Method::GET, url.clone()).header("accept", "application/vnd.github+json");
                    Ok(request.header("authorization", format!("Bearer {token}")).header("x-github-api-version", "2022-11-28"))
                };
                let answer = success(self.requester.send(make).await?, "failed to list cache keys").await?;
                let found: Page = parse(&answer.bytes(MAX_CONFIG).await?)?;
                let total = found.total_count;
                keys.extend(found.actions_caches.into_iter().map(|e| e.key));
                if total <= page * PER_PAGE {
                    break;
                }
            }
        }
        Ok(keys)
    }

    /// A call of the protocol with signed addresses.
    async fn ask(&self, method: &str, body: Bytes) -> Result<WebAnswer> {
        let url = format!("{}/twirp/github.actions.results.api.v1.CacheService/{method}", self.url);
        let make = || {
            let request = Request::new(Method::POST, url.clone()).header("content-type", "application/json");
            Ok(request.header("authorization", format!("Bearer {}", self.token.raw)).bytes(body.clone()))
        };
        self.in_time(make).await
    }

    /// A call of the old protocol.
    async fn call(&self, method: Method, path: &str, headers: Vec<(&str, String)>, payload: PayloadOf) -> Result<WebAnswer> {
        let url = format!("{}/_apis/artifactcache/{path}", self.url);
        let make = || {
            let mut request = Request::new(method.clone(), url.clone()).payload(payload.0.clone());
            request.headers.extend(headers.iter().map(|(k, v)| ((*k).to_owned(), v.clone())));
            let request = request.header("accept", "application/json;api-version=6.0-preview.1");
            Ok(request.header("authorization", format!("Bearer {}", self.token.raw)))
        };
        self.in_time(make).await
    }

    async fn in_time(&self, make: impl Fn() -> Result<Request> + Send + Sync) -> Result<WebAnswer> {
        let late = |_| Fault::new(Kind::Deadline, "the GitHub Actions cache did not answer in time");
        tokio::time::timeout(self.timeout, self.requester.send(make)).await.map_err(late)?
    }

    async fn bytes(&self, answer: WebAnswer) -> Result<Bytes> {
        match answer.status() {
            StatusCode::NO_CONTENT => Ok(Bytes::new()),
            _ => Ok(answer.bytes(MAX_ANSWER).await?),
        }
    }
}

/// A payload, or bytes as one.
struct PayloadOf(Payload);

impl From<Bytes> for PayloadOf {
    fn from(bytes: Bytes) -> Self {
        Self(Payload::Bytes(bytes))
    }
}

fn part(payload: &Payload, offset: u64, length: u64) -> PayloadOf {
    PayloadOf(match payload {
        Payload::Bytes(bytes) => Payload::Bytes(bytes.slice(offset as usize..(offset + length) as usize)),
        Payload::File { file, offset: start, .. } => Payload::File { file: file.clone(), offset: start + offset, size: length },
    })
}

/// What all entries of this kind have as their version.
fn entry_version() -> String {
    Digest::of("|go-actionscache-1.0").hex().to_owned()
}

fn json(value: &impl Serialize) -> Result<Bytes> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|e| Fault::internal(e.to_string()))
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Fault::invalid(format!("bad answer of the GitHub Actions cache: {e}")))
}

#[async_trait]
impl Store for GhaStore {
    async fn has(&self, blob: &Digest, keep: bool) -> Result<bool> {
        let key = self.blob(blob);
        if keep && let Some(keys) = self.listed().await {
            return Ok(keys.contains(&key));
        }
        Ok(self.find(&key).await?.is_some_and(|found| found.key == key))
    }

    async fn put(&self, blob: &Digest, file: Arc<File>, size: u64) -> Result<()> {
        match self.save(&self.blob(blob), Payload::File { file, offset: 0, size }).await {
            Err(fault) if fault.kind() == Kind::AlreadyExists => Ok(()),
            outcome => outcome,
        }
    }

    async fn get(&self, blob: &Digest, offset: u64) -> Result<ByteStream> {
        let found = self.find(&self.blob(blob)).await?;
        let found = found.ok_or_else(|| Fault::new(Kind::NotFound, format!("blob {blob} is not in the cache")))?;
        Ok(stream(self.read(&found, offset).await?, offset))
    }

    async fn put_config(&self, config: Bytes) -> Result<()> {
        self.save_next(&self.index(self.token.writable()), config).await.context("error writing the cache index")
    }

    async fn configs(&self) -> Result<Vec<Bytes>> {
        let read = self.token.scopes.iter().map(|scope| async move {
            match self.find(&self.index(&scope.scope)).await? {
                Some(found) => Ok::<_, Fault>(Some(self.read(&found, 0).await?.bytes(MAX_CONFIG).await?)),
                None => Ok(None),
            }
        });
        Ok(try_join_all(read).await?.into_iter().flatten().collect())
    }
}
