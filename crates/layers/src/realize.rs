//! Lazy layers become real: blobs come in and are unpacked while they do, all layers of a chain at once, each into a tree of its own.
use std::pin::Pin;
use std::sync::Arc;

use fault::Fault;
use futures_util::future::try_join_all;
use oci::{Descriptor, Digest};
use progress::{Reporter, Update};
use snapshot::TreeId;
use task::Cancel;

use crate::blobs::own_diff_id;
use crate::error::{Error, Result};
use crate::image::BlobSource;
use crate::node::{Kind, Layer, Node};
use crate::record::CHAINS;
use crate::store::Layers;

/// What a flight that makes a tree leaves behind.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Realized {
    tree: TreeId,
    opaque: bool,
}

/// [`Layer::realize`] for work on another layer, which has its room: a type that ends the recursion.
pub(crate) fn below<'a>(
    layer: &'a Layer,
    cancel: &'a Cancel,
    reporter: &'a Reporter,
) -> Pin<Box<dyn Future<Output = fault::Result<()>> + Send + 'a>> {
    Box::pin(layer.realize(cancel, reporter))
}

impl Layer {
    /// Sees to it that the files of this layer and of all below it are here. Concurrent callers share the work; its rows are shown to each
    /// of them, unless the blobs' source says whose they are.
    pub async fn realize(&self, cancel: &Cancel, reporter: &Reporter) -> fault::Result<()> {
        if self.0.is_whole() {
            return Ok(());
        }
        let chain = self.0.chain();
        let lazy = chain.iter().filter(|element| element.node.state().tree.is_none());
        try_join_all(lazy.map(|element| realize_node(&element.node, cancel, reporter))).await?;
        let hidden = chain.iter().filter(|element| element.explicit);
        try_join_all(hidden.map(|element| crate::explicit::ensure(&element.node, cancel, reporter))).await?;
        self.0.set_whole();
        Ok(())
    }

    /// [`Layer::realize`] for whoever has no [`crate::Room`]: where files are missing, they wait for room below the ceiling. Whoever has one already must
    /// not ask for another.
    pub async fn realize_with_room(&self, cancel: &Cancel, reporter: &Reporter) -> fault::Result<()> {
        let is_here = self.0.is_whole() || self.0.chain().iter().all(|element| element.node.state().tree.is_some() && !element.explicit);
        let _room = if is_here { None } else { Some(self.0.home.room(cancel).await?) };
        self.realize(cancel, reporter).await
    }

    /// A merged view of the files. Fails if the layer is not realized.
    pub fn view(&self) -> Result<snapshot::View> {
        Ok(self.0.home.trees().view(&self.0.stack()?)?)
    }
}

async fn realize_node(node: &Arc<Node>, cancel: &Cancel, reporter: &Reporter) -> Result<(), Fault> {
    // Layers of equal chains have equal trees.
    let chain_id = node.state().chain_id.clone();
    let key = chain_id.map_or_else(|| format!("tree:{}", node.id), |chain| format!("tree:{chain}"));
    while node.state().tree.is_none() {
        let source = node.state().source.clone();
        let owner = source.and_then(|source| source.reporter());
        let working = node.clone();
        let work = |cancel, reporter| make_tree(working, cancel, owner.unwrap_or(reporter));
        let realized = node.home.0.trees_made.run(&key, cancel, reporter, work).await?;
        adopt(node, realized)?;
    }
    Ok(())
}

/// Gives the tree to this layer, too. Does nothing if the tree has gone meanwhile.
fn adopt(node: &Arc<Node>, realized: Realized) -> Result<()> {
    let home = &node.home;
    // Under this lock no record is deleted, so no tree either.
    let _live = home.live();
    if node.state().tree.is_none() && home.trees().contains(&realized.tree) {
        home.change(node, |state| {
            state.tree = Some(realized.tree);
            state.opaque = realized.opaque;
        });
    }
    Ok(())
}

async fn make_tree(node: Arc<Node>, cancel: Cancel, reporter: Reporter) -> Result<Realized, Fault> {
    match &node.kind {
        Kind::Layer { .. } => from_blob(&node, &cancel, &reporter).await,
        Kind::Diff { lower, upper, .. } => {
            let (lower, upper) = (lower.clone().map(Layer::glance), upper.clone().map(Layer::glance));
            for side in lower.iter().chain(&upper) {
                below(side, &cancel, &reporter).await?;
            }
            let row = reporter.row("diffing", "diffing", 0);
            let home = node.home.clone();
            let tree = task::blocking(move || Ok(crate::compare::compare(&home, lower.as_ref(), upper.as_ref(), &cancel)?)).await?;
            drop(row);
            let realized = Realized { tree, opaque: false };
            adopt(&node, realized)?;
            Ok(realized)
        }
        Kind::Merge { .. } | Kind::Cell { .. } => Err(Error::Lost { id: node.id }.into()),
    }
}

async fn from_blob(node: &Arc<Node>, cancel: &Cancel, reporter: &Reporter) -> Result<Realized, Fault> {
    if let Some(realized) = twin(node)? {
        adopt(node, realized)?;
        return Ok(realized);
    }
    let blob = node.state().blobs.first().cloned().ok_or(Error::Lost { id: node.id })?;
    let interval = Interval::open(node, reporter);
    let outcome = unpacked(node, &blob, cancel, reporter).await;
    interval.close(&outcome);
    let (draft, found) = outcome?;
    let stack = match &node.kind {
        Kind::Layer { parent: Some(parent) } if found.needs_below() => {
            let parent = Layer::glance(parent.clone());
            // Not shown: whoever wants this layer shows the ones below it, too.
            below(&parent, cancel, &Reporter::silent()).await?;
            parent.stack()?
        }
        _ => Vec::new(),
    };
    let home = node.home.clone();
    let realized = task::blocking(move || {
        crate::explicit::fit(&home, &draft, &stack, &found)?;
        let tree = home.trees().commit(draft).map_err(Error::from)?;
        Ok(Realized { tree, opaque: found.opaque })
    })
    .await?;
    adopt(node, realized)?;
    Ok(realized)
}

