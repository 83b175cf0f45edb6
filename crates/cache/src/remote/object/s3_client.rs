//! The few calls of the S3 API that a cache needs, signed.
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use fault::{Fault, Result};
use futures_util::stream::{StreamExt as _, TryStreamExt as _, iter};
use http::{Method, StatusCode};
use oci::{Digest, Hasher, Timestamp};
use registry::{Payload, WebAnswer, date};

use super::aws::Credentials;
use super::request::{Request, Requester, escape, failure, success, tag};
use super::sigv4::{Signed, canonical_query};

/// Larger objects are sent in parts.
const WHOLE: u64 = 32 << 20;
const PART: u64 = 16 << 20;
/// The service takes no more parts than this.
const MOST_PARTS: u64 = 10_000;
/// Parts under way at a time.
const PARALLEL: usize = 4;
/// The largest object that is copied in one call.
const MAX_COPY: u64 = 5 << 30;
const MAX_ANSWER: u64 = 1 << 20;

pub struct S3Client {
    pub requester: Requester,
    pub credentials: Credentials,
    pub region: String,
    pub bucket: String,
    /// `http://host[:port][/path]`
    pub endpoint: String,
    /// The bucket is part of the path rather than of the host.
    pub path_style: bool,
}

/// What is known of an object.
pub struct Head {
    pub modified: Option<i64>,
    pub size: u64,
}

type Query<'a> = Vec<(&'a str, String)>;

impl S3Client {
    pub async fn head(&self, key: &str) -> Result<Option<Head>> {
        let answer = self.call(Method::HEAD, key, Vec::new(), &[], Body::Empty).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let answer = success(answer, &format!("failed to look for {key} in bucket {}", self.bucket)).await?;
        let size = answer.header("content-length").and_then(|v| v.parse().ok()).unwrap_or_default();
        Ok(Some(Head { modified: answer.header("last-modified").and_then(date::parse), size }))
    }

