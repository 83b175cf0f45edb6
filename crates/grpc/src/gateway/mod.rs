//! `LLBBridge`: how a client, or a frontend in a container, drives a build of its own.
//!
//! On the control socket a call names its build in its metadata; on a frontend's pipe there is one build only. Either way a [`Drive`] holds what the
//! driver may name later: results and containers.
pub(crate) mod messages;
mod process;
mod service;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use frontend::Ref;
use job::{Container, Gateway, Service};
use proto::moby::buildkit::v1::frontend::llb_bridge_server::LlbBridgeServer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};
use wire::status;

pub use service::Bridge;

/// A build that is being driven.
pub struct Drive {
    gateway: Arc<dyn Gateway>,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    refs: HashMap<String, Arc<dyn Ref>>,
    containers: HashMap<String, Arc<dyn Container>>,
}

impl Drive {
    pub fn new(gateway: Arc<dyn Gateway>) -> Arc<Self> {
        Arc::new(Self { gateway, held: Mutex::default() })
    }

    fn hold(&self, reference: &Arc<dyn Ref>) -> String {
        let id = reference.id().to_owned();
        self.held().refs.insert(id.clone(), reference.clone());
        id
    }

    /// A result by its id; the empty id is scratch.
    fn reference(&self, id: &str) -> Option<Arc<dyn Ref>> {
        let known = self.held().refs.get(id).cloned();
        known.or_else(|| self.gateway.failed_result(id))
    }

    /// A failure as the driver is told it: with what the failed step left behind.
    async fn told<T>(&self, outcome: fault::Result<T>) -> Result<T, Status> {
        match outcome {
            Ok(value) => Ok(value),
            Err(fault) => Err(status::of_build(&self.gateway.explain(fault).await)),
        }
    }

    fn container(&self, id: &str) -> Option<Arc<dyn Container>> {
        self.held().containers.get(id).cloned()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("no holder of this lock panics")
    }

    /// Gives all containers back; the driver is gone.
    async fn release(&self) {
        let containers: Vec<_> = self.held().containers.drain().map(|(_, container)| container).collect();
        for container in containers {
            if let Err(fault) = container.release().await
                && fault.kind() != fault::Kind::Canceled
            {
                tracing::warn!(%fault, "a gateway container was not released");
            }
        }
    }
}

/// The builds that are being driven over the control socket. Clones are the same table.
#[derive(Clone, Default)]
pub struct Gateways(Arc<Mutex<HashMap<String, Arc<Drive>>>>);

impl Gateways {
    /// The build that a call is about, waiting for it: clients call side by side with the Solve that makes it.
    async fn of_call<T>(&self, service: &dyn Service, request: &Request<T>) -> Result<Arc<Drive>, Status> {
        let mut ids = request.metadata().get_all("buildkit-controlapi-buildid").iter();
        let (Some(Ok(build)), None) = (ids.next().map(|id| id.to_str()), ids.next()) else {
            return Err(Status::unknown("no buildid found in context"));
        };
        if let Some(drive) = self.table().get(build) {
            return Ok(drive.clone());
        }
        let gateway = service.gateway(build).await.map_err(|fault| status::of_call(&fault))?;
        Ok(self.table().entry(build.to_owned()).or_insert_with(|| Drive::new(gateway)).clone())
    }

    /// Drops what a build holds when the returned guard drops.
    pub fn forget_at_end(&self, build: &str) -> Forget {
        Forget { gateways: self.clone(), build: build.to_owned() }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<String, Arc<Drive>>> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

pub struct Forget {
    gateways: Gateways,
    build: String,
}

impl Drop for Forget {
    fn drop(&mut self) {
        if let Some(drive) = self.gateways.table().remove(&self.build) {
            task::spawn("release gateway containers", async move { drive.release().await });
        }
    }
}

/// Serves frontends in containers.
pub struct Door;

#[async_trait::async_trait]
impl job::FrontendDoor for Door {
    async fn serve(&self, gateway: Arc<dyn Gateway>, incoming: mpsc::Receiver<Bytes>, outgoing: mpsc::Sender<Bytes>) -> fault::Result<()> {
        let incoming = ReceiverStream::new(incoming).map(Ok);
        serve_pipe(gateway, wire::Pipe::new(incoming, outgoing)).await.map_err(|e| fault::Fault::of(fault::Kind::Unavailable, e))
    }
}

/// Serves one frontend on its own pipe until the pipe closes.
pub async fn serve_pipe(gateway: Arc<dyn Gateway>, pipe: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Result<(), hyper::Error> {
    let drive = Drive::new(gateway);
    let bridge = LlbBridgeServer::new(Bridge::of_one(drive.clone()))
        .max_decoding_message_size(wire::MAX_MESSAGE)
        .max_encoding_message_size(wire::MAX_MESSAGE);
    let health = crate::health::server();
    let routes = tonic::service::Routes::new(bridge).add_service(health).prepare();
    let served = wire::serve(pipe, routes).await;
    drive.release().await;
    served
}
