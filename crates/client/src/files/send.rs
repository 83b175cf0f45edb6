//! The sending side of a transfer: announce everything, then answer requests.
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use fault::{Fault, Kind, Result};
use session::{Packet, PacketSink, PacketSource, go_mode};
use tokio::sync::mpsc;

use super::filter::Filter;
use super::walk::{self, WalkError};

/// Files that are read side by side.
const READERS: usize = 4;
/// Bytes of a file in one packet.
const CHUNK: usize = 128 << 10;
const QUEUE: usize = 64;

/// Paths of announced regular files by id; an id is spent by its request.
type Announced = Arc<Mutex<Vec<Option<String>>>>;

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

async fn forward(mut outgoing: mpsc::Receiver<Packet>, mut sink: Box<dyn PacketSink>) -> Result<()> {
    while let Some(packet) = outgoing.recv().await {
        sink.send(packet).await?;
    }
    Ok(())
}

/// Blocking.
fn announce(root: &Path, filter: &Filter, packets: &mpsc::Sender<Packet>, announced: &Announced) -> Result<()> {
    let outcome = walk::walk(root, filter, |stat| {
        let regular = stat.mode
            & (go_mode::DIR | go_mode::SYMLINK | go_mode::DEVICE | go_mode::NAMED_PIPE | go_mode::SOCKET | go_mode::IRREGULAR)
            == 0;
        announced.lock().expect("no holder of this lock panics").push(regular.then(|| stat.path.clone()));
        packets.blocking_send(Packet::Stat(stat)).map_err(|_| WalkError::Stopped)
    });
    match outcome {
        Ok(()) => packets.blocking_send(Packet::StatEnd).map_err(|_| Fault::of(Kind::Canceled, WalkError::Stopped)),
        Err(error) => {
            let text = fault::chain(&error);
            let _ = packets.blocking_send(Packet::Error(text));
            Err(Fault::of(Kind::Unknown, error))
        }
    }
}

async fn answer(
    source: &mut Box<dyn PacketSource>,
    requests: &mpsc::UnboundedSender<(u32, String)>,
    packets: &mpsc::Sender<Packet>,
    announced: &Announced,
) -> Result<()> {
    loop {
        match source.receive().await? {
            Some(Packet::Request { id }) => {
                let spent = || Fault::invalid(format!("invalid file id {id}"));
                let path = announced.lock().expect("no holder of this lock panics").get_mut(id as usize).and_then(Option::take);
                let _ = requests.send((id, path.ok_or_else(spent)?));
            }
            Some(Packet::Fin) => {
                let _ = packets.send(Packet::Fin).await;
                return Ok(());
            }
            Some(Packet::Error(text)) => return Err(Fault::new(Kind::Unknown, format!("error from receiver: {text}"))),
            Some(other) => return Err(Fault::invalid(format!("a receiver does not send {other:?}"))),
            None => return Err(Fault::new(Kind::Unavailable, "the receiver ended the transfer early")),
        }
    }
}

/// Blocking. Ends when nobody can ask any more.
fn read_wanted(root: &Path, packets: &mpsc::Sender<Packet>, wanted: &Mutex<mpsc::UnboundedReceiver<(u32, String)>>) -> Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        let next = wanted.lock().expect("no holder of this lock panics").blocking_recv();
        let Some((id, path)) = next else { return Ok(()) };
        // A file that is gone or unreadable by now is sent as empty, as upstream's sender does.
        if let Ok(mut file) = File::open(root.join(path)) {
            loop {
                buffer.resize(CHUNK, 0);
                let length = file.read(&mut buffer)?;
                if length == 0 {
                    break;
                }
                let data = buffer.split_to(length).freeze();
                if packets.blocking_send(Packet::Data { id, data }).is_err() {
                    return Ok(());
                }
            }
        }
        if packets.blocking_send(Packet::Data { id, data: Bytes::new() }).is_err() {
            return Ok(());
        }
    }
}
