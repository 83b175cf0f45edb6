//! `azblob`: a cache in a container of Azure Blob Storage.
use std::fs::File;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use bytes::Bytes;
use fault::{Context as _, Fault, Kind, Result};
use futures_util::future::try_join_all;
use futures_util::stream::{StreamExt as _, TryStreamExt as _, iter};
use http::{Method, StatusCode};
use layers::ByteStream;
use oci::{Digest, Timestamp};
use registry::{Payload, WebAnswer, date};
use tokio::sync::OnceCell;

use super::super::attrs::Attrs;
use super::azure::Authorization;
use super::request::{Request, Requester, escape, failure, stream, success};
use super::sigv4::canonical_query;
use super::{MAX_CONFIG, Store, Stores};

const VERSION: &str = "2021-12-02";
/// Bytes of one block; smaller blobs are sent whole.
const BLOCK: u64 = 32 << 20;
/// Blocks under way at a time.
const PARALLEL: usize = 4;
/// No blob has more blocks.
const MOST_BLOCKS: u64 = 50_000;

pub struct AzureStore {
    blobs: AzureBlobs,
    container: String,
    prefix: String,
    manifests_prefix: String,
    blobs_prefix: String,
    names: Vec<String>,
    /// The container was seen or made.
    ready: OnceCell<()>,
}

pub fn open(attrs: &Attrs, stores: &Stores) -> Result<AzureStore> {
    settings(attrs, stores).context("failed to create azblob config")
}

fn settings(attrs: &Attrs, stores: &Stores) -> Result<AzureStore> {
    let environment = &stores.environment;
    let or_variable =
        |key: &str, name: &str| attrs.text(key).or_else(|| environment.get(&format!("BUILDKIT_AZURE_STORAGE_{name}"))).map(str::to_owned);
    let missing = "either ${BUILDKIT_AZURE_STORAGE_ACCOUNT_URL} or account_url attribute is required for azblob cache";
    let url = or_variable("account_url", "ACCOUNT_URL").ok_or_else(|| Fault::invalid(missing))?;
    let rest = url.split_once("://").map(|(_, rest)| rest);
    let rest = rest.ok_or_else(|| Fault::invalid(format!("azure storage account url provided is not a valid url: {url:?}")))?;
    let first_label = rest.split(['.', ':', '/']).next().unwrap_or_default().to_owned();
    let account = or_variable("account_name", "ACCOUNT_NAME").unwrap_or(first_label);
    if account.is_empty() {
        let why = "unable to retrieve account name from account url or ${BUILDKIT_AZURE_STORAGE_ACCOUNT_NAME} or account_name attribute for azblob cache";
        return Err(Fault::invalid(why));
    }
    let web = stores.client.web()?;
    let secret = attrs.text("secret_access_key").filter(|s| !s.is_empty());
    let authorization = Authorization::new(&account, secret, environment.clone(), web.clone())?;
    Ok(AzureStore {
        blobs: AzureBlobs { requester: Requester { web, attempts: 4 }, authorization, base: url.trim_end_matches('/').to_owned() },
        container: or_variable("container", "CONTAINER").unwrap_or_else(|| "buildkit-cache".to_owned()),
        prefix: or_variable("prefix", "PREFIX").unwrap_or_default(),
        manifests_prefix: attrs.text("manifests_prefix").unwrap_or("manifests").to_owned(),
        blobs_prefix: attrs.text("blobs_prefix").unwrap_or("blobs").to_owned(),
        names: attrs.names(),
        ready: OnceCell::new(),
    })
}

impl AzureStore {
    /// The address of a blob below the account's.
    fn address(&self, prefix: &str, name: &str) -> String {
        let parts = [self.prefix.as_str(), prefix, name];
        let parts = parts.iter().flat_map(|p| p.split('/')).filter(|p| !p.is_empty() && *p != ".").collect::<Vec<_>>();
        format!("/{}/{}", self.container, parts.join("/"))
    }

