//! Calls to a daemon.
use std::time::Duration;

use fault::Result;
use proto::containerd::services::content::v1 as content;
use proto::moby::buildkit::v1 as pb;
use proto::moby::buildkit::v1::control_client::ControlClient;
use proto::moby::buildkit::v1::frontend::llb_bridge_client::LlbBridgeClient;
use tonic::Status;
use wire::Connection;
use wire::status::into_fault;

use crate::endpoint::{ConnectError, Endpoint};

/// A daemon that was reached. Clones share its connection.
#[derive(Clone)]
pub struct Client {
    connection: Connection,
}

fn failed(status: Status) -> fault::Fault {
    into_fault(&status)
}

impl Client {
    pub async fn connect(endpoint: &Endpoint, limit: Duration) -> Result<Self, ConnectError> {
        Ok(Self::new(endpoint.connect(limit).await?))
    }

    pub fn new(connection: Connection) -> Self {
        Self { connection }
    }

    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    pub fn control(&self) -> ControlClient<Connection> {
        ControlClient::with_origin(self.connection.clone(), http::Uri::from_static("http://localhost"))
            .max_decoding_message_size(wire::MAX_MESSAGE)
            .max_encoding_message_size(wire::MAX_MESSAGE)
    }

    pub fn bridge(&self) -> LlbBridgeClient<Connection> {
        LlbBridgeClient::with_origin(self.connection.clone(), http::Uri::from_static("http://localhost"))
            .max_decoding_message_size(wire::MAX_MESSAGE)
            .max_encoding_message_size(wire::MAX_MESSAGE)
    }

    pub async fn info(&self) -> Result<pb::types::BuildkitVersion> {
        let answer = self.control().info(pb::InfoRequest {}).await.map_err(failed)?;
        Ok(answer.into_inner().buildkit_version.unwrap_or_default())
    }

    pub async fn workers(&self, filter: Vec<String>) -> Result<Vec<pb::types::WorkerRecord>> {
        Ok(self.control().list_workers(pb::ListWorkersRequest { filter }).await.map_err(failed)?.into_inner().record)
    }

    pub async fn disk_usage(&self, filter: Vec<String>) -> Result<Vec<pb::UsageRecord>> {
        let request = pb::DiskUsageRequest { filter, age_limit: 0 };
        Ok(self.control().disk_usage(request).await.map_err(failed)?.into_inner().record)
    }

    /// Calls `deleted` for each record that is gone.
    pub async fn prune(&self, request: pb::PruneRequest, mut deleted: impl FnMut(pb::UsageRecord)) -> Result<()> {
        let mut records = self.control().prune(request).await.map_err(failed)?.into_inner();
        while let Some(record) = records.message().await.map_err(failed)? {
            deleted(record);
        }
        Ok(())
    }

    /// Calls `seen` for each event until the stream ends.
    pub async fn history(&self, request: pb::BuildHistoryRequest, mut seen: impl FnMut(pb::BuildHistoryEvent)) -> Result<()> {
        let mut events = self.control().listen_build_history(request).await.map_err(failed)?.into_inner();
        while let Some(event) = events.message().await.map_err(failed)? {
            seen(event);
        }
        Ok(())
    }

    pub async fn update_history(&self, request: pb::UpdateBuildHistoryRequest) -> Result<()> {
        self.control().update_build_history(request).await.map_err(failed)?;
        Ok(())
    }

    /// A build's progress, `seen` part by part.
    pub async fn status(&self, build: &str, mut seen: impl FnMut(pb::StatusResponse)) -> Result<()> {
        let mut parts = self.control().status(pb::StatusRequest { r#ref: build.to_owned() }).await.map_err(failed)?.into_inner();
        while let Some(part) = parts.message().await.map_err(failed)? {
            seen(part);
        }
        Ok(())
    }

    /// A blob of the daemon, `seen` part by part.
    pub async fn blob(&self, digest: &str, mut seen: impl FnMut(&[u8]) -> std::io::Result<()>) -> Result<()> {
        let mut client =
            content::content_client::ContentClient::with_origin(self.connection.clone(), http::Uri::from_static("http://localhost"))
                .max_decoding_message_size(wire::MAX_MESSAGE);
        let request = content::ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
        let mut parts = client.read(request).await.map_err(failed)?.into_inner();
        while let Some(part) = parts.message().await.map_err(failed)? {
            seen(&part.data)?;
        }
        Ok(())
    }
}
