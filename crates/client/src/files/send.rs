//! The sending side of a transfer: announce everything, then answer requests.
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use fault::{Fault, Kind, Result};
use session::{Packet, PacketSink, PacketSource, go_mode};
use tokio::sync::mpsc;

use super::filter::Filter;
use super::walk::{self, WalkError};

/// Files that are read side by side.
const READERS: usize = 4;
/// Bytes of a file in one packet.
const CHUNK: usize = 128 << 10;
/// Packets that go to the stream together.
const BATCH: usize = 64;
/// Batches that wait for the stream.
const QUEUE: usize = 4;

type Batch = Vec<Packet>;
/// Announced regular files by id; an id is spent by its request.
type Announced = Arc<Mutex<Vec<Option<Wanted>>>>;

/// A file that may be asked for, or was.
struct Wanted {
    path: String,
    /// As it was announced; only says how much memory to take.
    size: u64,
}

/// Sends what `filter` lets through of `root`, and ends when the receiver has all it wants.
pub async fn send(root: PathBuf, filter: Filter, sink: Box<dyn PacketSink>, mut source: Box<dyn PacketSource>) -> Result<()> {
    let (packets, outgoing) = mpsc::channel(QUEUE);
    let (requests, wanted) = mpsc::unbounded_channel();
    let announced = Announced::default();
    let forward = forward(outgoing, sink);

    let walking = {
        let (root, packets, announced) = (root.clone(), packets.clone(), announced.clone());
        task::blocking(move || announce(&root, &filter, &packets, &announced))
    };
    let wanted = Arc::new(Mutex::new(wanted));
    let reading = (0..READERS).map(|_| {
        let (root, packets, wanted) = (root.clone(), packets.clone(), wanted.clone());
        task::blocking(move || read_wanted(&root, &packets, &wanted))
    });
    let reading = futures_util::future::try_join_all(reading);
    let answering = async {
        // Owned here, so that the readers end when the receiver is done, and the stream when the readers are.
        let (requests, packets) = (requests, packets);
        answer(&mut source, &requests, &packets, &announced).await
    };
    let all = futures_util::future::try_join3(walking, reading, answering);
    let (outcome, forwarded) = tokio::join!(all, forward);
    outcome?;
    forwarded
}

async fn forward(mut outgoing: mpsc::Receiver<Batch>, mut sink: Box<dyn PacketSink>) -> Result<()> {
    while let Some(batch) = outgoing.recv().await {
        for packet in batch {
            sink.send(packet).await?;
        }
    }
    Ok(())
}

/// Blocking.
fn announce(root: &Path, filter: &Filter, packets: &mpsc::Sender<Batch>, announced: &Announced) -> Result<()> {
    let mut batch = Batch::with_capacity(BATCH);
    let outcome = walk::walk(root, filter, |stat| {
        let regular = stat.mode
            & (go_mode::DIR | go_mode::SYMLINK | go_mode::DEVICE | go_mode::NAMED_PIPE | go_mode::SOCKET | go_mode::IRREGULAR)
            == 0;
        let wanted = regular.then(|| Wanted { path: stat.path.clone(), size: u64::try_from(stat.size).unwrap_or(0) });
        announced.lock().expect("no holder of this lock panics").push(wanted);
        batch.push(Packet::Stat(stat));
        if batch.len() < BATCH { Ok(()) } else { packets.blocking_send(std::mem::take(&mut batch)).map_err(|_| WalkError::Stopped) }
    });
    batch.push(match &outcome {
        Ok(()) => Packet::StatEnd,
        Err(error) => Packet::Error(fault::chain(error)),
    });
    let sent = packets.blocking_send(batch);
    outcome.map_err(|error| Fault::of(Kind::Unknown, error))?;
    sent.map_err(|_| Fault::of(Kind::Canceled, WalkError::Stopped))
}

async fn answer(
    source: &mut Box<dyn PacketSource>,
    requests: &mpsc::UnboundedSender<(u32, Wanted)>,
    packets: &mpsc::Sender<Batch>,
    announced: &Announced,
) -> Result<()> {
    loop {
        match source.receive().await? {
            Some(Packet::Request { id }) => {
                let spent = || Fault::invalid(format!("invalid file id {id}"));
                let wanted = announced.lock().expect("no holder of this lock panics").get_mut(id as usize).and_then(Option::take);
                let _ = requests.send((id, wanted.ok_or_else(spent)?));
            }
            Some(Packet::Fin) => {
                let _ = packets.send(vec![Packet::Fin]).await;
                return Ok(());
            }
            Some(Packet::Error(text)) => return Err(Fault::new(Kind::Unknown, format!("error from receiver: {text}"))),
            Some(other) => return Err(Fault::invalid(format!("a receiver does not send {other:?}"))),
            None => return Err(Fault::new(Kind::Unavailable, "the receiver ended the transfer early")),
        }
    }
}

/// Blocking. Ends when nobody can ask any more.
fn read_wanted(root: &Path, packets: &mpsc::Sender<Batch>, wanted: &Mutex<mpsc::UnboundedReceiver<(u32, Wanted)>>) -> Result<()> {
    loop {
        let next = wanted.lock().expect("no holder of this lock panics").blocking_recv();
        let Some((id, wanted)) = next else { return Ok(()) };
        let mut batch = Batch::new();
        // A file that is gone or unreadable by now is sent as empty, as upstream's sender does.
        if let Ok(mut file) = File::open(root.join(wanted.path)) {
            let mut left = wanted.size;
            loop {
                let data = read(&mut file, left)?;
                left = left.saturating_sub(data.len() as u64);
                let is_last = data.len() < CHUNK;
                if !data.is_empty() {
                    batch.push(Packet::Data { id, data: data.into() });
                }
                if is_last {
                    break;
                }
                if packets.blocking_send(std::mem::take(&mut batch)).is_err() {
                    return Ok(());
                }
            }
        }
        batch.push(Packet::Data { id, data: Bytes::new() });
        if packets.blocking_send(batch).is_err() {
            return Ok(());
        }
    }
}

/// The next bytes of a file that should have as many `left`; fewer than a packet takes only at its end.
fn read(file: &mut File, left: u64) -> io::Result<Vec<u8>> {
    // With room for one byte more, the end shows without another round.
    let mut data = Vec::with_capacity(usize::try_from(left.saturating_add(1)).unwrap_or(CHUNK).min(CHUNK));
    file.take(CHUNK as u64).read_to_end(&mut data)?;
    Ok(data)
}
