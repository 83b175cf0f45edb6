//! `moby.buildkit.v1.Control`.
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use futures_core::Stream;
use job::history::Change;
use job::trace::Parent;
use job::{Progress, Service};
use proto::moby::buildkit::v1 as pb;
use proto::moby::buildkit::v1::control_server;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use wire::status;

use crate::gateway::Gateways;
use crate::session::{Identity, Sessions};
use crate::{convert, filter, history, request, session, status_stream};

pub struct Control {
    pub service: Arc<dyn Service>,
    pub sessions: Sessions,
    pub gateways: Gateways,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Messages that wait for a client that reads slowly.
const QUEUE: usize = 64;
/// The same of messages that may be as large as a MB: the rest waits in the build's record, which all its watchers share.
const STATUS_QUEUE: usize = 2;

#[tonic::async_trait]
impl control_server::Control for Control {
    async fn disk_usage(&self, request: Request<pb::DiskUsageRequest>) -> Result<Response<pb::DiskUsageResponse>, Status> {
        let pb::DiskUsageRequest { filter, age_limit } = request.into_inner();
        let query = job::UsageQuery { filters: filter, age_limit: (age_limit > 0).then(|| convert::duration(age_limit)) };
        let records = self.service.disk_usage(query).await.map_err(|f| status::of_call(&f))?;
        Ok(Response::new(pb::DiskUsageResponse { record: records.into_iter().map(convert::usage_record).collect() }))
    }

    type PruneStream = Answers<pb::UsageRecord>;

    async fn prune(&self, request: Request<pb::PruneRequest>) -> Result<Response<Self::PruneStream>, Status> {
        let message = request.into_inner();
        let rule = job::PruneRule {
            filters: message.filter,
            all: message.all,
            keep_duration: convert::duration(message.keep_duration),
            reserved_space: message.reserved_space,
            max_used_space: message.max_used_space,
            min_free_space: message.min_free_space,
        };
        let (answers, stream) = mpsc::channel(QUEUE);
        let (deleted, mut records) = mpsc::channel(QUEUE);
        let service = self.service.clone();
        task::spawn("prune", async move {
            let forward = async {
                while let Some(record) = records.recv().await {
                    if answers.send(Ok(convert::usage_record(record))).await.is_err() {
                        // Nobody listens any more: closing the channel ends the pruning.
                        records.close();
                    }
                }
            };
            let (outcome, ()) = tokio::join!(service.prune(rule, deleted), forward);
            if let Err(fault) = outcome {
                let _ = answers.send(Err(status::of_call(&fault))).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn solve(&self, request: Request<pb::SolveRequest>) -> Result<Response<pb::SolveResponse>, Status> {
        let parent = request.metadata().get("traceparent").and_then(|value| Parent::parse(value.to_str().ok()?));
        let request = job::Request { parent, ..request::load(request.into_inner())? };
        let build = request.id.clone();
        let _end = self.gateways.forget_at_end(&build);
        match self.service.solve(request).await {
            Ok(response) => Ok(Response::new(pb::SolveResponse { exporter_response: response.exporter })),
            Err(fault) => {
                tracing::debug!(build, %fault, "solve failed");
                Err(status::of_build(&fault))
            }
        }
    }

    type StatusStream = Answers<pb::StatusResponse>;

    /// The headers go out at once: clients read the daemon's clock from them before anything else.
    async fn status(&self, request: Request<pb::StatusRequest>) -> Result<Response<Self::StatusStream>, Status> {
        let build = request.into_inner().r#ref;
        let (sender, stream) = mpsc::channel(STATUS_QUEUE);
        let service = self.service.clone();
        task::spawn("status", async move {
            let found = tokio::select! {
                found = service.progress(&build) => found,
                () = sender.closed() => return,
            };
            match found {
                Ok(Progress::Live(watch)) => status_stream::pump(watch, sender).await,
                Ok(Progress::Stored(log)) => history::replay(log, sender).await,
                Err(fault) => drop(sender.send(Err(status::of_call(&fault))).await),
            }
        });
        stamped(Box::pin(ReceiverStream::new(stream)))
    }

    type SessionStream = session::Outgoing;

    async fn session(&self, request: Request<Streaming<pb::BytesMessage>>) -> Result<Response<Self::SessionStream>, Status> {
        let identity = Identity::from_metadata(request.metadata())?;
        let outgoing = session::serve(&self.sessions, identity, request.into_inner()).await?;
        Ok(Response::new(outgoing))
    }

    async fn list_workers(&self, request: Request<pb::ListWorkersRequest>) -> Result<Response<pb::ListWorkersResponse>, Status> {
        let filters = filter::parse(&request.into_inner().filter)?;
        let version = convert::version(self.service.version());
        let workers = self.service.workers(true).await.map_err(|f| status::of_call(&f))?;
        let record = workers.into_iter().filter(|w| filters.matches(w)).map(|w| convert::worker_record(w, version.clone())).collect();
        Ok(Response::new(pb::ListWorkersResponse { record }))
    }

    async fn info(&self, _: Request<pb::InfoRequest>) -> Result<Response<pb::InfoResponse>, Status> {
        Ok(Response::new(pb::InfoResponse { buildkit_version: Some(convert::version(self.service.version())) }))
    }

    type ListenBuildHistoryStream = Answers<pb::BuildHistoryEvent>;

    async fn listen_build_history(
        &self,
        request: Request<pb::BuildHistoryRequest>,
    ) -> Result<Response<Self::ListenBuildHistoryStream>, Status> {
        let mut events = self.service.listen_history(history::query(request.into_inner())).await.map_err(|f| status::of_call(&f))?;
        let (sender, stream) = mpsc::channel(QUEUE);
        task::spawn("history listener", async move {
            loop {
                let event = tokio::select! {
                    event = events.next() => event,
                    () = sender.closed() => return,
                };
                let Some(event) = event else { return };
                if sender.send(Ok(history::event(&event))).await.is_err() {
                    return;
                }
            }
        });
        stamped(Box::pin(ReceiverStream::new(stream)))
    }

    async fn update_build_history(
        &self,
        request: Request<pb::UpdateBuildHistoryRequest>,
    ) -> Result<Response<pb::UpdateBuildHistoryResponse>, Status> {
        let pb::UpdateBuildHistoryRequest { r#ref, pinned, delete, finalize } = request.into_inner();
        let change = match (delete, finalize) {
            (true, _) => Change::Delete,
            (false, true) => Change::Finalize,
            (false, false) => Change::Pin(pinned),
        };
        self.service.update_history(&r#ref, change).await.map_err(|f| status::of_call(&f))?;
        Ok(Response::new(pb::UpdateBuildHistoryResponse {}))
    }
}

/// A streaming answer with the daemon's clock in its headers.
fn stamped<T>(stream: Answers<T>) -> Result<Response<Answers<T>>, Status> {
    let now = oci::Timestamp::from(SystemTime::now()).to_string();
    let mut response = Response::new(stream);
    let value = now.parse().map_err(|_| Status::internal("the clock does not print as a header"))?;
    response.metadata_mut().insert("buildkit-current-timestamp", value);
    Ok(response)
}
