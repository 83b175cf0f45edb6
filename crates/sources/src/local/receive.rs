//! Drives one file sync: packets in on one task, writing on a blocking thread, requests out on another.
use bytes::Bytes;
use fault::{Fault, Kind};
use progress::Row;
use session::{FileStream, Packet, PacketSink, PacketSource, Stat};
use task::Cancel;
use tokio::sync::mpsc;

use super::error::LocalError;
use super::writer::{Synced, Writer};

/// Packets that may wait for the disk before the client does; a packet has at most some tens of kilobytes.
const QUEUE: usize = 256;

/// Receives a directory. On failure the client is told why.
pub(crate) async fn receive(stream: Box<dyn FileStream>, writer: Writer, row: Row, cancel: &Cancel) -> fault::Result<Synced> {
    let (mut sink, source) = stream.split();
    let (packets, queue) = mpsc::channel(QUEUE);
    let (requests, wanted) = mpsc::unbounded_channel();
    let writing = task::blocking(move || write(writer, queue, &requests));
    let outcome = cancel
        .run(async {
            let (synced, failure, ()) = tokio::try_join!(writing, take(source, packets, row), ask(sink.as_mut(), wanted))?;
            match (failure, synced) {
                (None, Some(synced)) => Ok(synced),
                (failure, _) => Err(failure.unwrap_or_else(|| LocalError::Ended.into())),
            }
        })
        .await;
    if let Err(fault) = &outcome {
        // The client may be gone; then nobody is left to be told.
        let _ = sink.send(Packet::Error(fault.to_string())).await;
    }
    outcome
}

enum Input {
    Stat(Stat),
    StatEnd,
    Data(u32, Bytes),
    /// Nothing more will come.
    Broken,
}

/// Passes on what the client sends. What is wrong with that is for the writer to say, which reads it later, so a stream that breaks is no error until the
/// writer has seen all that came before: a client that lies and leaves has lied.
async fn take(source: Box<dyn PacketSource>, packets: mpsc::Sender<Input>, row: Row) -> fault::Result<Option<Fault>> {
    let failure = pass_on(source, &packets, row).await.err();
    if failure.is_some() {
        let _ = packets.send(Input::Broken).await;
    }
    Ok(failure)
}

/// Until the client has answered our end with its own.
async fn pass_on(mut source: Box<dyn PacketSource>, packets: &mpsc::Sender<Input>, mut row: Row) -> fault::Result<()> {
    loop {
        let packet = source.receive().await?.ok_or(LocalError::Ended)?;
        let input = match packet {
            Packet::Stat(stat) => {
                row.add((stat.path.len() + stat.linkname.len()) as u64 + 32);
                Input::Stat(stat)
            }
            Packet::StatEnd => Input::StatEnd,
            Packet::Data { id, data } => {
                row.add(data.len() as u64 + 8);
                Input::Data(id, data)
            }
            Packet::Error(message) => return Err(LocalError::Sender { message }.into()),
            Packet::Fin => break,
            Packet::Request { id } => return Err(LocalError::Id { id }.into()),
        };
        // Where the writer has ended, it has all that it wanted, or reports an error itself.
        let _ = packets.send(input).await;
    }
    drop(row);
    while source.receive().await?.is_some() {}
    Ok(())
}

/// Sends requests while the writer makes them, then the end.
async fn ask(sink: &mut dyn PacketSink, mut wanted: mpsc::UnboundedReceiver<Vec<u32>>) -> fault::Result<()> {
    while let Some(ids) = wanted.recv().await {
        if ids.is_empty() {
            return sink.send(Packet::Fin).await;
        }
        for id in ids {
            sink.send(Packet::Request { id }).await?;
        }
    }
    // The writer failed or gave up; what it says counts.
    Ok(())
}

/// Runs on a blocking thread. An empty list of requests says that all is written; `None` that the stream broke before.
fn write(
    mut writer: Writer,
    mut queue: mpsc::Receiver<Input>,
    requests: &mpsc::UnboundedSender<Vec<u32>>,
) -> fault::Result<Option<Synced>> {
    let gone = || Fault::new(Kind::Canceled, "the transfer was given up");
    while !writer.is_complete() {
        match queue.blocking_recv().ok_or_else(gone)? {
            Input::Stat(stat) => writer.entry(stat)?,
            Input::StatEnd => writer.end()?,
            Input::Data(id, data) => writer.data(id, &data)?,
            Input::Broken => return Ok(None),
        }
        let wanted = writer.requests();
        if !wanted.is_empty() {
            requests.send(wanted).map_err(|_| gone())?;
        }
    }
    let synced = writer.finish()?;
    requests.send(Vec::new()).map_err(|_| gone())?;
    Ok(Some(synced))
}
