use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::compress::CompressionRoom;

/// How much compressing and unpacking all builds together may do at a time.
pub(crate) struct Budget {
    pub compression: CompressionRoom,
    /// Layers being unpacked.
    pub unpacks: Arc<Semaphore>,
    /// Layers being read, turned into a tar and hashed.
    pub diffs: Arc<Semaphore>,
}

impl Budget {
    pub fn for_this_machine() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let permits = |n: usize| Arc::new(Semaphore::new(n));
        Self { compression: CompressionRoom::new(cores + 1), unpacks: permits(cores + 1), diffs: permits(cores + 1) }
    }
}
