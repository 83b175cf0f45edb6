//! Work that runs side by side, its results taken in order.
use std::collections::VecDeque;
use std::io;

use tokio::sync::oneshot;

use super::room::{CompressionRoom, Memory};

/// For a blocking thread within the runtime.
pub(crate) struct Queue<T> {
    room: CompressionRoom,
    runtime: tokio::runtime::Handle,
    /// In order, each with the memory that it takes until its result is taken.
    running: VecDeque<(oneshot::Receiver<T>, Memory)>,
}

impl<T: Send + 'static> Queue<T> {
    /// Must be called within a runtime.
    pub fn new(room: CompressionRoom) -> Self {
        Self { room, runtime: tokio::runtime::Handle::current(), running: VecDeque::new() }
    }

    /// Starts `work`, which takes so many MiB, once there is room. What is done by then, or has to be for that, goes to `take`.
    pub fn start(
        &mut self,
        mib: u32,
        work: impl FnOnce() -> T + Send + 'static,
        take: &mut dyn FnMut(T) -> io::Result<()>,
    ) -> io::Result<()> {
        self.take_done(take)?;
        let memory = self.memory(mib, take)?;
        let thread = self.runtime.block_on(self.room.thread());
        let (done, outcome) = oneshot::channel();
        let _in_runtime = self.runtime.enter();
        let work = move || {
            // Nobody waits for it any more: then it is not needed either.
            let _ = done.send(work());
            drop(thread);
            Ok(())
        };
        task::spawn("compress", task::blocking(work));
        self.running.push_back((outcome, memory));
        Ok(())
    }

    /// Waits for all that runs.
    pub fn finish(mut self, take: &mut dyn FnMut(T) -> io::Result<()>) -> io::Result<()> {
        while !self.running.is_empty() {
            self.take_first(take)?;
        }
        Ok(())
    }

    /// Waits only while this queue holds none itself: who waits cannot be what others wait for.
    fn memory(&mut self, mib: u32, take: &mut dyn FnMut(T) -> io::Result<()>) -> io::Result<Memory> {
        loop {
            if let Some(memory) = self.room.try_memory(mib) {
                return Ok(memory);
            }
            if self.running.is_empty() {
                return Ok(self.runtime.block_on(self.room.memory(mib)));
            }
            self.take_first(take)?;
        }
    }

    /// Takes what is done already, so that who reads the output need not wait until the memory is used up.
    fn take_done(&mut self, take: &mut dyn FnMut(T) -> io::Result<()>) -> io::Result<()> {
        while let Some((first, _)) = self.running.front_mut() {
            match first.try_recv() {
                Ok(done) => take(done)?,
                Err(oneshot::error::TryRecvError::Empty) => break,
                Err(oneshot::error::TryRecvError::Closed) => return Err(ended()),
            }
            self.running.pop_front();
        }
        Ok(())
    }

    fn take_first(&mut self, take: &mut dyn FnMut(T) -> io::Result<()>) -> io::Result<()> {
        let Some((first, _memory)) = self.running.pop_front() else { return Ok(()) };
        take(first.blocking_recv().map_err(|_| ended())?)
    }
}

fn ended() -> io::Error {
    io::Error::other("compressing ended early")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    /// Streams that share a room with less memory than each of them would like, and whose results are taken late.
    #[tokio::test(flavor = "multi_thread")]
    async fn streams_share_the_memory_and_do_not_wait_for_each_other() {
        const MIB: u32 = 50;
        let room = CompressionRoom::new(3);
        let (held, most) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let stream = || {
            let (room, held, most) = (room.clone(), held.clone(), most.clone());
            task::blocking(move || {
                let mut queue = Queue::new(room);
                let mut taken = Vec::new();
                for number in 0..100 {
                    let (begun, most) = (held.clone(), most.clone());
                    let work = move || {
                        most.fetch_max(begun.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        number
                    };
                    queue.start(MIB, work, &mut |number| {
                        held.fetch_sub(1, Ordering::SeqCst);
                        taken.push(number);
                        Ok(())
                    })?;
                }
                queue.finish(&mut |number| {
                    held.fetch_sub(1, Ordering::SeqCst);
                    taken.push(number);
                    Ok(())
                })?;
                Ok(taken)
            })
        };
        let all = async { tokio::join!(stream(), stream(), stream()) };
        let (one, two, three) = tokio::time::timeout(Duration::from_secs(60), all).await.expect("nobody waits for ever");
        for taken in [one, two, three] {
            assert_eq!(taken.unwrap(), (0..100).collect::<Vec<_>>());
        }
        assert!(most.load(Ordering::SeqCst) * MIB <= 128, "{} at a time", most.load(Ordering::SeqCst));
    }
}
