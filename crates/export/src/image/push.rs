//! Images go to a registry: what it lacks of the blobs first, then manifests, the root last.
use std::collections::BTreeMap;
use std::sync::Arc;

use fault::{Context as _, Fault, Result};
use futures_util::future::try_join_all;
use oci::{Descriptor, Digest, Reference, media};
use progress::Reporter;
use registry::{Access, Client, Payload, Repository, SOURCE_ANNOTATION};
use session::Group;
use task::Cancel;

use crate::image::assemble::Image;
use crate::image::blobs::Blobs;
use crate::image::early::Early;

/// How and for whom to push.
#[derive(Clone)]
pub struct Target {
    pub client: Client,
    /// Whose credentials are used.
    pub sessions: Group,
    pub insecure: bool,
    /// Without a tag.
    pub by_digest: bool,
}

impl Target {
    pub fn repository(&self, reference: &Reference, reporter: &Reporter) -> Repository {
        let access = Access { credentials: Arc::new(self.sessions.clone()), reporter: reporter.clone() };
        self.client.repository(reference, access).insecure(self.insecure)
    }
}

/// Pushes `image` under each of `names`, one after the other, once what is on its way has arrived.
pub async fn push_all(
    image: &Image,
    blobs: &Blobs,
    names: &[String],
    target: &Target,
    early: Option<Early>,
    cancel: &Cancel,
    reporter: &Reporter,
) -> Result<()> {
    for name in names {
        let pushing = push(image, blobs, name, target, early.as_ref(), cancel, reporter);
        cancel.run(pushing).await.with_context(|| format!("failed to push {name}"))?;
    }
    Ok(())
}

async fn push(
    image: &Image,
    blobs: &Blobs,
    name: &str,
    target: &Target,
    early: Option<&Early>,
    cancel: &Cancel,
    reporter: &Reporter,
) -> Result<()> {
    let reference: Reference = name.parse().map_err(|e: oci::ReferenceError| Fault::invalid(e.to_string()))?;
    let root = &image.root.descriptor;
    if target.by_digest && (reference.tag().is_some() || reference.digest().is_some()) {
        return Err(Fault::invalid(format!("can't push tagged ref {reference} by digest")));
    }
    let tag = if target.by_digest { None } else { reference.clone().or_latest().tag().map(str::to_owned) };
    let shown =
        if target.by_digest { reference.name() } else { reference.clone().or_latest().with_digest(root.digest.clone()).to_string() };
    let repository = target.repository(&reference, reporter);
    let transfer = Transfer { repository: &repository, reference: &reference, blobs, cancel, reporter };

    {
        let _row = reporter.row("pushing layers", "", 0);
        if let Some(early) = early {
            early.landed().await;
        }
        let mut wanted: BTreeMap<&Digest, &Descriptor> = BTreeMap::new();
        for blob in image.documents().flat_map(|document| &document.blobs) {
            if !is_foreign(blob) {
                wanted.insert(&blob.digest, blob);
            }
        }
        try_join_all(wanted.into_values().map(|blob| transfer.blob(blob))).await?;
    }
    let _row = reporter.row(format!("pushing manifest for {shown}"), "", 0);
    for child in &image.children {
        repository.push_manifest(&child.descriptor, child.bytes.clone(), None).await?;
    }
    repository.push_manifest(root, image.root.bytes.clone(), tag.as_deref()).await?;
    Ok(())
}

/// Blobs that registries do not take because they are to be had elsewhere.
fn is_foreign(blob: &Descriptor) -> bool {
    media::LayerType::parse(&blob.media_type).is_some_and(|kind| kind.foreign)
}

pub struct Transfer<'a> {
    pub repository: &'a Repository,
    pub reference: &'a Reference,
    pub blobs: &'a Blobs,
    pub cancel: &'a Cancel,
    pub reporter: &'a Reporter,
}

impl Transfer<'_> {
    /// Sends a blob, or sees that the repository has it.
    pub async fn blob(&self, blob: &Descriptor) -> Result<()> {
        let with_sources = self.with_sources(blob)?;
        let from = registry::mount_candidate(self.reference, &with_sources.annotations);
        if self.repository.take(blob, from).await?.is_none() {
            let _hold = self.blobs.hold(&blob.digest, self.cancel, self.reporter).await?;
            let (store, digest) = (self.blobs.store().clone(), blob.digest.clone());
            let reader = task::blocking(move || Ok(store.open_blob(&digest)?)).await?;
            let payload = Payload::File { file: Arc::new(reader.file().try_clone()?), offset: 0, size: reader.size() };
            self.repository.push_blob(blob, payload, None).await?;
        }
        self.note(blob, &with_sources)
    }

    /// Labels a layer that the repository has now with where it can be mounted from next time.
    pub fn remember(&self, blob: &Descriptor) -> Result<()> {
        self.note(blob, &self.with_sources(blob)?)
    }

    /// With what earlier pushes and pulls of the blob left on it.
    fn with_sources(&self, blob: &Descriptor) -> Result<Descriptor> {
        let labels = self.blobs.store().labels(&blob.digest)?;
        let mut blob = blob.clone();
        blob.annotations.extend(labels.into_iter().filter(|(key, _)| key.starts_with(SOURCE_ANNOTATION)));
        Ok(blob)
    }

    fn note(&self, blob: &Descriptor, known: &Descriptor) -> Result<()> {
        if media::LayerType::parse(&blob.media_type).is_none() || self.blobs.store().has(&blob.digest)?.is_none() {
            return Ok(());
        }
        let domain = self.reference.domain();
        let key = format!("{SOURCE_ANNOTATION}{}", domain.rsplit_once(':').map_or(domain, |(host, _)| host));
        let before = known.annotations.get(&key).map(String::as_str).unwrap_or_default();
        let path = self.reference.path();
        if !before.split(',').any(|known| known == path) {
            let joined = if before.is_empty() { path.to_owned() } else { format!("{before},{path}") };
            self.blobs.store().set_label(&blob.digest, &key, &joined);
        }
        Ok(())
    }
}
