//! Blobs come in, each once, and are unpacked on the way if there is room for that.
use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use content::{Hold, IngestStream};
use fault::Fault;
use futures_util::StreamExt as _;
use oci::{Descriptor, Digest};
use progress::{Reporter, Row};
use task::{Cancel, Task};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::error::{Error, Result};
use crate::image::BlobSource;
use crate::node::{Layer, Node};
use crate::realize::unpack_blob;
use crate::store::Layers;
use crate::unpack::Unpacked;

/// Waits before a failed download goes on.
const RETRIES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];
/// Chunks between the network and the unpacking.
const QUEUE: usize = 16;
/// Bytes that are passed on at once.
const GATHER: usize = 128 << 10;

type Fresh = (snapshot::Draft, Unpacked);

impl Layer {
    /// Brings one of this layer's blobs here if it is not. `digest` is one of [`Layer::known_blobs`]. Waits for room below the ceiling, so whoever has
    /// [`crate::Room`] already must not ask for it.
    pub async fn fetch_blob(&self, digest: &Digest, cancel: &Cancel, reporter: &Reporter) -> fault::Result<Hold> {
        let blob = self.known_blobs().into_iter().find(|blob| blob.digest == *digest);
        let blob = blob.ok_or_else(|| Error::NoSource { id: self.id(), digest: digest.clone() })?;
        let _room = match self.0.home.content().has(digest)? {
            Some(_) => None,
            None => Some(self.0.home.room(cancel).await?),
        };
        let owner = self.0.state().source.as_ref().and_then(|source| source.reporter());
        self.0.home.bring(&self.0, &blob, None, cancel, owner.as_ref().unwrap_or(reporter)).await?;
        let hold = self.0.home.content().hold(digest)?;
        Ok(hold.ok_or_else(|| content::Error::NotFound { digest: digest.clone() })?)
    }
}

