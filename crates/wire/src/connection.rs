//! An HTTP/2 connection for gRPC calls on any byte pipe.
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::body::Body;

use crate::{MAX_FRAME, MAX_HEADERS, SESSION_WINDOW, STREAM_WINDOW};

/// Makes calls on one connection; clones share it. Does not reconnect.
#[derive(Clone)]
pub struct Connection {
    requests: http2::SendRequest<Body>,
    life: task::Cancel,
}

/// Speaks first (preface and settings) and does not wait for the peer.
pub async fn connect(pipe: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Result<Connection, hyper::Error> {
    let life = task::Cancel::new();
    let pipe = Cut::new(pipe, life.clone());
    let (requests, driver) = http2::Builder::new(Tasks)
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(SESSION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(MAX_HEADERS)
        .max_send_buf_size(2 << 20)
        .handshake(TokioIo::new(pipe))
        .await?;
    let ended = task::CancelOnDrop::new(life.clone(), "the connection was closed");
    task::spawn("http2 connection", async move {
        // How it ended shows in the calls that were under way.
        let _ = driver.await;
        drop(ended);
    });
    Ok(Connection { requests, life })
}

impl Connection {
    /// Cancelled when the connection is gone; cancelling it closes the connection at once.
    pub fn life(&self) -> &task::Cancel {
        &self.life
    }
}

impl tower::Service<http::Request<Body>> for Connection {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.requests.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.requests.send_request(request))
    }
}

/// Runs what a connection does in the background as named tasks.
#[derive(Clone, Copy)]
pub(crate) struct Tasks;

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, work: F) {
        task::spawn("http2 stream", work);
    }
}

/// A pipe that is at its end once it is cut, whoever still holds it: the protocol's own tasks do, until all their calls have ended.
struct Cut<P> {
    pipe: P,
    life: task::Cancel,
    cut: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl<P> Cut<P> {
    fn new(pipe: P, life: task::Cancel) -> Self {
        let until = life.clone();
        Self { pipe, life, cut: Box::pin(async move { until.cancelled().await }) }
    }

    fn check(&self) -> io::Result<()> {
        if self.life.is_cancelled() { Err(io::Error::new(io::ErrorKind::BrokenPipe, self.life.reason().to_owned())) } else { Ok(()) }
    }
}

impl<P: AsyncRead + Unpin> AsyncRead for Cut<P> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.life.is_cancelled() || self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(self.check());
        }
        Pin::new(&mut self.pipe).poll_read(cx, buf)
    }
}

impl<P: AsyncWrite + Unpin> AsyncWrite for Cut<P> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.pipe).poll_write(cx, buf)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, parts: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.pipe).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.pipe.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}
