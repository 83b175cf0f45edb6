//! Bytes on their way from the thread that makes them to the one that has them compressed, a block at a time.
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use oci::{Digest, Hasher};

/// Blocks that may wait, beside the one that is being filled and the one that is being taken.
const WAITING: usize = 1;

/// A pipe whose blocks are `size` bytes long, but for the last one.
pub(super) fn pipe(size: usize) -> (Filling, Filled) {
    let (sender, receiver) = sync_channel(WAITING);
    (Filling { sender, hasher: Hasher::new(), block: Vec::new(), size }, Filled(receiver))
}

pub(super) struct Part {
    pub block: Vec<u8>,
    pub last: bool,
}

/// The end that is written to. [`Filling::finish`] must be called, or what was written counts as cut off.
pub(super) struct Filling {
    sender: SyncSender<Part>,
    /// Here, where the bytes are still in the processor's cache and the thread has time.
    hasher: Hasher,
    block: Vec<u8>,
    size: usize,
}

impl Filling {
    /// Hands over the last block, which is empty only if nothing was written. Gives the digest of all that was.
    pub fn finish(mut self) -> io::Result<Digest> {
        self.send(true)?;
        Ok(self.hasher.finish())
    }

    fn send(&mut self, last: bool) -> io::Result<()> {
        let block = std::mem::take(&mut self.block);
        self.sender.send(Part { block, last }).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Filling {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        // A full block only goes when more comes: whether it is the last must be known.
        if self.block.len() == self.size {
            self.send(false)?;
        }
        if self.block.capacity() == 0 {
            self.block.reserve_exact(self.size);
        }
        let taken = data.len().min(self.size - self.block.len());
        self.block.extend_from_slice(&data[..taken]);
        self.hasher.update(&data[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The end that is taken from. Who drops it lets writes fail.
pub(super) struct Filled(Receiver<Part>);

impl Filled {
    /// Waits for a block. `None`: whoever wrote gave up before the last one.
    pub fn take(&self) -> Option<Part> {
        self.0.recv().ok()
    }
}
