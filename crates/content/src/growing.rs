//! Reading a blob while it is being written.
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::watch;

use crate::hold::Hold;

/// Large enough that the hop to a blocking thread does not count.
const CHUNK: u64 = 512 << 10;

/// A blob on its way in, for who does not want to wait until it is whole. What is read comes from the file, so a slow reader takes no memory
/// and does not slow the writer down.
#[derive(Clone)]
pub struct Growing {
    file: Arc<File>,
    state: watch::Receiver<State>,
}

/// How far the writer is.
#[derive(Default)]
pub(crate) struct State {
    pub written: u64,
    /// The blob, once it is whole.
    pub whole: Option<Hold>,
}

/// The writer gave up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the blob did not become whole")]
pub struct GivenUp;

impl From<GivenUp> for io::Error {
    fn from(error: GivenUp) -> Self {
        Self::other(error)
    }
}

impl Growing {
    pub(crate) fn new(file: Arc<File>, state: watch::Receiver<State>) -> Self {
        Self { file, state }
    }

    /// Waits until there are so many bytes, or all; says how many there are then.
    pub async fn reaches(&mut self, bytes: u64) -> Result<u64, GivenUp> {
        let state = self.state.wait_for(|state| state.written >= bytes || state.whole.is_some()).await.map_err(|_| GivenUp)?;
        Ok(state.written)
    }

    /// Waits until all of it is there.
    pub async fn whole(&mut self) -> Result<Hold, GivenUp> {
        let state = self.state.wait_for(|state| state.whole.is_some()).await.map_err(|_| GivenUp)?;
        state.whole.clone().ok_or(GivenUp)
    }

    /// Waits for bytes at `offset` and reads some of them; nothing is the end.
    pub async fn read(&mut self, offset: u64) -> io::Result<Bytes> {
        let length = (self.reaches(offset + 1).await?.saturating_sub(offset)).min(CHUNK) as usize;
        if length == 0 {
            return Ok(Bytes::new());
        }
        let file = self.file.clone();
        let read = task::blocking(move || {
            let mut data = vec![0; length];
            file.read_exact_at(&mut data, offset)?;
            Ok(Bytes::from(data))
        });
        read.await.map_err(|fault| io::Error::other(fault.to_string()))
    }

    /// All of it, as it comes.
    pub fn chunks(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        futures_util::stream::try_unfold((self, 0), |(mut growing, offset)| async move {
            let chunk = growing.read(offset).await?;
            let next = offset + chunk.len() as u64;
            Ok((!chunk.is_empty()).then_some((chunk, (growing, next))))
        })
    }
}
