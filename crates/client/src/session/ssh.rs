//! `SSH`: pipes to agents on our side.
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;

use bytes::Bytes;
use futures_core::Stream;
use proto::moby::sshforward::v1 as pb;
use proto::moby::sshforward::v1::ssh_server::Ssh;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// An agent's socket.
#[derive(Debug, Clone)]
pub struct Agent {
    pub socket: PathBuf,
}

pub struct Agents(pub BTreeMap<String, Agent>);

const QUEUE: usize = 16;

impl Agents {
    fn find(&self, id: &str) -> Result<&Agent, Status> {
        let id = if id.is_empty() { "default" } else { id };
        self.0.get(id).ok_or_else(|| Status::not_found(format!("unset ssh forward key {id}")))
    }
}

#[tonic::async_trait]
impl Ssh for Agents {
    async fn check_agent(&self, request: Request<pb::CheckAgentRequest>) -> Result<Response<pb::CheckAgentResponse>, Status> {
        self.find(&request.into_inner().id)?;
        Ok(Response::new(pb::CheckAgentResponse {}))
    }

    type ForwardAgentStream = Pin<Box<dyn Stream<Item = Result<pb::BytesMessage, Status>> + Send>>;

    async fn forward_agent(&self, request: Request<Streaming<pb::BytesMessage>>) -> Result<Response<Self::ForwardAgentStream>, Status> {
        let id = request.metadata().get("buildkit.ssh.id").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let agent = self.find(id)?;
        let failed = |e| Status::unknown(format!("failed to connect to {}: {e}", agent.socket.display()));
        let mut socket = UnixStream::connect(&agent.socket).await.map_err(failed)?;
        let (sender, outgoing) = mpsc::channel::<Bytes>(QUEUE);
        let mut pipe = wire::Pipe::new(request.into_inner().map(|message| message.map(|m| m.data)), sender);
        task::spawn("ssh agent", async move {
            // Either side may hang up; that is how such a talk ends.
            let _ = tokio::io::copy_bidirectional(&mut socket, &mut pipe).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing).map(|data| Ok(pb::BytesMessage { data })))))
    }
}
