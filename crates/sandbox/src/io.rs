//! A process's streams, from the daemon's side.
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

/// What a process reads and where its output goes.
#[derive(Debug, Default)]
pub struct Io {
    pub stdin: Input,
    pub stdout: Output,
    /// Unused with a terminal.
    pub stderr: Output,
}

#[derive(Debug, Default)]
pub enum Input {
    /// At its end from the start.
    #[default]
    Empty,
    /// At its end when the channel closes.
    Stream(mpsc::Receiver<Bytes>),
}

/// Takes output in pieces as large as they were available. A receiver that is slow holds the process up only once the pipe is full.
#[derive(Default)]
pub enum Output {
    #[default]
    Discard,
    /// Called from an async task, so it must not block.
    Call(Box<dyn FnMut(Bytes) + Send>),
    /// A closed channel discards.
    Channel(mpsc::Sender<Bytes>),
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Discard => "Discard",
            Self::Call(_) => "Call",
            Self::Channel(_) => "Channel",
        })
    }
}

impl Output {
    pub(crate) async fn put(&mut self, data: Bytes) {
        match self {
            Self::Discard => {}
            Self::Call(call) => call(data),
            Self::Channel(channel) => {
                if channel.send(data).await.is_err() {
                    *self = Self::Discard;
                }
            }
        }
    }
}

/// What a pipe may hold before its writer waits, bytes.
const PIPE: usize = 256 * 1024;
/// The least room offered to a read, bytes.
const READ: usize = 64 * 1024;

/// Our end of a pipe or terminal, without blocking.
pub(crate) type End = Arc<AsyncFd<OwnedFd>>;

pub(crate) fn end(fd: OwnedFd) -> io::Result<End> {
    Ok(Arc::new(crate::sys::watch(fd)?))
}

/// A pipe: where we read, what the process gets.
pub(crate) fn output_pipe() -> io::Result<(End, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // The user's limit on pipe memory may say no.
    let _ = rustix::pipe::fcntl_setpipe_size(&write, PIPE);
    Ok((end(read)?, write))
}

/// A pipe: where we write, what the process gets.
pub(crate) fn input_pipe() -> io::Result<(End, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    Ok((end(write)?, read))
}

pub(crate) fn null() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty())?)
}

/// Passes everything on until the other side closes, or, once `done` comes, until nothing is left to read. Returns the output for last
/// words.
pub(crate) async fn pump(end: End, mut output: Output, mut done: oneshot::Receiver<()>) -> Output {
    let mut buffer = Vec::with_capacity(READ);
    let mut finishing = false;
    loop {
        let outcome = if finishing {
            read(end.get_ref(), &mut buffer)
        } else {
            tokio::select! {
                biased;
                outcome = end.async_io(tokio::io::Interest::READABLE, |fd| read(fd, &mut buffer)) => outcome,
                _ = &mut done => {
                    finishing = true;
                    continue;
                }
            }
        };
        match outcome {
            Ok(0) | Err(_) => return output,
            // Small pieces are copied rather than keep a large buffer alive each.
            Ok(count) if count < READ / 4 => {
                output.put(Bytes::copy_from_slice(&buffer)).await;
                buffer.clear();
            }
            Ok(_) => output.put(std::mem::replace(&mut buffer, Vec::with_capacity(READ)).into()).await,
        }
    }
}

/// A terminal whose last user is gone answers EIO.
fn read(fd: &OwnedFd, buffer: &mut Vec<u8>) -> io::Result<usize> {
    match rustix::io::retry_on_intr(|| rustix::io::read(fd.as_fd(), rustix::buffer::spare_capacity(buffer))) {
        Ok(count) => Ok(count),
        Err(rustix::io::Errno::IO) => Ok(0),
        Err(errno) => Err(errno.into()),
    }
}

/// Feeds a process until the channel closes or nobody reads.
pub(crate) async fn feed(end: End, mut input: mpsc::Receiver<Bytes>) {
    while let Some(mut data) = input.recv().await {
        while !data.is_empty() {
            let written = end.async_io(tokio::io::Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, &data)?)).await;
            match written {
                Ok(count) => drop(data.split_to(count)),
                Err(_) => return,
            }
        }
    }
}
