//! A raw byte pipe carried by the messages of a gRPC stream.
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use futures_core::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;
use tonic::Status;

/// The most bytes put into one message; peers may limit messages to 4 MiB.
const MAX_CHUNK: usize = 256 << 10;

/// Reads from the messages of one stream, writes those of another. Shutting the write side down drops the sender, which half-closes the stream.
pub struct Pipe<S> {
    incoming: S,
    current: Bytes,
    outgoing: PollSender<Bytes>,
}

impl<S: Stream<Item = Result<Bytes, Status>> + Unpin> Pipe<S> {
    pub fn new(incoming: S, outgoing: mpsc::Sender<Bytes>) -> Self {
        Self { incoming, current: Bytes::new(), outgoing: PollSender::new(outgoing) }
    }
}

impl<S: Stream<Item = Result<Bytes, Status>> + Unpin> AsyncRead for Pipe<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.current.is_empty() {
            match ready!(Pin::new(&mut self.incoming).poll_next(cx)) {
                Some(Ok(data)) => self.current = data,
                Some(Err(status)) => return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, status))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = buf.remaining().min(self.current.len());
        buf.put_slice(&self.current[..length]);
        self.current.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<S: Unpin> AsyncWrite for Pipe<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, parts: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.outgoing.poll_reserve(cx)).map_err(|_| gone())?;
        let length = parts.iter().map(|part| part.len()).sum::<usize>().min(MAX_CHUNK);
        let mut chunk = BytesMut::with_capacity(length);
        for part in parts {
            chunk.extend_from_slice(&part[..part.len().min(length - chunk.len())]);
        }
        self.outgoing.send_item(chunk.freeze()).map_err(|_| gone())?;
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing.close();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn chunks_are_arbitrary_and_shutdown_half_closes() {
        let incoming = futures_util::stream::iter(["he", "", "llo"].map(|part| Ok(Bytes::from(part))));
        let (sender, mut sent) = mpsc::channel(4);
        let mut pipe = Pipe::new(incoming, sender);
        let mut text = String::new();
        pipe.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello");
        let writing = async {
            pipe.write_all(&vec![7; MAX_CHUNK + 1]).await.unwrap();
            pipe.shutdown().await.unwrap();
            assert!(pipe.write_all(b"more").await.is_err());
        };
        let reading = async {
            assert_eq!(sent.recv().await.unwrap().len(), MAX_CHUNK);
            assert_eq!(sent.recv().await.unwrap().len(), 1);
            assert!(sent.recv().await.is_none());
        };
        tokio::join!(writing, reading);
    }

    #[tokio::test]
    async fn a_broken_stream_is_an_error_not_an_end() {
        let incoming = futures_util::stream::iter([Ok(Bytes::from("x")), Err(Status::cancelled("gone"))]);
        let mut pipe = Pipe::new(incoming, mpsc::channel(1).0);
        assert!(pipe.read_to_end(&mut Vec::new()).await.is_err());
    }
}