    fn blob(&self, digest: &Digest) -> String {
        self.address(&self.blobs_prefix, digest.as_str())
    }

    /// Makes the container if there is none.
    async fn prepare(&self) -> Result<()> {
        self.ready.get_or_try_init(|| self.make_container()).await.map(|_| ()).context("failed to create container client")
    }

    async fn make_container(&self) -> Result<()> {
        let path = format!("/{}", self.container);
        let query = || vec![("restype", "container".to_owned())];
        let found = self.blobs.call(Method::HEAD, &path, query(), Vec::new(), Payload::Bytes(Bytes::new())).await?;
        if found.status() != StatusCode::NOT_FOUND {
            return success(found, &format!("failed to get properties of cache container {}", self.container)).await.map(|_| ());
        }
        let made = self.blobs.call(Method::PUT, &path, query(), Vec::new(), Payload::Bytes(Bytes::new())).await?;
        // Somebody else may have been faster.
        match success(made, &format!("failed to create cache container {}", self.container)).await {
            Err(fault) if fault.kind() == Kind::AlreadyExists => Ok(()),
            outcome => outcome.map(|_| ()),
        }
    }
}

#[async_trait]
impl Store for AzureStore {
    async fn has(&self, blob: &Digest, _: bool) -> Result<bool> {
        self.prepare().await?;
        self.blobs.exists(&self.blob(blob)).await
    }

    async fn put(&self, blob: &Digest, file: Arc<File>, size: u64) -> Result<()> {
        self.prepare().await?;
        match self.blobs.put_file(&self.blob(blob), file, size, true).await {
            Err(fault) if fault.kind() == Kind::AlreadyExists => Ok(()),
            outcome => outcome,
        }
    }

    async fn get(&self, blob: &Digest, offset: u64) -> Result<ByteStream> {
        let answer = self.blobs.get(&self.blob(blob), offset).await?;
        let answer = answer.ok_or_else(|| Fault::new(Kind::NotFound, format!("blob {blob} not found")))?;
        Ok(stream(answer, offset))
    }

    async fn put_config(&self, config: Bytes) -> Result<()> {
        self.prepare().await?;
        for name in &self.names {
            let put = self.blobs.put_whole(&self.address(&self.manifests_prefix, name), Payload::Bytes(config.clone()), false).await;
            put.with_context(|| format!("error writing manifest {name}"))?;
        }
        Ok(())
    }

    async fn configs(&self) -> Result<Vec<Bytes>> {
        self.prepare().await?;
        let read = self.names.iter().map(|name| async move {
            let found = self.blobs.get(&self.address(&self.manifests_prefix, name), 0).await;
            match found.with_context(|| format!("failed to load cache manifest {name}"))? {
                Some(answer) => Ok::<_, Fault>(Some(answer.bytes(MAX_CONFIG).await?)),
                None => Ok(None),
            }
        });
        Ok(try_join_all(read).await?.into_iter().flatten().collect())
    }
}

/// Block blobs of one account, or one blob whose address is signed.
pub(super) struct AzureBlobs {
    pub requester: Requester,
    pub authorization: Authorization,
    /// The account's address, or all of it if it is signed.
    pub base: String,
}

