//! `containerd.services.content.v1`, read-only: clients fetch provenance and history blobs through it.
use std::pin::Pin;
use std::sync::Arc;

use fault::{Fault, Kind};
use futures_core::Stream;
use job::{Blob, Service};
use oci::Digest;
use proto::containerd::services::content::v1 as pb;
use proto::containerd::services::content::v1::content_server::Content;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use wire::status;

use crate::convert::timestamp;

pub struct Blobs(pub Arc<dyn Service>);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Entries in one message of a list.
const LIST_PART: usize = 100;
const QUEUE: usize = 8;
const READ_PART: usize = 1 << 20;

fn refused<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("read-only content store"))
}

fn digest(text: &str) -> Result<Digest, Status> {
    text.parse().map_err(|_| Status::invalid_argument(format!("invalid digest {text:?}")))
}

fn info(blob: Blob) -> pb::Info {
    pb::Info {
        digest: blob.digest.to_string(),
        size: blob.size as i64,
        created_at: Some(timestamp(blob.created_at)),
        updated_at: Some(timestamp(blob.created_at)),
        labels: blob.labels,
    }
}

#[tonic::async_trait]
impl Content for Blobs {
    async fn info(&self, request: Request<pb::InfoRequest>) -> Result<Response<pb::InfoResponse>, Status> {
        let digest = digest(&request.into_inner().digest)?;
        let found = self.0.blobs().find(&digest).await.map_err(|f| status::of_call(&f))?;
        let blob = found.ok_or_else(|| Status::not_found(format!("content {digest}: not found")))?;
        Ok(Response::new(pb::InfoResponse { info: Some(info(blob)) }))
    }

    type ListStream = Answers<pb::ListContentResponse>;

    async fn list(&self, request: Request<pb::ListContentRequest>) -> Result<Response<Self::ListStream>, Status> {
        let filters = patterns::Filters::parse(&request.into_inner().filters).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let mut blobs = self.0.blobs().list().await.map_err(|f| status::of_call(&f))?;
        blobs.retain(|blob| {
            filters.matches(|path| match path {
                ["digest"] => Some(blob.digest.to_string()),
                ["size"] => Some(blob.size.to_string()),
                ["labels", rest @ ..] => blob.labels.get(&rest.join(".")).cloned(),
                _ => None,
            })
        });
        let infos: Vec<pb::Info> = blobs.into_iter().map(info).collect();
        let parts: Vec<_> = infos.chunks(LIST_PART).map(|part| Ok(pb::ListContentResponse { info: part.to_vec() })).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(parts))))
    }

    type ReadStream = Answers<pb::ReadContentResponse>;

    async fn read(&self, request: Request<pb::ReadContentRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.into_inner();
        let digest = digest(&request.digest)?;
        let offset = u64::try_from(request.offset).map_err(|_| Status::out_of_range("negative offset"))?;
        let length = u64::try_from(request.size).map_err(|_| Status::out_of_range("negative size"))?;
        let mut download = self.0.blobs().read(&digest, offset, (length > 0).then_some(length)).await.map_err(|f| status::of_call(&f))?;
        let (sender, stream) = mpsc::channel(QUEUE);
        task::spawn("read blob", async move {
            let mut offset = offset;
            loop {
                let mut data = match download.read().await {
                    Ok(Some(data)) => data,
                    Ok(None) => return,
                    Err(fault) => return drop(sender.send(Err(status::of_call(&fault))).await),
                };
                while !data.is_empty() {
                    let part = data.split_to(data.len().min(READ_PART));
                    let next = offset + part.len() as u64;
                    if sender.send(Ok(pb::ReadContentResponse { offset: offset as i64, data: part })).await.is_err() {
                        return;
                    }
                    offset = next;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn update(&self, _: Request<pb::UpdateRequest>) -> Result<Response<pb::UpdateResponse>, Status> {
        refused()
    }

    async fn delete(&self, _: Request<pb::DeleteContentRequest>) -> Result<Response<()>, Status> {
        refused()
    }

    async fn status(&self, request: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        let missing = Fault::new(Kind::NotFound, format!("ref {}: not found", request.into_inner().r#ref));
        Err(status::of_call(&missing))
    }

    async fn list_statuses(&self, _: Request<pb::ListStatusesRequest>) -> Result<Response<pb::ListStatusesResponse>, Status> {
        Ok(Response::new(pb::ListStatusesResponse::default()))
    }

    type WriteStream = Answers<pb::WriteContentResponse>;

    async fn write(&self, _: Request<Streaming<pb::WriteContentRequest>>) -> Result<Response<Self::WriteStream>, Status> {
        refused()
    }

    async fn abort(&self, _: Request<pb::AbortRequest>) -> Result<Response<()>, Status> {
        refused()
    }
}
