//! An HTTP/2 connection for gRPC calls on any byte pipe.
use std::future::Future;
use std::task::{Context, Poll};

use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::body::Body;

use crate::{CONNECTION_WINDOW, MAX_FRAME, MAX_HEADERS, STREAM_WINDOW};

/// Makes calls on one connection; clones share it. Does not reconnect.
#[derive(Clone)]
pub struct Connection {
    requests: http2::SendRequest<Body>,
    life: task::Cancel,
}

/// Speaks first (preface and settings) and does not wait for the peer.
pub async fn connect(pipe: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Result<Connection, hyper::Error> {
    let (requests, driver) = http2::Builder::new(Tasks)
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(MAX_HEADERS)
        .max_send_buf_size(2 << 20)
        .handshake(TokioIo::new(pipe))
        .await?;
    let life = task::Cancel::new();
    let ended = task::CancelOnDrop::new(life.clone(), "the connection was closed");
    let closed = life.clone();
    task::spawn("http2 connection", async move {
        // How it ended shows in the calls that were under way.
        tokio::select! {
            _ = driver => {}
            () = closed.cancelled() => {}
        }
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
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

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
