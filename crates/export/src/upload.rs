//! A stream made by blocking code, on its way to the client.
use std::io::{self, Write};

use bytes::{Bytes, BytesMut};
use fault::{Fault, Kind, Result};
use session::Upload;
use tokio::sync::mpsc;

/// Bytes in one message: large enough that hops between threads do not count.
const CHUNK: usize = 512 << 10;
/// Messages that wait for the client.
const QUEUE: usize = 4;

/// Runs `produce` on a thread of its own and uploads what it writes. Ends when the client has all of it.
pub async fn upload(mut upload: Box<dyn Upload>, produce: impl FnOnce(&mut Chunks) -> Result<()> + Send + 'static) -> Result<()> {
    let (sender, mut chunks) = mpsc::channel(QUEUE);
    let producing = task::spawn(
        "export stream",
        task::blocking(move || {
            let mut out = Chunks { buffer: BytesMut::with_capacity(CHUNK), sender };
            produce(&mut out)?;
            Ok(out.flush()?)
        }),
    );
    while let Some(chunk) = chunks.recv().await {
        upload.write(chunk).await?;
    }
    // Without an end the client knows that the stream is not whole.
    producing.join().await??;
    upload.finish().await
}

/// Collects small writes.
pub struct Chunks {
    buffer: BytesMut,
    sender: mpsc::Sender<Bytes>,
}

impl Chunks {
    fn send(&mut self) -> io::Result<()> {
        let full = std::mem::replace(&mut self.buffer, BytesMut::with_capacity(CHUNK)).freeze();
        self.sender.blocking_send(full).map_err(|_| io::Error::other("the upload was given up"))
    }

    /// Copies `size` bytes; fewer are an error.
    pub fn copy(&mut self, source: &mut dyn io::Read, size: u64, name: &dyn std::fmt::Display) -> Result<()> {
        let mut left = size;
        while left > 0 {
            let room = CHUNK - self.buffer.len();
            let start = self.buffer.len();
            self.buffer.resize(start + usize::try_from(left).unwrap_or(usize::MAX).min(room), 0);
            let read = read_some(source, &mut self.buffer[start..])?;
            self.buffer.truncate(start + read);
            if read == 0 {
                return Err(Fault::new(Kind::Internal, format!("{name} is {left} bytes shorter than it was said to be")));
            }
            left -= read as u64;
            if self.buffer.len() == CHUNK {
                self.send()?;
            }
        }
        Ok(())
    }
}

fn read_some(source: &mut dyn io::Read, out: &mut [u8]) -> io::Result<usize> {
    loop {
        match source.read(out) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

impl Write for Chunks {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let taken = data.len().min(CHUNK - self.buffer.len());
        self.buffer.extend_from_slice(&data[..taken]);
        if self.buffer.len() == CHUNK {
            self.send()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() { Ok(()) } else { self.send() }
    }
}

#[cfg(test)]
pub mod tests {
    use std::sync::{Arc, Mutex};

    use async_trait::async_trait;

    use super::*;

    /// Remembers what came, and whether the end came.
    #[derive(Clone, Default)]
    pub struct Received(pub Arc<Mutex<(Vec<u8>, bool)>>);

    #[async_trait]
    impl Upload for Received {
        async fn write(&mut self, data: Bytes) -> Result<()> {
            self.0.lock().unwrap().0.extend_from_slice(&data);
            Ok(())
        }
        async fn finish(self: Box<Self>) -> Result<()> {
            self.0.lock().unwrap().1 = true;
            Ok(())
        }
    }

    #[tokio::test]
    async fn all_bytes_arrive_in_order() {
        let received = Received::default();
        let file: Vec<u8> = (0..3 * CHUNK + 17).map(|n| (n % 251) as u8).collect();
        let want = [b"head".as_slice(), &file, b"tail"].concat();
        let produce = move |out: &mut Chunks| {
            out.write_all(b"head")?;
            out.copy(&mut file.as_slice(), file.len() as u64, &"file")?;
            Ok(out.write_all(b"tail")?)
        };
        upload(Box::new(received.clone()), produce).await.unwrap();
        let got = received.0.lock().unwrap();
        assert!(got.0 == want && got.1);
    }

    #[tokio::test]
    async fn a_producer_that_fails_does_not_end_the_stream() {
        let received = Received::default();
        let failure = upload(Box::new(received.clone()), |out| out.copy(&mut [1u8].as_slice(), 2, &"a")).await.unwrap_err();
        assert_eq!(failure.to_string(), "a is 1 bytes shorter than it was said to be");
        assert!(!received.0.lock().unwrap().1);
    }
}
