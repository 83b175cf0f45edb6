//! The sending side of the file transfer protocol: entries first, then the files that the receiver asks for.
use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::mpsc as sync_mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fault::{Fault, Kind, Result};
use progress::Row;
use session::{FileStream, Packet, PacketSink, PacketSource};
use task::Cancel;
use tokio::sync::mpsc;

use crate::tree::{Entry, Shared};

/// Files that are read at a time, their content interleaved on the stream.
const READERS: usize = 4;
/// Bytes of a file in one packet.
const CHUNK: usize = 128 << 10;
/// Entries that go to the stream together.
const BATCH: usize = 64;
/// Batches that wait for the stream.
const QUEUE: usize = 8;
/// Progress is told this often.
const PERIOD: Duration = Duration::from_millis(100);
/// How long a broken stream may take to say why.
const GRACE: Duration = Duration::from_secs(1);

/// Sends `tree` and waits until the receiver has what it wants.
pub async fn send(tree: Shared, stream: Box<dyn FileStream>, cancel: &Cancel, row: Row) -> Result<()> {
    cancel.run(transfer(tree, stream, row)).await
}

type Batch = Vec<Packet>;
/// Regular files that were announced and not yet asked for.
type Files = Arc<Mutex<HashMap<u32, PathBuf>>>;

/// The walker and the readers have threads of their own, which end when their channels do.
async fn transfer(tree: Shared, stream: Box<dyn FileStream>, row: Row) -> Result<()> {
    let (mut sink, mut source) = stream.split();
    let (packets, batches) = mpsc::channel(QUEUE);
    let (requests, queue) = sync_mpsc::channel();
    let (files, queue) = (Files::default(), Arc::new(Mutex::new(queue)));
    for _ in 0..READERS {
        let (tree, queue, packets) = (tree.clone(), queue.clone(), packets.clone());
        let read = move || {
            read_files(&tree, &queue, &packets);
            Ok(())
        };
        task::spawn("export reader", task::blocking(read));
    }
    let announced = files.clone();
    let walk = move || {
        walk(&tree, announced, &packets);
        Ok(())
    };
    task::spawn("export walk", task::blocking(walk));

    {
        let listen = listen(&mut source, files, requests);
        let pump = pump(batches, &mut sink, row);
        tokio::pin!(listen, pump);
        tokio::select! {
            asked = &mut listen => {
                asked?;
                pump.await.map_err(Broken::into_fault)?;
            }
            pumped = &mut pump => match pumped {
                Ok(()) => listen.await?,
                Err(Broken::Here(fault)) => return Err(fault),
                Err(Broken::There(fault)) => return match tokio::time::timeout(GRACE, listen).await {
                    Ok(Err(why)) => Err(why),
                    _ => Err(fault),
                },
            },
        }
    }
    sink.send(Packet::Fin).await?;
    drop(sink);
    while source.receive().await?.is_some() {}
    Ok(())
}

/// Which side a transfer failed on.
enum Broken {
    Here(Fault),
    There(Fault),
}

impl Broken {
    fn into_fault(self) -> Fault {
        match self {
            Self::Here(fault) | Self::There(fault) => fault,
        }
    }
}

/// Moves packets to the stream until the walker and the readers are done.
async fn pump(mut batches: mpsc::Receiver<Result<Batch>>, sink: &mut Box<dyn PacketSink>, mut row: Row) -> std::result::Result<(), Broken> {
    let (mut sent, mut told) = (0, Instant::now());
    while let Some(batch) = batches.recv().await {
        let batch = match batch {
            Ok(batch) => batch,
            Err(fault) => {
                // The receiver hears of it if it still listens.
                let _ = sink.send(Packet::Error(fault.to_string())).await;
                return Err(Broken::Here(fault));
            }
        };
        for packet in batch {
            sent += size(&packet);
            sink.send(packet).await.map_err(Broken::There)?;
        }
        if told.elapsed() >= PERIOD {
            told = Instant::now();
            row.set(sent);
        }
    }
    row.set(sent);
    Ok(())
}

/// About what a packet takes on the wire.
fn size(packet: &Packet) -> u64 {
    let bytes = match packet {
        Packet::Stat(stat) => {
            let xattrs: usize = stat.xattrs.iter().map(|(key, value)| key.len() + value.len() + 6).sum();
            stat.path.len() + stat.linkname.len() + xattrs + 30
        }
        Packet::Data { data, .. } => data.len() + 8,
        _ => 2,
    };
    bytes as u64
}

