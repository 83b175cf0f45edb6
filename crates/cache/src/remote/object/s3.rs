//! `s3`: a cache in a bucket.
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use fault::{Context as _, Fault, Result};
use layers::ByteStream;
use oci::{Digest, Timestamp};

use super::super::attrs::Attrs;
use super::aws::Credentials;
use super::request::{Requester, stream};
use super::s3_client::S3Client;
use super::sigv4::Keys;
use super::{MAX_CONFIG, Store, Stores};

pub struct S3Store {
    client: S3Client,
    /// In front of a blob's digest.
    blobs: String,
    /// In front of a config's name.
    manifests: String,
    names: Vec<String>,
    touch_refresh: Duration,
    parallel: usize,
}

pub fn open(attrs: &Attrs, stores: &Stores) -> Result<S3Store> {
    let environment = &stores.environment;
    let or_variable = |key: &str, variable: &str| {
        let value = attrs.text(key).or_else(|| environment.get(variable)).map(str::to_owned);
        value.ok_or_else(|| Fault::invalid(format!("{key} (${variable}) not set for s3 cache")))
    };
    let bucket = or_variable("bucket", "AWS_BUCKET")?;
    let region = or_variable("region", "AWS_REGION")?;
    let positive = |key: &str, default: u32| match attrs.text(key) {
        None => Ok(default),
        Some(text) => text.parse().ok().filter(|n| *n > 0).ok_or_else(|| Fault::invalid(format!("{key} must be a positive integer"))),
    };
    let parallel = positive("upload_parallelism", 4)? as usize;
    if !matches!(attrs.text("retry_mode"), None | Some("standard" | "adaptive")) {
        return Err(Fault::invalid("retry_mode must be \"standard\" or \"adaptive\""));
    }
    let attempts = positive("retry_max_attempts", 3)?;
    let text = |key: &str| attrs.text(key).filter(|v| !v.is_empty());
    let keys = text("access_key_id").zip(text("secret_access_key")).map(|(access, secret)| Keys {
        access: access.to_owned(),
        secret: secret.to_owned(),
        token: text("session_token").map(str::to_owned),
    });
    let (endpoint, path_style) = match text("endpoint_url").or_else(|| environment.get("AWS_ENDPOINT_URL_S3")) {
        Some(url) => (url.trim_end_matches('/').to_owned(), attrs.lenient_flag("use_path_style")),
        // A name with dots is in no certificate.
        None => (format!("https://s3.{region}.amazonaws.com"), bucket.contains('.')),
    };
    let web = stores.client.web()?;
    let prefix = attrs.text("prefix").unwrap_or_default();
    Ok(S3Store {
        blobs: format!("{prefix}{}", attrs.text("blobs_prefix").unwrap_or("blobs/")),
        manifests: format!("{prefix}{}", attrs.text("manifests_prefix").unwrap_or("manifests/")),
        names: attrs.names(),
        touch_refresh: attrs.text("touch_refresh").and_then(go_duration).unwrap_or(Duration::from_secs(24 * 3600)),
        parallel,
        client: S3Client {
            credentials: Credentials::new(keys, environment.clone(), web.clone(), region.clone()),
            requester: Requester { web, attempts },
            region,
            bucket,
            endpoint,
            path_style,
        },
    })
}

impl S3Store {
    pub fn parallel(&self) -> usize {
        self.parallel
    }

    fn blob(&self, digest: &Digest) -> String {
        format!("{}{digest}", self.blobs)
    }
}

#[async_trait]
impl Store for S3Store {
    async fn has(&self, blob: &Digest, keep: bool) -> Result<bool> {
        let key = self.blob(blob);
        let Some(head) = self.client.head(&key).await? else { return Ok(false) };
        let now = Timestamp::from(SystemTime::now()).unix_seconds();
        let age = head.modified.map_or(0, |then| now.saturating_sub(then));
        if keep && u64::try_from(age).is_ok_and(|age| age > self.touch_refresh.as_secs()) {
            self.client.touch(&key, head.size).await.context("failed to touch file")?;
        }
        Ok(true)
    }

    async fn put(&self, blob: &Digest, file: Arc<File>, size: u64) -> Result<()> {
        self.client.put_file(&self.blob(blob), blob, file, size).await
    }

    async fn get(&self, blob: &Digest, offset: u64) -> Result<ByteStream> {
        let answer = self.client.get(&self.blob(blob), offset).await?;
        let answer = answer.ok_or_else(|| Fault::new(fault::Kind::NotFound, format!("blob {blob} is not in the cache")))?;
        Ok(stream(answer, offset))
    }

    async fn put_config(&self, config: Bytes) -> Result<()> {
        for name in &self.names {
            let put = self.client.put(&format!("{}{name}", self.manifests), config.clone()).await;
            put.with_context(|| format!("error writing manifest: {name}"))?;
        }
        Ok(())
    }

    async fn configs(&self) -> Result<Vec<Bytes>> {
        let key = format!("{}{}", self.manifests, self.names[0]);
        match self.client.get(&key, 0).await? {
            Some(answer) => Ok(vec![answer.bytes(MAX_CONFIG).await?]),
            None => Ok(Vec::new()),
        }
    }
}

/// A duration in Go's form, such as `1h30m` or `1.5s`.
pub(super) fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let units = [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
        let (unit, scale) = units.iter().filter(|(unit, _)| rest.starts_with(unit)).max_by_key(|(unit, _)| unit.len())?;
        seconds += number * scale;
        rest = &rest[unit.len()..];
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(seconds).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        assert_eq!(go_duration("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(go_duration("1.5s"), Some(Duration::from_millis(1500)));
        assert_eq!(go_duration("10ms"), Some(Duration::from_millis(10)));
        assert_eq!(go_duration("0"), Some(Duration::ZERO));
        for bad in ["", "5", "h", "1x"] {
            assert_eq!(go_duration(bad), None, "{bad}");
        }
    }
}