/// Another layer of the same chain whose tree is here.
fn twin(node: &Node) -> Result<Option<Realized>> {
    let Some(chain) = node.state().chain_id.clone() else { return Ok(None) };
    let home = &node.home;
    let read = home.0.db.read()?;
    for (key, ()) in read.prefix(&CHAINS, format!("{chain}/").as_bytes())? {
        let id = key.rsplit('/').next().unwrap_or_default();
        let record = read.get(&crate::record::RECORDS, id)?;
        let Some(kv::Json(record)) = record else { continue };
        if let Some(tree) = record.tree.filter(|tree| home.trees().contains(tree)) {
            return Ok(Some(Realized { tree, opaque: record.opaque }));
        }
    }
    Ok(None)
}

type Fresh = (snapshot::Draft, crate::unpack::Unpacked);

/// Unpacks the layer's blob into a new draft, downloading it first or meanwhile.
async fn unpacked(node: &Arc<Node>, blob: &Descriptor, cancel: &Cancel, reporter: &Reporter) -> Result<Fresh, Fault> {
    let was_here = node.home.content().has(&blob.digest)?.is_some();
    match unpacked_once(node, blob, cancel, reporter).await {
        // It was damaged, and is gone now. Where it came from there may be another.
        Err(fault) if was_here && fault.kind() == fault::Kind::NotFound && node.home.content().has(&blob.digest)?.is_none() => {
            unpacked_once(node, blob, cancel, reporter).await
        }
        outcome => outcome,
    }
}

async fn unpacked_once(node: &Arc<Node>, blob: &Descriptor, cancel: &Cancel, reporter: &Reporter) -> Result<Fresh, Fault> {
    let home = &node.home;
    // Where the blob has a table of contents, that lies behind the archive's end: its digest covers it, unpacking ends before it.
    let diff_id = own_diff_id(blob).or_else(|| node.state().diff_id.clone());
    if let Some(fresh) = home.bring(node, blob, Some(diff_id.clone()), cancel, reporter).await? {
        return Ok(fresh);
    }
    let permit = cancel.run(home.acquire(&home.0.budget.unpacks)).await?;
    let row = reporter.row(format!("extracting {}", blob.digest), "extracting", 0);
    let (home, digest, stop) = (home.clone(), blob.digest.clone(), cancel.clone());
    let fresh = task::blocking(move || {
        let reader = home.content().open_blob(&digest)?;
        Ok(unpack_blob(&home, &digest, diff_id.as_ref(), std::io::BufReader::with_capacity(256 << 10, reader), &stop)?)
    })
    .await;
    drop((row, permit));
    fresh
}

/// Decompresses, hashes and unpacks. Nothing stays if anything is wrong.
pub(crate) fn unpack_blob(
    home: &Layers,
    digest: &Digest,
    diff_id: Option<&Digest>,
    blob: impl std::io::BufRead,
    cancel: &Cancel,
) -> Result<Fresh> {
    let unpack_error = |source| Error::Unpack { digest: digest.clone(), source };
    let draft = home.trees().create()?;
    let plain = crate::decompress::decompress(blob).map_err(|e| unpack_error(crate::tar::TarError::Io(e).into()))?;
    let mut hashed = crate::decompress::Hashed::new(plain, cancel.clone());
    let found = match crate::unpack::unpack(&mut hashed, &draft.fs(), home.trees().userxattr()) {
        Err(_) if cancel.is_cancelled() => return Err(cancel.fault().into()),
        outcome => outcome.map_err(unpack_error)?,
    };
    let actual = hashed.finish();
    match diff_id {
        Some(expected) if *expected != actual => Err(Error::DiffId { digest: digest.clone(), expected: expected.clone(), actual }),
        _ => Ok((draft, found)),
    }
}

/// Shows the vertex of a blob's source as running while any layer of it is.
struct Interval {
    reporter: Option<Reporter>,
    home: Layers,
}

impl Interval {
    fn open(node: &Node, reporter: &Reporter) -> Self {
        let owned = node.state().source.as_ref().and_then(|source: &Arc<dyn BlobSource>| source.reporter());
        let interval = Self { reporter: owned.map(|_| reporter.clone()), home: node.home.clone() };
        if let Some(reporter) = &interval.reporter {
            let mut running = interval.home.0.intervals.lock().expect("no holder of the lock panics");
            let count = running.entry(reporter.vertex().clone()).or_insert(0);
            *count += 1;
            if *count == 1 {
                reporter.sink().emit(Update::Started { vertex: reporter.vertex().clone() });
            }
        }
        interval
    }

    fn close<T>(mut self, outcome: &Result<T, Fault>) {
        self.end(outcome.as_ref().err().map(Fault::to_string));
    }

    fn end(&mut self, error: Option<String>) {
        let Some(reporter) = self.reporter.take() else { return };
        let vertex = reporter.vertex().clone();
        let mut running = self.home.0.intervals.lock().expect("no holder of the lock panics");
        let Some(count) = running.get_mut(&vertex) else { return };
        *count -= 1;
        if *count == 0 {
            running.remove(&vertex);
            reporter.sink().emit(Update::Completed { vertex, cached: false, error });
        }
    }
}

impl Drop for Interval {
    fn drop(&mut self) {
        self.end(Some("context canceled".into()));
    }
}