/// Takes requests until the receiver has all it wants.
async fn listen(source: &mut Box<dyn PacketSource>, files: Files, requests: sync_mpsc::Sender<(u32, PathBuf)>) -> Result<()> {
    loop {
        match source.receive().await? {
            Some(Packet::Request { id }) => {
                let path = files.lock().expect("no holder of this lock panics").remove(&id);
                let path = path.ok_or_else(|| Fault::invalid(format!("invalid file id {id}")))?;
                // Readers that are gone have said why.
                let _ = requests.send((id, path));
            }
            Some(Packet::Fin) => return Ok(()),
            Some(Packet::Error(text)) => return Err(Fault::new(Kind::Unknown, format!("error from receiver: {text}"))),
            Some(_) => {}
            None => return Err(Fault::new(Kind::Unavailable, "the client ended the transfer before it had all files")),
        }
    }
}

fn walk(tree: &Shared, files: Files, packets: &mpsc::Sender<Result<Batch>>) {
    let mut batch = Batch::with_capacity(BATCH);
    let mut id = 0;
    let mut announce = |entry: Entry| {
        if entry.is_file() {
            files.lock().expect("no holder of this lock panics").insert(id, entry.path.clone());
        }
        id += 1;
        batch.push(Packet::Stat(entry.into_stat()?));
        if batch.len() >= BATCH {
            packets.blocking_send(Ok(std::mem::take(&mut batch))).map_err(|_| abandoned())?;
        }
        Ok(())
    };
    let outcome = tree.walk(&mut announce);
    batch.push(Packet::StatEnd);
    // Nobody listens any more: then there is nothing to tell.
    let _ = packets.blocking_send(outcome.map(|()| batch));
}

fn read_files(tree: &Shared, queue: &Mutex<sync_mpsc::Receiver<(u32, PathBuf)>>, packets: &mpsc::Sender<Result<Batch>>) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let next = queue.lock().expect("no holder of this lock panics").recv();
        let Ok((id, path)) = next else { return };
        if let Err(fault) = read_file(tree, id, &path, &mut buffer, packets) {
            let _ = packets.blocking_send(Err(fault.context(format!("failed to send {}", path.display()))));
            return;
        }
    }
}

