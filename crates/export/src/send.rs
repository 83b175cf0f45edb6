//! The sending side of the file transfer protocol: entries first, then the files that the receiver asks for.
use std::collections::HashMap;
use std::io::Read;
use std::path::PathBuf;
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
/// Packets that go to the stream together, and about how many bytes of files may be in them.
const BATCH: usize = 64;
const BATCH_BYTES: usize = 256 << 10;
/// Files that one reader takes at a time.
const SHARE: usize = 32;
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
type Files = Arc<Mutex<HashMap<u32, Wanted>>>;

/// A file that may be asked for, or was.
struct Wanted {
    id: u32,
    path: PathBuf,
    /// As it was announced.
    size: u64,
}

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
        sent += batch.iter().map(size).sum::<u64>();
        sink.send_some(batch).await.map_err(Broken::There)?;
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
async fn listen(source: &mut Box<dyn PacketSource>, files: Files, requests: sync_mpsc::Sender<Vec<Wanted>>) -> Result<()> {
    loop {
        let mut share = Vec::new();
        let packets = source.receive_some().await?;
        if packets.is_empty() {
            return Err(Fault::new(Kind::Unavailable, "the client ended the transfer before it had all files"));
        }
        for packet in packets {
            match packet {
                Packet::Request { id } => {
                    let wanted = files.lock().expect("no holder of this lock panics").remove(&id);
                    share.push(wanted.ok_or_else(|| Fault::invalid(format!("invalid file id {id}")))?);
                    if share.len() == SHARE {
                        // Readers that are gone have said why.
                        let _ = requests.send(std::mem::take(&mut share));
                    }
                }
                Packet::Fin => return Ok(()),
                Packet::Error(text) => return Err(Fault::new(Kind::Unknown, format!("error from receiver: {text}"))),
                _ => {}
            }
        }
        if !share.is_empty() {
            let _ = requests.send(share);
        }
    }
}

fn walk(tree: &Shared, files: Files, packets: &mpsc::Sender<Result<Batch>>) {
    let mut batch = Batch::with_capacity(BATCH);
    let mut id = 0;
    let mut announce = |entry: Entry| {
        if entry.is_file() {
            let wanted = Wanted { id, path: entry.path.clone(), size: entry.size };
            files.lock().expect("no holder of this lock panics").insert(id, wanted);
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

fn read_files(tree: &Shared, queue: &Mutex<sync_mpsc::Receiver<Vec<Wanted>>>, packets: &mpsc::Sender<Result<Batch>>) {
    loop {
        let next = queue.lock().expect("no holder of this lock panics").recv();
        let Ok(share) = next else { return };
        let mut out = Outbox { batch: Batch::new(), bytes: 0, packets };
        for wanted in &share {
            if let Err(fault) = read_file(tree, wanted, &mut out) {
                let _ = packets.blocking_send(Err(fault.context(format!("failed to send {}", wanted.path.display()))));
                return;
            }
        }
        if out.flush().is_err() {
            return;
        }
    }
}

fn read_file(tree: &Shared, wanted: &Wanted, out: &mut Outbox) -> Result<()> {
    let id = wanted.id;
    let mut file = tree.open(&wanted.path)?;
    let mut left = wanted.size;
    while left > 0 {
        // Trees do not change, so that nobody needs to read on to see the end.
        let some = left.min(CHUNK as u64);
        let mut data = Vec::with_capacity(some as usize);
        let read = (&mut *file).take(some).read_to_end(&mut data)?;
        if read > 0 {
            out.put(Packet::Data { id, data: data.into() }, read)?;
        }
        left = if read as u64 == some { left - some } else { 0 };
    }
    out.put(Packet::Data { id, data: Bytes::new() }, 0)
}

/// Collects what goes to the stream together: files are mostly smaller than what it takes to pass them on.
struct Outbox<'a> {
    batch: Batch,
    bytes: usize,
    packets: &'a mpsc::Sender<Result<Batch>>,
}

impl Outbox<'_> {
    fn put(&mut self, packet: Packet, bytes: usize) -> Result<()> {
        self.batch.push(packet);
        self.bytes += bytes;
        if self.batch.len() >= BATCH || self.bytes >= BATCH_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        self.bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() { Ok(()) } else { self.packets.blocking_send(Ok(batch)).map_err(|_| abandoned()) }
    }
}

fn abandoned() -> Fault {
    Fault::new(Kind::Canceled, "the transfer was given up")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

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
    async fn many_small_files_go_together_and_none_gets_lost() {
        let name = |n: u32| format!("f{n:04}");
        let tree = (0..1000).fold(Listed::default(), |tree, n| tree.file(&name(n), name(n).repeat(n as usize % 5).as_bytes()));
        let mut client = start(tree.shared());
        assert_eq!(client.stats().await.len(), 1000);
        for id in (0..1000).rev() {
            client.answer(Packet::Request { id }).await;
        }
        let (mut contents, mut open) = (HashMap::<u32, Vec<u8>>::new(), 1000);
        while open > 0 {
            match client.packets.recv().await.unwrap() {
                Packet::Data { data, .. } if data.is_empty() => open -= 1,
                Packet::Data { id, data } => contents.entry(id).or_default().extend_from_slice(&data),
                other => panic!("{other:?}"),
            }
        }
        for id in 0..1000 {
            assert_eq!(contents.remove(&id).unwrap_or_default(), name(id).repeat(id as usize % 5).into_bytes());
        }
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
