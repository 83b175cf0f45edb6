//! A session whose services a test plays itself.
use client::{Client, new_id};
use proto::moby::buildkit::v1 as pb;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::RoutesBuilder;
use tonic::{Request, Status, Streaming};

/// Opens a session that serves these, says that it serves `methods`, and returns its id.
pub async fn serve(client: &Client, routes: RoutesBuilder, methods: &[&'static str]) -> String {
    let (sender, mut incoming, id) = tunnel(client, methods).await;
    let (pipe_in, from_daemon) = mpsc::channel::<Result<bytes::Bytes, Status>>(32);
    tokio::spawn(async move {
        while let Ok(Some(message)) = incoming.message().await {
            let _ = pipe_in.send(Ok(message.data)).await;
        }
    });
    let pipe = wire::Pipe::new(ReceiverStream::new(from_daemon), sender);
    tokio::spawn(wire::serve(pipe, routes.routes().prepare()));
    id
}

/// A session on whose tunnel the caller itself sends bytes.
pub async fn tunnel(client: &Client, methods: &[&'static str]) -> (mpsc::Sender<bytes::Bytes>, Streaming<pb::BytesMessage>, String) {
    let (sender, outgoing) = mpsc::channel(32);
    let mut request = Request::new(ReceiverStream::new(outgoing).map(|data| pb::BytesMessage { data }));
    let id = new_id();
    request.metadata_mut().insert("x-docker-expose-session-uuid", id.parse().unwrap());
    for method in methods {
        request.metadata_mut().append("x-docker-expose-session-grpc-method", method.parse().unwrap());
    }
    let incoming = client.control().session(request).await.unwrap().into_inner();
    (sender, incoming, id)
}
