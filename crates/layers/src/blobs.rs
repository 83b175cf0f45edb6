//! Layers become blobs: each diff is archived, hashed and compressed once, in one pass, and kept.
use std::io::Write;
use std::sync::Arc;

use content::{Growing, Hold, Ingest};
use fault::Fault;
use futures_util::future::try_join_all;
use oci::media::{LayerEncoding, LayerType};
use oci::{Descriptor, Digest, Hasher, Timestamp};
use progress::Reporter;
use task::Cancel;

use crate::compress::{CompressError, Compressed, Compression, CompressionKind, compress};
use crate::error::{Error, Result};
use crate::image::chained;
use crate::node::{Kind, Layer, Node, State};
use crate::stargz::TOC_DIGEST;
use crate::store::Layers;

/// The label that names a blob's uncompressed digest, as containerd calls it.
pub const UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// One layer of an image to be.
#[derive(Debug, Clone)]
pub struct LayerBlob {
    /// Without annotations but those it came with.
    pub descriptor: Descriptor,
    /// Of the archive in the blob, which with estargz is not the layer's own.
    pub diff_id: Digest,
    pub created: Timestamp,
    pub description: String,
    /// Keeps the blob; brings it here if it is still elsewhere ([`Layer::fetch_blob`]).
    pub layer: Layer,
}

/// Told of a blob when its first bytes are about to be written.
pub type Begun = Arc<dyn Fn(CompressionKind, Growing) + Send + Sync>;

impl Layer {
    /// The blobs of the image that this layer is, lowest first. Those that are missing are made; blobs that are elsewhere are named and
    /// not fetched, unless another compression is forced on them. Waits for room below the ceiling, so whoever has [`crate::Room`] already must not ask.
    pub async fn blobs(&self, compression: Compression, cancel: &Cancel, reporter: &Reporter) -> fault::Result<Vec<LayerBlob>> {
        self.blobs_as_they_grow(compression, None, cancel, reporter).await
    }

    /// [`Layer::blobs`], with those that are made here to be had while they grow. Nobody is told of one that somebody else is making already.
    pub async fn blobs_as_they_grow(
        &self,
        compression: Compression,
        begun: Option<Begun>,
        cancel: &Cancel,
        reporter: &Reporter,
    ) -> fault::Result<Vec<LayerBlob>> {
        let chain = self.chain();
        try_join_all(chain.iter().map(|layer| ensure(layer, compression, begun.clone(), cancel, reporter))).await?;
        for layer in &chain {
            chain_ids(&layer.0);
        }
        Ok(chain.into_iter().map(|layer| choose(layer, compression)).collect::<Result<_>>()?)
    }

    /// This layer's alone among [`Layer::blobs_as_they_grow`].
    pub async fn blob(
        &self,
        compression: Compression,
        begun: Option<Begun>,
        cancel: &Cancel,
        reporter: &Reporter,
    ) -> fault::Result<LayerBlob> {
        ensure(self, compression, begun, cancel, reporter).await?;
        Ok(choose(self.clone(), compression)?)
    }

    /// [`Layer::blob`] if it is there already.
    pub fn blob_at_hand(&self, compression: Compression) -> Option<LayerBlob> {
        choose(self.clone(), compression).ok()
    }

    /// [`Layer::blobs`] as far as that takes no work: `None` if a blob is missing.
    pub fn blobs_at_hand(&self, compression: Compression) -> Option<Vec<LayerBlob>> {
        self.chain().into_iter().map(|layer| layer.blob_at_hand(compression)).collect()
    }
}

fn encoding(kind: CompressionKind) -> LayerEncoding {
    match kind {
        CompressionKind::Uncompressed => LayerEncoding::Plain,
        CompressionKind::Gzip | CompressionKind::Estargz => LayerEncoding::Gzip,
        CompressionKind::Zstd => LayerEncoding::Zstd,
    }
}

/// Which of the layer's blobs the compression asks for.
fn suitable(state: &State, compression: Compression) -> Option<&Descriptor> {
    let estargz = compression.kind == CompressionKind::Estargz;
    let is_kind = |blob: &&Descriptor| LayerType::parse(&blob.media_type).is_none_or(|t| t.encoding == encoding(compression.kind));
    let mut with_toc = state.blobs.iter().filter(|blob| blob.annotations.contains_key(TOC_DIGEST));
    let mut plain = state.blobs.iter().filter(|blob| !is_derived(blob, state));
    match (estargz, compression.force) {
        (true, true) => with_toc.next(),
        (true, false) => with_toc.next().or_else(|| plain.next()),
        (false, true) => plain.find(is_kind),
        (false, false) => plain.next(),
    }
}

