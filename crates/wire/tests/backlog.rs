//! A peer that sends much in small frames while nobody reads.
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures_util::StreamExt as _;
use proto::grpc::health::v1::health_client::HealthClient;
use proto::grpc::health::v1::health_server::{Health, HealthServer};
use proto::grpc::health::v1::{HealthCheckRequest, HealthCheckResponse};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::Notify;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

/// As many as a client's packets for thirty thousand tiny files.
const MESSAGES: usize = 60_000;
/// Of a message on the wire: frame header, message header, one field.
const BYTES: usize = 9 + 5 + 2;

struct Talker;

type Answers = Pin<Box<dyn futures_util::Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Health for Talker {
    type WatchStream = Answers;

    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        Err(Status::unimplemented("only watch"))
    }

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Answers>, Status> {
        let messages = futures_util::stream::iter(0..MESSAGES).then(|_| async {
            // What is ready together travels in one frame.
            tokio::task::yield_now().await;
            Ok(HealthCheckResponse { status: 1 })
        });
        Ok(Response::new(Box::pin(messages)))
    }
}

/// Counts what is read.
struct Counted {
    pipe: DuplexStream,
    count: Arc<(AtomicUsize, Notify)>,
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.pipe).poll_read(cx, buf);
        self.count.0.fetch_add(buf.filled().len() - before, Ordering::Relaxed);
        self.count.1.notify_one();
        outcome
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.pipe).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn a_session_bears_many_small_frames_that_nobody_reads_yet() {
    let (near, far) = tokio::io::duplex(64 << 10);
    task::spawn("server", async move { wire::serve(far, Routes::new(HealthServer::new(Talker))).await });
    let count = Arc::new((AtomicUsize::new(0), Notify::new()));
    let connection = wire::connect(Counted { pipe: near, count: Arc::clone(&count) }).await.unwrap();
    let mut client = HealthClient::with_origin(connection.clone(), http::Uri::from_static("http://localhost"));
    let mut stream = client.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    let arrived = async {
        while count.0.load(Ordering::Relaxed) < MESSAGES * BYTES {
            count.1.notified().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(300), arrived).await.expect("all messages arrive");
    let mut got = 0;
    while let Some(message) = stream.next().await {
        assert_eq!(message.unwrap().status, 1);
        got += 1;
    }
    assert_eq!(got, MESSAGES);
}
