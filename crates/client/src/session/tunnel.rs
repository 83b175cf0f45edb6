//! The tunnel from the client's side: the pipe is a stream of one call, and on it the client is the server.
use std::pin::Pin;

use bytes::Bytes;
use fault::{Context as _, Fault, Result};
use futures_core::Stream;
use proto::grpc::health::v1 as pb;
use proto::grpc::health::v1::health_server::{Health, HealthServer};
use proto::moby::buildkit::v1::BytesMessage;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use wire::status::into_fault;

use crate::Client;

const QUEUE: usize = 32;

/// An open session; closes when dropped.
pub struct Running {
    id: String,
    life: task::Cancel,
    _guard: task::CancelOnDrop,
}

impl Running {
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Resolves when the tunnel is gone.
    pub async fn closed(&self) {
        self.life.cancelled().await;
    }
}

pub async fn open(client: &Client, id: String, shared_key: String, methods: &[&'static str], routes: Routes) -> Result<Running> {
    let (sender, outgoing) = mpsc::channel::<Bytes>(QUEUE);
    let mut request = Request::new(ReceiverStream::new(outgoing).map(|data| BytesMessage { data }));
    let headers = request.metadata_mut();
    let value = |text: &str| AsciiMetadataValue::try_from(text).map_err(|_| Fault::invalid(format!("{text:?} cannot be sent as metadata")));
    headers.insert("x-docker-expose-session-uuid", value(&id)?);
    headers.insert("x-docker-expose-session-sharedkey", value(&shared_key)?);
    for method in methods {
        headers.append("x-docker-expose-session-grpc-method", AsciiMetadataValue::from_static(method));
    }
    let incoming = client.control().session(request).await.map_err(|s| into_fault(&s)).context("failed to open a session")?.into_inner();
    let pipe = wire::Pipe::new(incoming.map(|message| message.map(|m| m.data)), sender);
    let life = task::Cancel::new();
    let (until, routes) = (life.clone(), routes.prepare());
    task::spawn("session server", async move {
        let served = tokio::select! {
            served = wire::serve(pipe, routes) => served,
            () = until.cancelled() => Ok(()),
        };
        if let Err(error) = served {
            tracing::debug!(%error, "the session ended early");
        }
        until.cancel("the daemon closed the session");
    });
    Ok(Running { id, _guard: task::CancelOnDrop::new(life.clone(), "the client closed the session"), life })
}

struct Alive;

/// The daemon asks now and then whether we are still there.
pub fn health() -> HealthServer<impl Health> {
    HealthServer::new(Alive)
}

#[tonic::async_trait]
impl Health for Alive {
    async fn check(&self, _: Request<pb::HealthCheckRequest>) -> Result<Response<pb::HealthCheckResponse>, Status> {
        Ok(Response::new(pb::HealthCheckResponse { status: pb::health_check_response::ServingStatus::Serving as i32 }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<pb::HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, _: Request<pb::HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("a session's health is checked, not watched"))
    }
}
