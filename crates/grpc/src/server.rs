//! All services on any number of connections, and their end.
use std::sync::Arc;

use job::Service;
use proto::containerd::services::content::v1::content_server::ContentServer;
use proto::moby::buildkit::v1::control_server::ControlServer;
use proto::moby::buildkit::v1::frontend::llb_bridge_server::LlbBridgeServer;
use proto::opentelemetry::proto::collector::trace::v1::trace_service_server::TraceServiceServer;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::service::Routes;

use crate::blobs::Blobs;
use crate::control::Control;
use crate::gateway::{Bridge, Gateways};
use crate::session::Sessions;
use crate::traces::Traces;

const DESCRIBED: &str = "the generated descriptors are whole";

/// Tells clients such as grpcurl which services there are; some know only the older form.
fn reflection() -> tonic_reflection::server::Builder<'static> {
    let services = [
        "moby.buildkit.v1.Control",
        "moby.buildkit.v1.frontend.LLBBridge",
        "containerd.services.content.v1.Content",
        "opentelemetry.proto.collector.trace.v1.TraceService",
        "grpc.health.v1.Health",
    ];
    let builder = tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(proto::DESCRIPTORS);
    services.into_iter().fold(builder, |builder, service| builder.with_service_name(service))
}

/// The daemon's gRPC face. Clones serve the same daemon.
#[derive(Clone)]
pub struct Server {
    routes: Routes,
    drain: task::Drain,
    stop: task::Cancel,
}

impl Server {
    pub fn new(service: Arc<dyn Service>, sessions: Sessions) -> Self {
        macro_rules! limited {
            ($server:expr) => {
                $server.max_decoding_message_size(wire::MAX_MESSAGE).max_encoding_message_size(wire::MAX_MESSAGE)
            };
        }
        let gateways = Gateways::default();
        let bridge = Bridge::of_named(service.clone(), gateways.clone());
        let control = Control { service: service.clone(), sessions, gateways };
        let routes = Routes::new(limited!(ControlServer::new(control)))
            .add_service(limited!(LlbBridgeServer::new(bridge)))
            .add_service(limited!(ContentServer::new(Blobs(service.clone()))))
            .add_service(limited!(TraceServiceServer::new(Traces(service))))
            .add_service(crate::health::server())
            .add_service(reflection().build_v1().expect(DESCRIBED))
            .add_service(reflection().build_v1alpha().expect(DESCRIBED))
            .prepare();
        Self { routes, drain: task::Drain::new(), stop: task::Cancel::new() }
    }

    /// Serves a connection in the background until its client leaves or the server has stopped.
    pub fn connection(&self, io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        let (routes, stop) = (self.routes.clone(), self.stop.clone());
        self.drain.spawn("connection", async move {
            if let Err(error) = wire::serve_until(io, routes, stop.cancelled()).await {
                tracing::debug!(%error, "a connection ended early");
            }
        });
    }

    /// Refuses new calls, lets those under way end, and waits for that. Builds are not cancelled.
    pub async fn stop(&self) {
        self.stop.cancel("the daemon is shutting down");
        self.drain.wait().await;
    }
}
