use std::sync::Arc;

use task::Cancel;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::ceiling::Room;
use crate::compress::CompressionRoom;
use crate::store::Layers;

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

/// Held while a layer is packed.
pub(crate) struct Turn {
    _permit: OwnedSemaphorePermit,
    _room: Room,
}

impl Layers {
    /// Waits for a place among the layers that are being packed, and for room below the ceiling.
    pub(crate) async fn turn_to_pack(&self, cancel: &Cancel) -> fault::Result<Turn> {
        let _permit = cancel.run(self.acquire(&self.0.budget.diffs)).await?;
        Ok(Turn { _permit, _room: self.room(cancel).await? })
    }
}
