//! The serving side of an HTTP/2 connection on any byte pipe.
use std::future::Future;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::service::Routes;

use crate::connection::Tasks;
use crate::{CONNECTION_WINDOW, MAX_FRAME, MAX_HEADERS, STREAM_WINDOW};

/// Serves until the peer closes the connection.
pub async fn serve(pipe: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, routes: Routes) -> Result<(), hyper::Error> {
    serve_until(pipe, routes, std::future::pending()).await
}

/// Serves until the peer closes the connection, or until `stop` resolves and the calls under way have ended.
pub async fn serve_until(
    pipe: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    routes: Routes,
    stop: impl Future<Output = ()>,
) -> Result<(), hyper::Error> {
    let connection = http2::Builder::new(Tasks)
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(MAX_HEADERS)
        .max_send_buf_size(2 << 20)
        .max_concurrent_streams(10_000)
        // Clients that cancel many calls at once are not attackers.
        .max_pending_accept_reset_streams(Some(1000))
        .serve_connection(TokioIo::new(pipe), TowerToHyperService::new(routes));
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = stop => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}
