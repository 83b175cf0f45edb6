//! `oci` and `docker`: the image goes to the client, as a tar or into a content store there.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use content::Store;
use fault::{Fault, Kind, Result};
use futures_util::future::try_join_all;
use oci::{Descriptor, Timestamp};
use session::{ContentStore, Session};

use crate::api::{Context, Exported, Exporter, Source};
use crate::attrs::{Attrs, Epoch};
use crate::image::assemble::Image;
use crate::image::exporter::{make, response};
use crate::image::layout;
use crate::image::options::ImageOptions;
use crate::upload::upload;

const CREATED: &str = "org.opencontainers.image.created";

pub struct ArchiveExporter {
    store: Store,
    options: ImageOptions,
    docker: bool,
    tar: bool,
    metadata: BTreeMap<String, Bytes>,
}

impl ArchiveExporter {
    pub fn resolve(mut attrs: Attrs, compatibility: u32, store: Store, docker: bool) -> Result<Self> {
        let options = ImageOptions::take(&mut attrs, compatibility, false)?;
        let tar = attrs.switch("tar")?.unwrap_or(true);
        Ok(Self { store, options, docker, tar, metadata: attrs.rest() })
    }

    async fn send_tar(
        &self,
        image: &Image,
        root: &Descriptor,
        names: &[oci::Reference],
        response: &BTreeMap<String, String>,
        context: &Context,
    ) -> Result<()> {
        let session = context.receiver()?;
        let records = layout::records(image, root, names, self.docker);
        let target = session.upload(context.index, response).await?;
        let _row = context.reporter.row("sending tarball", "", 0);
        let store = self.store.clone();
        match context.cancel.run(upload(target, move |out| layout::write(&records, &store, out))).await {
            // The client has it.
            Err(fault) if fault.kind() == Kind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    async fn copy(&self, image: &Image, session: &Arc<dyn Session>) -> Result<()> {
        let target = session.content("export");
        let blobs: BTreeSet<_> = image.documents().flat_map(|d| d.blobs.iter().map(|b| &b.digest)).collect();
        try_join_all(blobs.into_iter().map(|digest| copy_blob(&self.store, &*target, digest))).await?;
        // What names others comes after them.
        for document in image.documents() {
            copy_blob(&self.store, &*target, &document.descriptor.digest).await?;
        }
        Ok(())
    }
}

async fn copy_blob(store: &Store, target: &dyn ContentStore, digest: &oci::Digest) -> Result<()> {
    let mut blob = store.open_blob(digest)?;
    let size = blob.size();
    match target.write(digest, size).await {
        Ok(None) => Ok(()),
        Ok(Some(writer)) => {
            let name = digest.clone();
            upload(writer, move |out| out.copy(&mut blob, size, &name)).await
        }
        Err(fault) if fault.kind() == Kind::AlreadyExists => Ok(()),
        Err(fault) => Err(fault),
    }
}

#[async_trait]
impl Exporter for ArchiveExporter {
    fn name(&self) -> &'static str {
        if self.docker { "exporting to docker image format" } else { "exporting to oci image format" }
    }

    async fn export(&self, source: &Source, context: &Context) -> Result<Exported> {
        if self.docker && source.is_map {
            return Err(Fault::invalid("docker exporter does not currently support exporting manifest lists"));
        }
        let mut metadata = source.metadata.clone();
        metadata.extend(self.metadata.clone());
        let kind = if self.docker { "docker" } else { "oci" };
        let options = self.options.settle(kind, &metadata, !source.attestations.is_empty(), !self.docker)?;
        let given = self.options.names(&metadata);
        let created = match options.epoch {
            Epoch::At(seconds) => Timestamp::from_unix(seconds, 0),
            _ => Timestamp::from_unix(Timestamp::from(SystemTime::now()).unix_seconds(), 0),
        };
        let (image, blobs) = make(source, metadata, given.clone(), options, None, &self.store, context).await?;
        let mut root = image.root.descriptor.clone();
        root.annotations.entry(CREATED.into()).or_insert_with(|| created.to_string());
        let mut response = response(&image, &root);
        let names = layout::normalized(&given)?;
        if !names.is_empty() {
            let joined: Vec<String> = names.iter().map(ToString::to_string).collect();
            response.insert("image.name".into(), joined.join(","));
        }
        let session = context.session()?;
        let _holds = context.cancel.run(blobs.hold_all(&image, &context.cancel, &context.reporter)).await?;
        if self.tar {
            self.send_tar(&image, &root, &names, &response, context).await?;
        } else {
            context.cancel.run(self.copy(&image, session)).await?;
        }
        Ok(Exported { response, descriptor: Some(root), holds: image.holds, finalize: None })
    }
}