/// Whether the archive in a blob is not the layer's own, but made of it.
pub(crate) fn is_derived(blob: &Descriptor, state: &State) -> bool {
    own_diff_id(blob).is_some_and(|own| state.diff_id.as_ref() != Some(&own))
}

/// Of the archive in a blob with a table of contents.
pub(crate) fn own_diff_id(blob: &Descriptor) -> Option<Digest> {
    blob.annotations.get(TOC_DIGEST)?;
    blob.annotations.get(UNCOMPRESSED)?.parse().ok()
}

fn choose(layer: Layer, compression: Compression) -> Result<LayerBlob> {
    let state = layer.0.state().clone();
    let lost = || Error::Lost { id: layer.id() };
    let descriptor = suitable(&state, compression).cloned().ok_or_else(lost)?;
    let diff_id = own_diff_id(&descriptor).or(state.diff_id).ok_or_else(lost)?;
    Ok(LayerBlob { descriptor, diff_id, created: layer.created_at(), description: state.description, layer })
}

async fn ensure(layer: &Layer, compression: Compression, begun: Option<Begun>, cancel: &Cancel, reporter: &Reporter) -> Result<(), Fault> {
    let node = &layer.0;
    forget_lost(node)?;
    let (have, any) = {
        let state = node.state();
        (suitable(&state, compression).is_some() && state.diff_id.is_some(), state.blobs.iter().any(|blob| !is_derived(blob, &state)))
    };
    if have {
        return Ok(());
    }
    let working = layer.clone();
    let key = format!("blob:{}:{}", node.id, compression.kind.name());
    let work = move |cancel: Cancel, reporter: Reporter| async move {
        let estargz = compression.kind == CompressionKind::Estargz;
        match any {
            true if estargz => with_toc(&working, compression, begun, &cancel, &reporter).await,
            true => convert(&working, compression, begun, &cancel, &reporter).await,
            false if estargz => create_with_toc(&working, compression, begun, &cancel, &reporter).await,
            false => create(&working, compression, begun, &cancel, &reporter).await,
        }
    };
    node.home.0.flights.run(&key, cancel, reporter, work).await
}

/// A blob that was damaged, or that someone deleted, is made again from the files.
pub(crate) fn forget_lost(node: &Arc<Node>) -> Result<()> {
    let known = {
        let state = node.state();
        if state.tree.is_none() || state.source.is_some() {
            return Ok(());
        }
        state.blobs.clone()
    };
    let mut lost = Vec::new();
    for blob in known {
        if node.home.content().has(&blob.digest)?.is_none() {
            lost.push(blob.digest);
        }
    }
    if !lost.is_empty() {
        node.home.change(node, |state| state.blobs.retain(|blob| !lost.contains(&blob.digest)));
    }
    Ok(())
}

/// Archives the layer's tree.
async fn create(layer: &Layer, compression: Compression, begun: Option<Begun>, cancel: &Cancel, reporter: &Reporter) -> Result<(), Fault> {
    let node = &layer.0;
    let below = with_below(layer, cancel, reporter).await?;
    let _turn = node.home.turn_to_pack(cancel).await?;
    let (source, cancel) = (node.clone(), cancel.clone());
    store(node, compression, begun, move |out| Ok(archive(&source, below.as_ref(), None, &cancel, out)?)).await
}

/// Archives the layer's tree, cut and with a table of contents. The layer's own archive passes by and is only hashed: it is in no blob then.
async fn create_with_toc(
    layer: &Layer,
    compression: Compression,
    begun: Option<Begun>,
    cancel: &Cancel,
    reporter: &Reporter,
) -> Result<(), Fault> {
    let node = &layer.0;
    let below = with_below(layer, cancel, reporter).await?;
    let _turn = node.home.turn_to_pack(cancel).await?;
    let (source, stop) = (node.clone(), cancel.clone());
    let produce = move |out: &mut dyn Write| Ok(archive(&source, below.as_ref(), None, &stop, out)?);
    let (_hold, blob, diff_id) = pack_with_toc(&node.home, compression.level, begun, cancel, produce).await?;
    let expected = node.state().diff_id.clone();
    if let Some(expected) = expected.filter(|expected| *expected != diff_id) {
        return Err(Error::DiffId { digest: blob.digest, expected, actual: diff_id }.into());
    }
    node.home.change(node, |state| {
        state.diff_id = Some(diff_id);
        add(state, blob);
    });
    Ok(())
}

