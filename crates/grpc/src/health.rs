//! `grpc.health.v1`: this server serves as long as it answers.
use std::pin::Pin;

use futures_core::Stream;
use proto::grpc::health::v1 as pb;
use proto::grpc::health::v1::health_server::{Health, HealthServer};
use tonic::{Request, Response, Status};

pub struct Serving;

pub fn server() -> HealthServer<Serving> {
    HealthServer::new(Serving)
}

fn serving() -> pb::HealthCheckResponse {
    pb::HealthCheckResponse { status: pb::health_check_response::ServingStatus::Serving as i32 }
}

#[tonic::async_trait]
impl Health for Serving {
    async fn check(&self, _: Request<pb::HealthCheckRequest>) -> Result<Response<pb::HealthCheckResponse>, Status> {
        Ok(Response::new(serving()))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<pb::HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, _: Request<pb::HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        use tokio_stream::StreamExt as _;
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(serving())).chain(tokio_stream::pending()))))
    }
}
