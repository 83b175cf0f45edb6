use std::path::PathBuf;

use bytes::Bytes;
use oci::Digest;
use tokio::sync::mpsc;

use crate::error::{Error, Result};
use crate::hold::Hold;
use crate::store::Store;

/// Chunks that may wait for the disk before the sender does.
const QUEUE: usize = 8;

/// An [`crate::Ingest`] for async callers: hashing and writing happen on a blocking thread while the next chunk is on its way.
pub struct IngestStream {
    chunks: Option<mpsc::Sender<Message>>,
    outcome: task::Task<Result<Option<Hold>>>,
    offset: u64,
    path: PathBuf,
}

enum Message {
    Data(Bytes),
    Truncate,
    Commit,
}

impl IngestStream {
    pub(crate) async fn open(store: Store, key: String, expected: Option<(Digest, u64)>) -> Result<Self> {
        let (chunks, queue) = mpsc::channel(QUEUE);
        let (opened, offset) = tokio::sync::oneshot::channel();
        let outcome = task::spawn("ingest", async move {
            let work = move || write(store, &key, expected, queue, opened);
            let span = tracing::Span::current();
            tokio::task::spawn_blocking(move || span.in_scope(work)).await.unwrap_or(Err(Error::Writer))
        });
        match offset.await {
            Ok((offset, path)) => Ok(Self { chunks: Some(chunks), outcome, offset, path }),
            Err(_) => match outcome.join().await {
                Ok(Err(error)) => Err(error),
                _ => Err(Error::Writer),
            },
        }
    }

    /// Where the source must go on: what an earlier ingest left, plus what was written to this one.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// What an earlier ingest left, for who wants the whole stream. To be called before anything is written to this one.
    pub fn earlier(&self) -> Result<std::io::Take<std::fs::File>> {
        crate::ingest::earlier(&self.path, self.offset)
    }

    /// Queues a chunk; waits if the disk is behind.
    pub async fn write(&mut self, data: Bytes) -> Result<()> {
        let length = data.len() as u64;
        self.send(Message::Data(data)).await?;
        self.offset += length;
        Ok(())
    }

    pub async fn truncate(&mut self) -> Result<()> {
        self.send(Message::Truncate).await?;
        self.offset = 0;
        Ok(())
    }

    pub async fn commit(mut self) -> Result<Hold> {
        self.send(Message::Commit).await?;
        self.chunks = None;
        self.outcome.join().await.map_err(|_| Error::Writer)??.ok_or(Error::Writer)
    }

    async fn send(&mut self, message: Message) -> Result<()> {
        let Some(chunks) = &self.chunks else { return Err(Error::Writer) };
        if chunks.send(message).await.is_ok() {
            return Ok(());
        }
        // The writer ended: it knows why.
        self.chunks = None;
        let nobody = task::spawn("ingest", async { Err(Error::Writer) });
        match std::mem::replace(&mut self.outcome, nobody).join().await {
            Ok(Err(error)) => Err(error),
            _ => Err(Error::Writer),
        }
    }
}

/// Runs on a blocking thread until told to commit. If the sender goes away first the partial blob stays.
fn write(
    store: Store,
    key: &str,
    expected: Option<(Digest, u64)>,
    mut queue: mpsc::Receiver<Message>,
    opened: tokio::sync::oneshot::Sender<(u64, PathBuf)>,
) -> Result<Option<Hold>> {
    let mut ingest = store.ingest(key, expected)?;
    let _ = opened.send((ingest.offset(), ingest.path().to_owned()));
    while let Some(message) = queue.blocking_recv() {
        match message {
            Message::Data(data) => ingest.write(&data)?,
            Message::Truncate => ingest.truncate()?,
            Message::Commit => return ingest.commit().map(Some),
        }
    }
    Ok(None)
}
