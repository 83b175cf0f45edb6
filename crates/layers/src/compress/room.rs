//! What all compressing together may take.
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// MiB of memory for blocks that are being compressed or wait to be written.
const MEMORY: u32 = 128;

/// A number of threads, and a fixed amount of memory however many threads and layers there are. Clones are the same room.
#[derive(Clone)]
pub struct CompressionRoom {
    threads: Arc<Semaphore>,
    memory: Arc<Semaphore>,
}

/// Held while a thread works on a block.
pub struct Thread(#[expect(dead_code, reason = "held")] OwnedSemaphorePermit);
/// Held from before a block is compressed until it is written.
pub struct Memory(#[expect(dead_code, reason = "held")] OwnedSemaphorePermit);

impl CompressionRoom {
    pub fn new(threads: usize) -> Self {
        Self { threads: Arc::new(Semaphore::new(threads)), memory: Arc::new(Semaphore::new(MEMORY as usize)) }
    }

    pub(super) async fn thread(&self) -> Thread {
        Thread(self.threads.clone().acquire_owned().await.expect("never closed"))
    }

    pub(super) async fn memory(&self, mib: u32) -> Memory {
        Memory(self.memory.clone().acquire_many_owned(mib.min(MEMORY)).await.expect("never closed"))
    }

    pub(super) fn try_memory(&self, mib: u32) -> Option<Memory> {
        self.memory.clone().try_acquire_many_owned(mib.min(MEMORY)).ok().map(Memory)
    }
}
