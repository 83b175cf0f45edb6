//! `image`: the image goes into the content store and, if asked, from there to registries.
use std::collections::BTreeMap;

use async_trait::async_trait;
use base64::Engine as _;
use bytes::Bytes;
use content::Store;
use fault::{Fault, Result};
use layers::{Begun, Compression, Layer};
use oci::{Descriptor, Digest, gojson};
use registry::Client;

use crate::api::{Context, Exported, Exporter, Source};
use crate::attestation::Written;
use crate::attrs::Attrs;
use crate::image::assemble::{Draft, Image, Part, assemble, check};
use crate::image::blobs::Blobs;
use crate::image::early::Early;
use crate::image::options::{ImageOptions, Settled};
use crate::image::packing::{Parts, pack};
use crate::image::push::{Target, push_all};
use crate::image::sbom::supplement;

pub struct ImageExporter {
    store: Store,
    client: Client,
    options: ImageOptions,
    push: bool,
    by_digest: bool,
    insecure: bool,
    dangling_prefix: String,
    dangling_only_unnamed: bool,
    metadata: BTreeMap<String, Bytes>,
}

impl ImageExporter {
    pub fn resolve(mut attrs: Attrs, compatibility: u32, store: Store, client: Client) -> Result<Self> {
        let options = ImageOptions::take(&mut attrs, compatibility, true)?;
        let mut switch = |key| Ok::<_, Fault>(attrs.switch(key)?.unwrap_or(false));
        let (push, by_digest, insecure) = (switch("push")?, switch("push-by-digest")?, switch("registry.insecure")?);
        // BuildKit's spelling.
        let dangling_only_unnamed = switch("danging-name-empty-only")?;
        // About a worker's own image store, which there is none of here; BuildKit's OCI worker does nothing with them either.
        for key in ["unpack", "store", "unsafe-internal-store-allow-incomplete", "name-canonical"] {
            switch(key)?;
        }
        let dangling_prefix = attrs.text("dangling-name-prefix").unwrap_or_default();
        let metadata = attrs.rest();
        Ok(Self { store, client, options, push, by_digest, insecure, dangling_prefix, dangling_only_unnamed, metadata })
    }

    /// With the name of an image that has no other, where that is wanted.
    fn names(&self, given: String, image: &Image) -> String {
        if self.dangling_prefix.is_empty() || (self.dangling_only_unnamed && !given.is_empty()) {
            return given;
        }
        let dangling = format!("{}@{}", self.dangling_prefix, image.root.descriptor.digest);
        if given.is_empty() { dangling } else { format!("{given},{dangling}") }
    }
}

#[async_trait]
impl Exporter for ImageExporter {
    fn name(&self) -> &'static str {
        "exporting to image"
    }

    async fn export(&self, source: &Source, context: &Context) -> Result<Exported> {
        let mut metadata = source.metadata.clone();
        metadata.extend(self.metadata.clone());
        let options = self.options.settle("image", &metadata, !source.attestations.is_empty(), false)?;
        let given = self.options.names(&metadata);
        let (client, sessions) = (self.client.clone(), context.sessions.clone());
        let target = Target { client, sessions, insecure: self.insecure, by_digest: self.by_digest };
        let early = given.split(',').next().filter(|_| self.push).and_then(|name| Early::new(&target, name, &self.store, &context.cancel));
        let begun = early.as_ref().map(Early::begun);
        let (image, blobs) = make(source, metadata, given.clone(), options, begun, &self.store, context).await?;
        let names = self.names(given, &image);
        let mut response = response(&image, &image.root.descriptor);
        if !names.is_empty() {
            response.insert("image.name".into(), names.clone());
        }
        let mut exported =
            Exported { response, descriptor: Some(image.root.descriptor.clone()), holds: image.holds.clone(), finalize: None };
        if self.push && !names.is_empty() {
            let names: Vec<String> = names.split(',').map(str::to_owned).collect();
            let (cancel, reporter) = (context.cancel.clone(), context.reporter.clone());
            exported.finalize = Some(Box::pin(async move { push_all(&image, &blobs, &names, &target, early, &cancel, &reporter).await }));
        }
        Ok(exported)
    }
}

/// Packs the layers and writes the documents. `names` are what statements are about; `begun` is told of layers that are made now.
pub async fn make(
    source: &Source,
    mut metadata: BTreeMap<String, Bytes>,
    names: String,
    options: Settled,
    begun: Option<Begun>,
    store: &Store,
    context: &Context,
) -> Result<(Image, Blobs)> {
    let platforms: Vec<&str> = source.results.iter().map(|result| result.id.as_str()).collect();
    let statements: Vec<bool> = source.attestations.values().flatten().map(|statement| statement.inline_only).collect();
    check(source.is_map, &platforms, &statements, &options)?;
    let Parts { parts, layers, holds } = context.cancel.run(pack(source, &metadata, &options, begun, context)).await?;
    metadata.extend(context.cancel.run(caches(source, options.compression, context)).await?);
    let attestations = context.cancel.run(write(source, &parts, &layers, context)).await?;
    let draft = Draft { parts, is_map: source.is_map, metadata, attestations, names };
    let (own, reporter) = (store.clone(), context.reporter.clone());
    let mut image = task::blocking(move || assemble(&draft, &options, &own, &reporter)).await?;
    image.holds.extend(holds);
    Ok((image, Blobs::new(store.clone(), layers)))
}

/// The caches that the images are to carry, as metadata of the source. They are about the layers' own blobs, whatever times those of the image have.
async fn caches(source: &Source, compression: Compression, context: &Context) -> Result<BTreeMap<String, Bytes>> {
    let Some(author) = &source.inline_cache else { return Ok(BTreeMap::new()) };
    let _row = context.reporter.row("preparing layers for inline cache", "", 0);
    let mut all = BTreeMap::new();
    for result in &source.results {
        let Some(layer) = &result.layer else { continue };
        let blobs = layer.blobs(compression, &context.cancel, &context.reporter).await?;
        let diff_ids: Vec<Digest> = blobs.into_iter().map(|blob| blob.diff_id).collect();
        if let Some(cache) = author.cache(&result.id, &diff_ids, compression, &context.reporter).await? {
            all.insert(format!("containerimage.inlinecache/{}", result.id), cache);
        }
    }
    Ok(all)
}

/// Statements are written once layers are packed, for they may tell of these.
async fn write(
    source: &Source,
    parts: &[Part],
    layers: &BTreeMap<Digest, Layer>,
    context: &Context,
) -> Result<BTreeMap<String, Vec<Written>>> {
    let mut all = BTreeMap::new();
    for part in parts {
        let Some(statements) = source.attestations.get(&part.id) else { continue };
        let mut written = Vec::with_capacity(statements.len());
        for statement in statements {
            let mut statement = Written::of(statement).await?;
            supplement(&mut statement, part, layers, context).await?;
            written.push(statement);
        }
        all.insert(part.id.clone(), written);
    }
    Ok(all)
}

/// What clients are told of an image.
pub fn response(image: &Image, root: &Descriptor) -> BTreeMap<String, String> {
    let descriptor = base64::engine::general_purpose::STANDARD.encode(gojson::to_vec(root));
    let mut response = BTreeMap::from([
        ("containerimage.digest".to_owned(), root.digest.to_string()),
        ("containerimage.descriptor".to_owned(), descriptor),
    ]);
    if let Some(config) = &image.config {
        response.insert("containerimage.config.digest".into(), config.to_string());
    }
    response
}