fn read_file(tree: &Shared, id: u32, path: &Path, buffer: &mut [u8], packets: &mpsc::Sender<Result<Batch>>) -> Result<()> {
    let mut file = tree.open(path)?;
    loop {
        let filled = fill(&mut *file, buffer)?;
        let last = filled < buffer.len();
        let mut batch = Batch::new();
        if filled > 0 {
            batch.push(Packet::Data { id, data: Bytes::copy_from_slice(&buffer[..filled]) });
        }
        if last {
            batch.push(Packet::Data { id, data: Bytes::new() });
        }
        packets.blocking_send(Ok(batch)).map_err(|_| abandoned())?;
        if last {
            return Ok(());
        }
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut dyn Read, buffer: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(filled)
}

fn abandoned() -> Fault {
    Fault::new(Kind::Canceled, "the transfer was given up")
}

#[cfg(test)]
mod tests {

    use async_trait::async_trait;
    use progress::Reporter;

    use super::*;
    use crate::tree::tests::Listed;
    use crate::tree::{Entry, Tree};

    /// Both ends in memory, the client's end scripted by a test.
    struct Wire {
        out: mpsc::Sender<Packet>,
        back: mpsc::Receiver<Result<Packet>>,
    }

    struct Out(mpsc::Sender<Packet>);
    struct Back(mpsc::Receiver<Result<Packet>>);

    #[async_trait]
    impl PacketSink for Out {
        async fn send(&mut self, packet: Packet) -> Result<()> {
            self.0.send(packet).await.map_err(|_| Fault::new(Kind::Unavailable, "stream closed"))
        }
    }

    #[async_trait]
    impl PacketSource for Back {
        async fn receive(&mut self) -> Result<Option<Packet>> {
            self.0.recv().await.transpose()
        }
    }

    #[async_trait]
    impl FileStream for Wire {
        async fn send(&mut self, _: Packet) -> Result<()> {
            unreachable!("the sender splits the stream")
        }
        async fn receive(&mut self) -> Result<Option<Packet>> {
            unreachable!("the sender splits the stream")
        }
        fn split(self: Box<Self>) -> (Box<dyn PacketSink>, Box<dyn PacketSource>) {
            (Box::new(Out(self.out)), Box::new(Back(self.back)))
        }
    }

    struct Client {
        packets: mpsc::Receiver<Packet>,
        answers: Option<mpsc::Sender<Result<Packet>>>,
        sending: task::Task<Result<()>>,
    }

    fn start(tree: Shared) -> Client {
        let (out, packets) = mpsc::channel(1);
        let (answers, back) = mpsc::channel(1024);
        let row = Reporter::silent().row("copying files", "transferring", 0);
        let sending = task::spawn("send", async move { send(tree, Box::new(Wire { out, back }), &Cancel::new(), row).await });
        Client { packets, answers: Some(answers), sending }
    }

    impl Client {
        async fn stats(&mut self) -> Vec<String> {
            let mut paths = Vec::new();
            loop {
                match self.packets.recv().await {
                    Some(Packet::Stat(stat)) => paths.push(stat.path),
                    Some(Packet::StatEnd) => return paths,
                    other => panic!("wanted entries, got {other:?}"),
                }
            }
        }

        async fn answer(&self, packet: Packet) {
            self.answers.as_ref().unwrap().send(Ok(packet)).await.unwrap();
        }

        /// Ends both directions and gives how the sender ended.
        async fn end(mut self) -> Result<()> {
            self.answers = None;
            while self.packets.recv().await.is_some() {}
            self.sending.join().await.unwrap()
        }
    }

    #[tokio::test]
    async fn sends_entries_then_what_is_asked_for() {
        let big = vec![7u8; 3 * CHUNK + 1];
        let tree = Listed::default().dir("d").file("d/big", &big).file("empty", b"").file("exact", &vec![1; CHUNK]).file("unwanted", b"x");
        let mut client = start(tree.shared());
        assert_eq!(client.stats().await, ["d", "d/big", "empty", "exact", "unwanted"]);
        for id in [1, 2, 3] {
            client.answer(Packet::Request { id }).await;
        }
        let (mut contents, mut open) = (HashMap::<u32, Vec<u8>>::new(), 3);
        while open > 0 {
            match client.packets.recv().await.unwrap() {
                Packet::Data { id, data } if data.is_empty() => {
                    contents.entry(id).or_default();
                    open -= 1;
                }
                Packet::Data { id, data } => contents.entry(id).or_default().extend_from_slice(&data),
                other => panic!("{other:?}"),
            }
        }
        assert!(contents[&1] == big && contents[&2].is_empty() && contents[&3].len() == CHUNK && contents.len() == 3);
        client.answer(Packet::Fin).await;
        assert_eq!(client.packets.recv().await, Some(Packet::Fin));
        client.end().await.unwrap();
    }

    #[tokio::test]
    async fn the_receivers_reason_is_the_error() {
        let mut client = start(Listed::default().file("a", b"1").shared());
        client.stats().await;
        client.answer(Packet::Error("disk full".into())).await;
        assert_eq!(client.end().await.unwrap_err().to_string(), "error from receiver: disk full");

        let mut client = start(Listed::default().file("a", b"1").dir("d").shared());
        client.stats().await;
        client.answer(Packet::Request { id: 1 }).await;
        assert_eq!(client.end().await.unwrap_err().to_string(), "invalid file id 1");

        // A stream that breaks under the sender says why on its other half.
        let many = (0..1000).fold(Listed::default(), |tree, n| tree.file(&format!("f{n:04}"), b"1"));
        let mut client = start(many.shared());
        client.packets.recv().await.unwrap();
        client.packets.close();
        while client.packets.recv().await.is_some() {}
        client.answers.as_ref().unwrap().send(Err(Fault::new(Kind::Denied, "not in my home"))).await.unwrap();
        assert_eq!(client.end().await.unwrap_err().to_string(), "not in my home");
    }

    /// Fails to walk, or to open.
    struct Failing(Option<Entry>);

    impl Tree for Failing {
        fn walk(&self, visit: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
            match &self.0 {
                Some(entry) => visit(entry.clone()),
                None => Err(Fault::new(Kind::Unknown, "bad disk")),
            }
        }
        fn open(&self, _: &Path) -> Result<Box<dyn Read + Send>> {
            Err(Fault::new(Kind::Unknown, "bad file"))
        }
    }

    #[tokio::test]
    async fn a_failure_here_is_told_and_returned() {
        let mut client = start(Arc::new(Failing(None)));
        assert_eq!(client.packets.recv().await, Some(Packet::Error("bad disk".into())));
        assert_eq!(client.end().await.unwrap_err().to_string(), "bad disk");

        let mut client = start(Arc::new(Failing(Some(Entry::file("a", 0o644, 0, 1)))));
        client.stats().await;
        client.answer(Packet::Request { id: 0 }).await;
        assert_eq!(client.packets.recv().await, Some(Packet::Error("failed to send a: bad file".into())));
        assert_eq!(client.end().await.unwrap_err().to_string(), "failed to send a: bad file");
    }
}