impl AzureBlobs {
    pub async fn exists(&self, path: &str) -> Result<bool> {
        let answer = self.call(Method::HEAD, path, Vec::new(), Vec::new(), Payload::Bytes(Bytes::new())).await?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(false),
            _ => success(answer, &format!("failed to check blob {path} existence")).await.map(|_| true),
        }
    }

    /// `None`: there is no such blob.
    pub async fn get(&self, path: &str, offset: u64) -> Result<Option<WebAnswer>> {
        let range = (offset > 0).then(|| ("x-ms-range".to_owned(), format!("bytes={offset}-")));
        let headers = range.into_iter().collect();
        let answer = self.call(Method::GET, path, Vec::new(), headers, Payload::Bytes(Bytes::new())).await?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(None),
            _ => success(answer, &format!("failed to read blob {path}")).await.map(Some),
        }
    }

    /// `AlreadyExists` with `only_new` if there is one by then.
    pub async fn put_whole(&self, path: &str, payload: Payload, only_new: bool) -> Result<()> {
        let mut headers = vec![("x-ms-blob-type".to_owned(), "BlockBlob".to_owned())];
        headers.extend(condition(only_new));
        let answer = self.call(Method::PUT, path, Vec::new(), headers, payload).await?;
        success(answer, &format!("failed to upload blob {path}")).await.map(|_| ())
    }

    pub async fn put_file(&self, path: &str, file: Arc<File>, size: u64, only_new: bool) -> Result<()> {
        if size <= BLOCK {
            return self.put_whole(path, Payload::File { file, offset: 0, size }, only_new).await;
        }
        let length = BLOCK.max(size.div_ceil(MOST_BLOCKS));
        let id = |n: u64| base64::engine::general_purpose::STANDARD.encode(format!("block-{n:08}"));
        let count = size.div_ceil(length);
        let blocks = (0..count).map(|n| {
            let (file, offset) = (file.clone(), n * length);
            async move {
                let query = vec![("comp", "block".to_owned()), ("blockid", id(n))];
                let payload = Payload::File { file, offset, size: length.min(size - offset) };
                let answer = self.call(Method::PUT, path, query, Vec::new(), payload).await?;
                success(answer, &format!("failed to upload a block of {path}")).await.map(|_| ())
            }
        });
        iter(blocks.collect::<Vec<_>>()).buffer_unordered(PARALLEL).try_collect::<Vec<()>>().await?;
        let list: String = (0..count).map(|n| format!("<Latest>{}</Latest>", id(n))).collect();
        let list = format!("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>{list}</BlockList>");
        let headers = condition(only_new).into_iter().collect();
        let answer = self.call(Method::PUT, path, vec![("comp", "blocklist".to_owned())], headers, Payload::Bytes(list.into())).await?;
        success(answer, &format!("failed to upload blob {path}")).await.map(|_| ())
    }

    pub async fn call(
        &self,
        method: Method,
        path: &str,
        query: Vec<(&str, String)>,
        headers: Vec<(String, String)>,
        payload: Payload,
    ) -> Result<WebAnswer> {
        let bearer = self.authorization.bearer().await?;
        let path = escape(path, true);
        let (address, signed_query) = self.base.split_once('?').unwrap_or((&self.base, ""));
        let own = canonical_query(&query);
        let all = [signed_query, own.as_str()].into_iter().filter(|q| !q.is_empty()).collect::<Vec<_>>().join("&");
        let url = if all.is_empty() { format!("{address}{path}") } else { format!("{address}{path}?{all}") };
        // What is signed is the path of the whole address; a local stand-in has the account in there.
        let rest = address.split_once("://").map_or("", |(_, rest)| rest);
        let root = rest.split_once('/').map_or(String::new(), |(_, path)| format!("/{path}"));
        let signed_path = format!("{root}{path}");
        let make = || {
            let now = Timestamp::from(std::time::SystemTime::now()).unix_seconds();
            let mut request = Request::new(method.clone(), url.clone()).payload(payload.clone());
            request.headers.extend(headers.iter().cloned());
            request = request.header("x-ms-date", date::format(now)).header("x-ms-version", VERSION);
            let signature = self.authorization.sign(method.as_str(), &signed_path, &query, &request.headers, payload.size());
            request.headers.extend(signature.or_else(|| bearer.clone()).map(|value| ("authorization".to_owned(), value)));
            Ok(request)
        };
        self.requester.send(make).await
    }
}

fn condition(only_new: bool) -> Option<(String, String)> {
    only_new.then(|| ("if-none-match".to_owned(), "*".to_owned()))
}

/// Why a signed address was refused.
pub(super) async fn refused(answer: WebAnswer, what: &str) -> Fault {
    failure(answer, what).await
}