impl Layers {
    pub(crate) async fn acquire(&self, permits: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Fault> {
        permits.clone().acquire_owned().await.map_err(|_| Fault::internal("a budget is never closed"))
    }

    /// Brings a blob into the content store. With `unpack` (the diff id to expect, if known) also unpacks it while it comes, if it has to
    /// come and there is room; `None` if it is here and still has to be unpacked.
    pub(crate) async fn bring(
        &self,
        node: &Arc<Node>,
        blob: &Descriptor,
        unpack: Option<Option<Digest>>,
        cancel: &Cancel,
        reporter: &Reporter,
    ) -> Result<Option<Fresh>, Fault> {
        let gate = self.gate(&blob.digest);
        let _turn = cancel.run(self.acquire(&gate)).await?;
        if self.content().has(&blob.digest)?.is_some() {
            return Ok(None);
        }
        let source = node.state().source.clone();
        let mut source = source.ok_or_else(|| Error::NoSource { id: node.id, digest: blob.digest.clone() })?;
        let key = format!("layer {}", blob.digest);
        loop {
            let permit = self.0.budget.unpacks.clone().try_acquire_owned().ok();
            let unpacking = unpack.clone().zip(permit).map(|(diff_id, permit)| Unpacking { diff_id, permit });
            let ingest = self.content().ingest_stream(&key, Some((blob.digest.clone(), blob.size))).await?;
            let resumed = ingest.offset() > 0;
            match self.download(blob, &*source, ingest, unpacking, cancel, reporter).await {
                // A power cut may have torn what was there. It is gone now, so this happens once.
                Err(Error::Content(content::Error::Mismatch { .. })) if resumed => {
                    tracing::warn!(digest = %blob.digest, "a partial download was damaged; starting over");
                }
                Err(error) if !cancel.is_cancelled() => match other_source(node, &source) {
                    Some(other) => source = other,
                    None => return Err(error.into()),
                },
                outcome => return Ok(outcome?),
            }
        }
    }

    /// One at a time for each blob.
    fn gate(&self, digest: &Digest) -> Arc<Semaphore> {
        let mut gates = self.0.gates.lock().expect("no holder of the lock panics");
        if gates.len() > 64 {
            gates.retain(|_, gate| gate.strong_count() > 0);
        }
        if let Some(gate) = gates.get(digest).and_then(std::sync::Weak::upgrade) {
            return gate;
        }
        let gate = Arc::new(Semaphore::new(1));
        gates.insert(digest.clone(), Arc::downgrade(&gate));
        gate
    }

    async fn download(
        &self,
        blob: &Descriptor,
        source: &dyn BlobSource,
        mut ingest: IngestStream,
        unpacking: Option<Unpacking>,
        cancel: &Cancel,
        reporter: &Reporter,
    ) -> Result<Option<Fresh>> {
        let mut row = reporter.row(blob.digest.as_str(), "", blob.size);
        row.set(ingest.offset());
        let mut feed = unpacking.map(|unpacking| self.start(blob, unpacking, &ingest, cancel)).transpose()?;
        let mut retries = RETRIES.iter();
        while ingest.offset() < blob.size {
            let Err(fault) = receive(blob, source, &mut ingest, feed.as_mut(), &mut row, cancel).await else { break };
            let wait = retries.next().filter(|_| fault.kind().retryable() && !cancel.is_cancelled());
            let Some(wait) = wait else { return Err(fault.context(format!("failed to copy {}", blob.digest)).into()) };
            reporter.log(2, format!("error: {fault}\nretrying in {}s\n", wait.as_secs()));
            let pause = async {
                tokio::time::sleep(*wait).await;
                Ok::<_, Fault>(())
            };
            cancel.run(pause).await?;
        }
        let _hold = ingest.commit().await?;
        row.set(blob.size);
        drop(row);
        match feed {
            None => Ok(None),
            Some(feed) => {
                let _row = reporter.row(format!("extracting {}", blob.digest), "extracting", 0);
                Ok(Some(feed.end().await?))
            }
        }
    }

    /// Starts to unpack what comes. What an earlier download left is read from its file.
    fn start(&self, blob: &Descriptor, unpacking: Unpacking, ingest: &IngestStream, cancel: &Cancel) -> Result<Feed, Fault> {
        let (chunks, queue) = mpsc::channel(QUEUE);
        let earlier = ingest.earlier()?;
        let (home, digest, cancel) = (self.clone(), blob.digest.clone(), cancel.child());
        let stop = cancel.clone();
        let work = task::spawn("unpack", async move {
            task::blocking(move || {
                let Unpacking { diff_id, permit: _permit } = unpacking;
                let start = io::BufReader::with_capacity(256 << 10, earlier);
                Ok(unpack_blob(&home, &digest, diff_id.as_ref(), start.chain(Chunks::new(queue)), &cancel)?)
            })
            .await
        });
        Ok(Feed { chunks: Some(chunks), work: Some(work), stop })
    }
}

/// Another source than the one that failed, if somebody has named one meanwhile. Who failed is not asked again: the next who wants the layer says where
/// it is.
fn other_source(node: &Node, failed: &Arc<dyn BlobSource>) -> Option<Arc<dyn BlobSource>> {
    let mut state = node.state();
    if state.source.as_ref().is_some_and(|source| Arc::ptr_eq(source, failed)) {
        state.source = None;
    }
    state.source.clone()
}

struct Unpacking {
    diff_id: Option<Digest>,
    permit: OwnedSemaphorePermit,
}

/// The unpacking side of a download. Dropped early, it stops the unpacking.
struct Feed {
    chunks: Option<mpsc::Sender<Bytes>>,
    work: Option<Task<Result<Fresh, Fault>>>,
    stop: Cancel,
}

impl Feed {
    /// The end of the data; only for data that was verified.
    async fn end(mut self) -> Result<Fresh, Fault> {
        self.chunks = None;
        self.work.take().expect("a feed ends once").join().await?
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        // A closed channel looks like the end of the data, so the cancellation comes first.
        if self.chunks.is_some() {
            self.stop.cancel("the download ended early");
        }
    }
}

/// Takes what the source gives until it ends.
async fn receive(
    blob: &Descriptor,
    source: &dyn BlobSource,
    ingest: &mut IngestStream,
    mut feed: Option<&mut Feed>,
    row: &mut Row,
    cancel: &Cancel,
) -> Result<(), Fault> {
    let mut stream = cancel.run(source.fetch(blob, ingest.offset())).await?;
    let mut gathered = BytesMut::new();
    loop {
        let next = cancel.run(async { stream.next().await.transpose() }).await;
        if let Ok(Some(chunk)) = &next {
            gathered.extend_from_slice(chunk);
        }
        // Small chunks cost more to pass on than to copy. What came before a failure is kept, too.
        let more = matches!(next, Ok(Some(_)));
        if !gathered.is_empty() && (!more || gathered.len() >= GATHER) {
            let chunk = gathered.split().freeze();
            ingest.write(chunk.clone()).await?;
            if let Some(Feed { chunks: Some(chunks), .. }) = feed.as_deref_mut() {
                // If unpacking has failed the download still goes on: its digest decides whose fault that was.
                let _ = chunks.send(chunk).await;
            }
            row.set(ingest.offset());
        }
        if next?.is_none() {
            break;
        }
    }
    if ingest.offset() < blob.size {
        let missing = format!("{} ended after {} of {} bytes", blob.digest, ingest.offset(), blob.size);
        return Err(Fault::new(fault::Kind::Unavailable, missing));
    }
    Ok(())
}

/// A queue of chunks as a reader, for a blocking thread.
struct Chunks {
    queue: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Chunks {
    fn new(queue: mpsc::Receiver<Bytes>) -> Self {
        Self { queue, current: Bytes::new() }
    }
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() {
            match self.queue.blocking_recv() {
                Some(chunk) => self.current = chunk,
                None => break,
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        let _ = self.current.split_to(amount);
    }
}

impl Read for Chunks {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let taken = available.len().min(out.len());
        out[..taken].copy_from_slice(&available[..taken]);
        self.consume(taken);
        Ok(taken)
    }
}
