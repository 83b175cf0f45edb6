//! Drives one file sync: packets in on one task, writing on a blocking thread, requests out on another.
//!
//! What came and is not yet written is bounded for data. Entries are never kept waiting: they all end up in memory anyway, and a client sends them
//! without being asked, so that they would pile up in the connection instead.
use std::sync::Arc;

use bytes::Bytes;
use fault::{Fault, Kind};
use progress::Row;
use session::{FileStream, Packet, PacketSink, PacketSource, Stat};
use task::Cancel;
use tokio::sync::{Semaphore, mpsc};

use super::error::LocalError;
use super::pace;
use super::writer::{Synced, Writer};

/// Receives a directory. On failure the client is told why.
pub(crate) async fn receive(stream: Box<dyn FileStream>, writer: Writer, row: Row, cancel: &Cancel) -> fault::Result<Synced> {
    let (mut sink, source) = stream.split();
    let (packets, queue) = queue();
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

/// Bytes of data that may wait for the disk before the client does. All that is asked for before the end of the entries fits.
const ROOM: usize = pace::BYTES as usize;

/// What the writer has yet to take.
struct Queue {
    inputs: mpsc::UnboundedReceiver<Vec<Input>>,
    room: Arc<Semaphore>,
}

struct Packets {
    inputs: mpsc::UnboundedSender<Vec<Input>>,
    room: Arc<Semaphore>,
}

fn queue() -> (Packets, Queue) {
    let ((to, inputs), room) = (mpsc::unbounded_channel(), Arc::new(Semaphore::new(ROOM)));
    (Packets { inputs: to, room: Arc::clone(&room) }, Queue { inputs, room })
}

impl Packets {
    /// Waits for room. Where the writer has ended, it has all that it wanted, or reports an error itself.
    async fn pass(&self, inputs: Vec<Input>) {
        if let Ok(room) = self.room.acquire_many(weight(&inputs)).await {
            room.forget();
        }
        let _ = self.inputs.send(inputs);
    }
}

impl Queue {
    fn next(&mut self) -> Option<Vec<Input>> {
        let inputs = self.inputs.blocking_recv()?;
        self.room.add_permits(weight(&inputs) as usize);
        Some(inputs)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.room.close();
    }
}

fn weight(inputs: &[Input]) -> u32 {
    let bytes = inputs.iter().map(|input| if let Input::Data(_, data) = input { data.len() } else { 0 });
    bytes.sum::<usize>().min(ROOM) as u32
}

/// Passes on what the client sends. What is wrong with that is for the writer to say, which reads it later, so a stream that breaks is no error until the
/// writer has seen all that came before: a client that lies and leaves has lied.
async fn take(source: Box<dyn PacketSource>, packets: Packets, row: Row) -> fault::Result<Option<Fault>> {
    let failure = pass_on(source, &packets, row).await.err();
    if failure.is_some() {
        packets.pass(vec![Input::Broken]).await;
    }
    Ok(failure)
}

/// Until the client has answered our end with its own.
async fn pass_on(mut source: Box<dyn PacketSource>, packets: &Packets, mut row: Row) -> fault::Result<()> {
    loop {
        let some = source.receive_some().await?;
        if some.is_empty() {
            return Err(LocalError::Ended.into());
        }
        let (mut bytes, mut inputs, mut end) = (0, Vec::with_capacity(some.len()), None);
        for packet in some {
            inputs.push(match packet {
                Packet::Stat(stat) => {
                    bytes += stat.path.len() + stat.linkname.len() + 32;
                    Input::Stat(stat)
                }
                Packet::StatEnd => Input::StatEnd,
                Packet::Data { id, data } => {
                    bytes += data.len() + 8;
                    Input::Data(id, data)
                }
                other => {
                    end = Some(other);
                    break;
                }
            });
        }
        row.add(bytes as u64);
        packets.pass(inputs).await;
        match end {
            None => {}
            Some(Packet::Error(message)) => return Err(LocalError::Sender { message }.into()),
            Some(Packet::Request { id }) => return Err(LocalError::Id { id }.into()),
            Some(_) => break,
        }
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
        sink.send_some(ids.into_iter().map(|id| Packet::Request { id }).collect()).await?;
    }
    // The writer failed or gave up; what it says counts.
    Ok(())
}

/// Runs on a blocking thread. An empty list of requests says that all is written; `None` that the stream broke before.
fn write(mut writer: Writer, mut queue: Queue, requests: &mpsc::UnboundedSender<Vec<u32>>) -> fault::Result<Option<Synced>> {
    let gone = || Fault::new(Kind::Canceled, "the transfer was given up");
    while !writer.is_complete() {
        for input in queue.next().ok_or_else(gone)? {
            match input {
                Input::Stat(stat) => writer.entry(stat)?,
                Input::StatEnd => writer.end()?,
                Input::Data(id, data) => writer.data(id, data)?,
                Input::Broken => return Ok(None),
            }
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