    /// `None`: there is no such object.
    pub async fn get(&self, key: &str, offset: u64) -> Result<Option<WebAnswer>> {
        let range = (offset > 0).then(|| ("range".to_owned(), format!("bytes={offset}-")));
        let headers: Vec<_> = range.into_iter().collect();
        let answer = self.call(Method::GET, key, Vec::new(), &headers, Body::Empty).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            let fault = failure(answer, "no such object").await;
            return if fault.to_string().contains("NoSuchBucket") { Err(fault) } else { Ok(None) };
        }
        success(answer, &format!("failed to read {key} of bucket {}", self.bucket)).await.map(Some)
    }

    pub async fn put(&self, key: &str, bytes: Bytes) -> Result<()> {
        let answer = self.call(Method::PUT, key, Vec::new(), &[], Body::Bytes(bytes)).await?;
        success(answer, &format!("failed to write {key} to bucket {}", self.bucket)).await.map(|_| ())
    }

    /// Stores a file whose sha256 is known.
    pub async fn put_file(&self, key: &str, digest: &Digest, file: Arc<File>, size: u64) -> Result<()> {
        if size > WHOLE || digest.algorithm() != "sha256" {
            return self.put_parts(key, file, size).await;
        }
        let payload = Payload::File { file, offset: 0, size };
        let answer = self.call(Method::PUT, key, Vec::new(), &[], Body::Hashed(payload, digest.hex().to_owned())).await?;
        success(answer, &format!("failed to write {key} to bucket {}", self.bucket)).await.map(|_| ())
    }

    async fn put_parts(&self, key: &str, file: Arc<File>, size: u64) -> Result<()> {
        let length = PART.max(size.div_ceil(MOST_PARTS));
        let parts: Vec<(u64, u64)> = (0..size.div_ceil(length)).map(|n| (n * length, length.min(size - n * length))).collect();
        self.in_parts(key, parts, |number, upload, (offset, size)| {
            let file = file.clone();
            Box::pin(async move {
                let hash = hash(file.clone(), offset, size).await?;
                let query = vec![("partNumber", number.to_string()), ("uploadId", upload)];
                let body = Body::Hashed(Payload::File { file, offset, size }, hash);
                let answer = success(self.call(Method::PUT, key, query, &[], body).await?, "failed to write a part").await?;
                answer.header("etag").map(str::to_owned).ok_or_else(|| Fault::invalid("a part was stored without an ETag"))
            })
        })
        .await
    }

    /// Makes an object young again.
    pub async fn touch(&self, key: &str, size: u64) -> Result<()> {
        let source = ("x-amz-copy-source".to_owned(), escape(&format!("{}/{key}", self.bucket), true));
        if size >= MAX_COPY {
            let parts: Vec<(u64, u64)> = (0..size.div_ceil(MAX_COPY)).map(|n| (n * MAX_COPY, MAX_COPY.min(size - n * MAX_COPY))).collect();
            return self
                .in_parts(key, parts, |number, upload, (offset, size)| {
                    let range = ("x-amz-copy-source-range".to_owned(), format!("bytes={offset}-{}", offset + size - 1));
                    let headers = [source.clone(), range];
                    Box::pin(async move {
                        let query = vec![("partNumber", number.to_string()), ("uploadId", upload)];
                        let answer = self.call(Method::PUT, key, query, &headers, Body::Empty).await?;
                        let text = text(success(answer, "failed to copy a part").await?).await?;
                        let etag = tag(&text, "ETag").ok_or_else(|| Fault::invalid("a part was copied without an ETag"))?;
                        Ok(etag.replace("&quot;", "\""))
                    })
                })
                .await;
        }
        let now = Timestamp::from(SystemTime::now()).to_string();
        let headers = [source, ("x-amz-metadata-directive".to_owned(), "REPLACE".to_owned()), ("x-amz-meta-updated-at".to_owned(), now)];
        let answer = self.call(Method::PUT, key, Vec::new(), &headers, Body::Empty).await?;
        completed(success(answer, "failed to touch file").await?).await
    }

    /// Does a multipart upload; nothing of it stays if it fails.
    async fn in_parts<'a, P>(
        &'a self,
        key: &'a str,
        parts: Vec<P>,
        send: impl Fn(usize, String, P) -> futures_util::future::BoxFuture<'a, Result<String>>,
    ) -> Result<()> {
        let started = self.call(Method::POST, key, vec![("uploads", String::new())], &[], Body::Empty).await?;
        let answer = text(success(started, "failed to begin an upload in parts").await?).await?;
        let upload = tag(&answer, "UploadId").ok_or_else(|| Fault::invalid("an upload in parts began without an id"))?.to_owned();
        let numbered: Vec<_> = parts.into_iter().enumerate().map(|(n, part)| send(n + 1, upload.clone(), part)).collect();
        let finish = async {
            let etags: Vec<String> = iter(numbered).buffered(PARALLEL).try_collect().await?;
            let part = |(n, etag): (usize, &String)| format!("<Part><PartNumber>{}</PartNumber><ETag>{etag}</ETag></Part>", n + 1);
            let list: String = etags.iter().enumerate().map(part).collect();
            let body = Body::Bytes(format!("<CompleteMultipartUpload>{list}</CompleteMultipartUpload>").into());
            let answer = self.call(Method::POST, key, vec![("uploadId", upload.clone())], &[], body).await?;
            completed(success(answer, "failed to complete an upload in parts").await?).await
        };
        let outcome = finish.await;
        if outcome.is_err() {
            // Best effort: the service forgets it some day, too.
            let _ = self.call(Method::DELETE, key, vec![("uploadId", upload.clone())], &[], Body::Empty).await;
        }
        outcome
    }

    async fn call(&self, method: Method, key: &str, query: Query<'_>, headers: &[(String, String)], body: Body) -> Result<WebAnswer> {
        let keys = self.credentials.get().await?;
        let (base, host, root) = self.place()?;
        let path = format!("{root}/{}", escape(key, true));
        let text = canonical_query(&query);
        let url = if text.is_empty() { format!("{base}{path}") } else { format!("{base}{path}?{text}") };
        let (payload, hash) = body.payload();
        let make = || {
            let signed = Signed { method: method.as_str(), host: &host, path: &path, query: &query, headers, payload: &hash };
            let mut request = Request::new(method.clone(), url.clone()).payload(payload.clone());
            request.headers.extend(headers.iter().cloned());
            request.headers.extend(signed.headers(&keys, &self.region, "s3", SystemTime::now().into()));
            Ok(request)
        };
        self.requester.send(make).await
    }

    /// Scheme with host, the host alone, and the path of the bucket.
    fn place(&self) -> Result<(String, String, String)> {
        let (scheme, rest) =
            self.endpoint.split_once("://").ok_or_else(|| Fault::invalid(format!("endpoint_url {:?} is no URL", self.endpoint)))?;
        let (host, path) =
            rest.split_once('/').map_or((rest, String::new()), |(host, path)| (host, format!("/{}", path.trim_end_matches('/'))));
        let path = if path == "/" { String::new() } else { path };
        Ok(match self.path_style {
            true => (format!("{scheme}://{host}"), host.to_owned(), format!("{path}/{}", escape(&self.bucket, false))),
            false => {
                let host = format!("{}.{host}", self.bucket);
                (format!("{scheme}://{host}"), host, path)
            }
        })
    }
}

/// What a call carries.
enum Body {
    Empty,
    Bytes(Bytes),
    /// With its sha256 in hex.
    Hashed(Payload, String),
}

impl Body {
    fn payload(self) -> (Payload, String) {
        match self {
            Body::Empty => (Payload::Bytes(Bytes::new()), Digest::of("").hex().to_owned()),
            Body::Bytes(bytes) => {
                let hash = Digest::of(&bytes).hex().to_owned();
                (Payload::Bytes(bytes), hash)
            }
            Body::Hashed(payload, hash) => (payload, hash),
        }
    }
}

async fn text(answer: WebAnswer) -> Result<String> {
    Ok(String::from_utf8_lossy(&answer.bytes(MAX_ANSWER).await?).into_owned())
}

/// Long calls answer with success and say later that they failed.
async fn completed(answer: WebAnswer) -> Result<()> {
    let text = text(answer).await?;
    match text.contains("<Error>") {
        true => Err(Fault::new(fault::Kind::Unavailable, tag(&text, "Message").unwrap_or("the store failed").to_owned())),
        false => Ok(()),
    }
}

async fn hash(file: Arc<File>, offset: u64, size: u64) -> Result<String> {
    task::blocking(move || {
        let mut hasher = Hasher::new();
        let mut buffer = vec![0; 256 << 10];
        let mut at = 0;
        while at < size {
            let wanted = buffer.len().min(usize::try_from(size - at).unwrap_or(buffer.len()));
            file.read_exact_at(&mut buffer[..wanted], offset + at)?;
            hasher.update(&buffer[..wanted]);
            at += wanted as u64;
        }
        Ok(hasher.finish().hex().to_owned())
    })
    .await
}