/// Cuts an archive and gives it a table of contents, while it is written. Returns the blob, and the digest of the archive as it was written.
pub(crate) async fn pack_with_toc(
    home: &Layers,
    level: Option<i32>,
    begun: Option<Begun>,
    cancel: &Cancel,
    produce: impl FnOnce(&mut dyn Write) -> fault::Result<()> + Send + 'static,
) -> Result<(Hold, Descriptor, Digest), Fault> {
    let root = home.trees().root().to_owned();
    let (plain, pipe) = std::io::pipe().map_err(Error::io("open a pipe for", &root))?;
    let archiving = task::blocking(move || {
        let mut out = Hashing { out: Watched { out: pipe, given_up: false }, hasher: Hasher::new() };
        let mut buffered = std::io::BufWriter::with_capacity(64 << 10, &mut out);
        let outcome = produce(&mut buffered).and_then(|()| Ok(buffered.flush().map_err(Error::io("archive", &root))?));
        drop(buffered);
        // Whoever reads has given up, and says why.
        if out.out.given_up { Ok(None) } else { outcome.map(|()| Some(out.hasher.finish())) }
    });
    let (home, stop) = (home.clone(), cancel.clone());
    let storing = task::blocking(move || {
        let failed = |error| Error::io("archive", home.trees().root())(std::io::Error::other(error));
        Ok(crate::stargz::store_archive(&home, plain, level, begun, &stop, failed)?)
    });
    let (archived, stored) = tokio::join!(archiving, storing);
    let archived = archived?;
    let (hold, blob) = stored?;
    let archived = archived.ok_or_else(|| Fault::internal("an archive was read to the end before it was written"))?;
    Ok((hold, blob, archived))
}

/// The layer below, once its files and the layer's own are here.
pub(crate) async fn with_below(layer: &Layer, cancel: &Cancel, reporter: &Reporter) -> Result<Option<Layer>, Fault> {
    let node = &layer.0;
    let below = match &node.kind {
        Kind::Layer { parent } => parent.clone(),
        Kind::Diff { lower, .. } => lower.clone(),
        Kind::Merge { .. } | Kind::Cell { .. } => return Err(Error::Lost { id: node.id }.into()),
    };
    let below = below.map(Layer::glance);
    for needed in below.iter().chain([layer]) {
        Box::pin(needed.realize_with_room(cancel, reporter)).await?;
    }
    Ok(below)
}

/// Writes what the layer's tree changes of `below`, with times no later than `latest` in seconds since 1970.
pub(crate) fn archive(node: &Node, below: Option<&Layer>, latest: Option<i64>, cancel: &Cancel, out: &mut dyn Write) -> Result<()> {
    let home = &node.home;
    let tree = node.state().tree.ok_or(Error::Lazy { id: node.id })?;
    let stack = below.map_or(Ok(Vec::new()), Layer::stack)?;
    let view = home.trees().view(&stack)?;
    let compared = matches!(node.kind, Kind::Diff { computed: true, .. });
    crate::layer_tar::write(&home.trees().files(&tree)?, &view, compared, latest, cancel, out)
}

/// Compresses another of the layer's blobs anew. The archive in it stays as it is.
async fn convert(layer: &Layer, compression: Compression, begun: Option<Begun>, cancel: &Cancel, reporter: &Reporter) -> Result<(), Fault> {
    let hold = fetch_own(layer, cancel, reporter).await?;
    let node = layer.0.clone();
    let _turn = node.home.turn_to_pack(cancel).await?;
    let (home, cancel) = (node.home.clone(), cancel.clone());
    let copy = move |out: &mut dyn Write| {
        let blob = std::io::BufReader::with_capacity(256 << 10, home.content().open_blob(hold.digest())?);
        let failed = |e| Error::Unpack { digest: hold.digest().clone(), source: crate::tar::TarError::Io(e).into() };
        let mut plain = crate::decompress::decompress(blob).map_err(failed)?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            cancel.check()?;
            match std::io::Read::read(&mut plain, &mut buffer).map_err(failed)? {
                0 => return Ok(()),
                n => out.write_all(&buffer[..n]).map_err(Error::io("compress", home.trees().root()))?,
            }
        }
    };
    store(&node, compression, begun, copy).await
}

/// One of the layer's blobs with its own archive.
async fn fetch_own(layer: &Layer, cancel: &Cancel, reporter: &Reporter) -> Result<Hold, Fault> {
    let own = {
        let state = layer.0.state();
        state.blobs.iter().find(|blob| !is_derived(blob, &state)).map(|blob| blob.digest.clone())
    };
    let own = own.ok_or(Error::Lost { id: layer.id() })?;
    layer.fetch_blob(&own, cancel, reporter).await
}

