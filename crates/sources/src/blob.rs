//! `docker-image+blob://` and `oci-layout+blob://`: one blob as a file.
use std::collections::BTreeMap;

use bytes::Bytes;
use fault::Result;
use futures_util::StreamExt as _;
use layers::{Layer, Properties};
use oci::{Descriptor, Digest, Hasher, Reference, gojson};
use serde::Serialize;

use crate::error::SourceError;
use crate::http::Placement;
use crate::image::{self, Origin, Place};
use crate::key::Key;
use crate::scheme::{Scheme, safe_file_name};
use crate::store::{Context, Shared};

pub(crate) struct Request {
    image: image::Request,
    digest: Digest,
    placement: Placement,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct BlobKey<'a> {
    digest: &'a Digest,
    filename: &'a str,
    perm: i64,
    #[serde(rename = "UID")]
    uid: i64,
    #[serde(rename = "GID")]
    gid: i64,
}

impl Request {
    pub fn new(scheme: Scheme, text: &str, attrs: &BTreeMap<String, String>) -> Result<Self> {
        let wrong = |source| SourceError::Reference { text: text.to_owned(), source };
        let reference: Reference = text.parse().map_err(wrong)?;
        let digest = reference.digest().filter(|_| reference.tag().is_none()).cloned();
        let digest = digest.ok_or_else(|| SourceError::NoDigest { text: text.to_owned() })?;
        let get = |key: &str| attrs.get(key).cloned().unwrap_or_default();
        let place = match scheme {
            Scheme::LayoutBlob if get("oci.store").is_empty() => return Err(SourceError::NoStore.into()),
            Scheme::LayoutBlob => Place::Layout { session: get("oci.session"), store: get("oci.store") },
            _ => Place::Registry,
        };
        let mut placement = Placement::new(attrs)?;
        if !placement.filename.is_empty() {
            placement.filename = safe_file_name(&placement.filename);
        }
        let record_type = image::record_type(attrs.get("image.recordtype").map_or("", String::as_str))?;
        let image = image::Request { reference, place, record_type, layer_limit: None, checksum: None };
        Ok(Self { image, digest, placement })
    }

    pub fn key(&self) -> Key {
        let Placement { filename, perm, uid, gid } = &self.placement;
        let text = Digest::of(gojson::to_vec(&BlobKey { digest: &self.digest, filename, perm: *perm, uid: *uid, gid: *gid }));
        Key::new(text.as_str(), self.digest.as_str(), false)
    }
}

pub(crate) async fn fetch(shared: &Shared, request: &Request, context: &Context) -> Result<Layer> {
    let properties = Properties::new(format!("blob {}", request.image.reference)).of_type(&request.image.record_type);
    let name = if request.placement.filename.is_empty() { request.digest.hex().to_owned() } else { request.placement.filename.clone() };
    let mut file = request.placement.begin(shared, properties, name)?;
    let copied = async {
        let mut blob = Incoming::open(shared, request, context).await?;
        while let Some(chunk) = blob.next().await? {
            file.write(chunk).await?;
        }
        Ok::<_, fault::Fault>(())
    };
    context.cancel.run(copied).await?;
    file.finish(0).await
}

/// A blob on its way here.
pub(crate) struct Incoming<'a> {
    request: &'a Request,
    stream: layers::ByteStream,
    hasher: Hasher,
}

impl<'a> Incoming<'a> {
    pub async fn open(shared: &Shared, request: &'a Request, context: &Context) -> Result<Self> {
        let stream = Origin::new(shared, &request.image, context).blob_of_unknown_size(&request.digest).await?;
        Ok(Self { request, stream, hasher: Hasher::new() })
    }

    /// The end comes only if all was what the digest says.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        if let Some(chunk) = self.stream.next().await.transpose()? {
            self.hasher.update(&chunk);
            return Ok(Some(chunk));
        }
        let (actual, expected) = (std::mem::replace(&mut self.hasher, Hasher::new()).finish(), &self.request.digest);
        match actual == *expected {
            true => Ok(None),
            false => {
                Err(SourceError::Checksum { url: self.request.image.reference.to_string(), actual, expected: expected.clone() }.into())
            }
        }
    }
}

impl Origin {
    async fn blob_of_unknown_size(&self, digest: &Digest) -> Result<layers::ByteStream> {
        let size = self.size(digest).await?;
        self.blob(&Descriptor::new("", digest.clone(), size), 0).await
    }
}