/// Makes a blob with a table of contents of another of the layer's blobs.
async fn with_toc(
    layer: &Layer,
    compression: Compression,
    begun: Option<Begun>,
    cancel: &Cancel,
    reporter: &Reporter,
) -> Result<(), Fault> {
    let source = fetch_own(layer, cancel, reporter).await?;
    let node = layer.0.clone();
    let _turn = node.home.turn_to_pack(cancel).await?;
    let cancel = cancel.clone();
    task::blocking(move || {
        let (_hold, blob) = crate::stargz::store(&node.home, &source, compression.level, begun, &cancel)?;
        node.home.change(&node, |state| add(state, blob));
        Ok(())
    })
    .await
}

/// Makes the archive that `produce` writes one of the layer's blobs.
async fn store(
    node: &Arc<Node>,
    compression: Compression,
    begun: Option<Begun>,
    produce: impl FnOnce(&mut dyn Write) -> fault::Result<()> + Send + 'static,
) -> Result<(), Fault> {
    let (hold, diff_id) = pack(&node.home, compression, begun, produce).await?;
    match &node.state().diff_id {
        Some(expected) if *expected != diff_id => {
            let (expected, digest) = (expected.clone(), hold.digest().clone());
            return Err(Error::DiffId { digest, expected, actual: diff_id }.into());
        }
        _ => {}
    }
    let blob = Descriptor::new(compression.kind.media_type(), hold.digest().clone(), hold.size());
    node.home.change(node, |state| {
        state.diff_id = Some(diff_id);
        add(state, blob);
    });
    Ok(())
}

/// Runs an archive through hash and compression into the content store. Returns the blob and the archive's own digest, with which it is labelled.
pub(crate) async fn pack(
    home: &Layers,
    compression: Compression,
    begun: Option<Begun>,
    produce: impl FnOnce(&mut dyn Write) -> fault::Result<()> + Send + 'static,
) -> Result<(Hold, Digest), Fault> {
    let opening = home.clone();
    let ingest = task::blocking(move || Ok(ingest(&opening, compression.kind, begun)?)).await?;
    let done = compress(compression, home.0.budget.compression.clone(), ingest, produce).await;
    let Compressed { out, plain } = done.map_err(|error| match error {
        CompressError::Produce(fault) => fault,
        CompressError::Write(error) => Error::io("write", home.trees().root())(error).into(),
    })?;
    let home = home.clone();
    task::blocking(move || {
        let hold = out.commit()?;
        home.content().set_label(hold.digest(), UNCOMPRESSED, plain.as_str());
        Ok((hold, plain))
    })
    .await
}

/// Blobs with the layer's own archive stand before those that are made of it.
fn add(state: &mut State, blob: Descriptor) {
    if state.blobs.iter().any(|known| known.digest == blob.digest) {
        return;
    }
    let own = if is_derived(&blob, state) { None } else { state.blobs.iter().position(|known| is_derived(known, state)) };
    state.blobs.insert(own.unwrap_or(state.blobs.len()), blob);
}

/// A place for a blob to be, announced.
pub(crate) fn ingest(home: &Layers, kind: CompressionKind, begun: Option<Begun>) -> Result<Ingest> {
    let mut ingest = home.content().ingest_once()?;
    if let Some(begun) = begun {
        begun(kind, ingest.growing()?);
    }
    Ok(ingest)
}

/// Gives a layer whose diff id became known its place in the index of chains, if all below it have theirs.
fn chain_ids(node: &Arc<Node>) {
    let Kind::Layer { parent } = &node.kind else { return };
    let below = parent.as_ref().map(|parent| {
        let state = parent.state();
        state.chain_id.clone().zip(state.blob_chain_id.clone())
    });
    let (blob, diff_id) = {
        let state = node.state();
        let (None, Some(diff_id), Some(blob)) =
            (&state.chain_id, &state.diff_id, state.blobs.iter().find(|blob| !is_derived(blob, &state)))
        else {
            return;
        };
        (chained(&blob.digest, diff_id), diff_id.clone())
    };
    let (chain, blob_chain) = match below {
        None => (diff_id, blob),
        Some(Some((chain, blob_chain))) => (chained(&chain, &diff_id), chained(&blob_chain, &blob)),
        Some(None) => return,
    };
    node.home.change(node, |state| {
        state.chain_id = Some(chain);
        state.blob_chain_id = Some(blob_chain);
    });
}

/// Notes that nobody reads any more.
struct Watched<W> {
    out: W,
    given_up: bool,
}

impl<W: Write> Write for Watched<W> {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let outcome = self.out.write(data);
        self.given_up |= outcome.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe);
        outcome
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

pub(crate) struct Hashing<W> {
    pub out: W,
    pub hasher: Hasher,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let written = self.out.write(data)?;
        self.hasher.update(&data[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}
