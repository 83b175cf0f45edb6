//! `FileSync`: the daemon reads directories of ours.
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;

use async_trait::async_trait;
use fault::{Fault, Kind};
use futures_core::Stream;
use proto::fsutil::types::Packet as PbPacket;
use proto::moby::filesync::v1::file_sync_server::FileSync;
use session::{Packet, PacketSink, PacketSource};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};
use wire::status;

use crate::files::{Filter, send};

pub struct Files(pub BTreeMap<String, PathBuf>);

const QUEUE: usize = 64;

type Answers = Pin<Box<dyn Stream<Item = Result<PbPacket, Status>> + Send>>;

#[tonic::async_trait]
impl FileSync for Files {
    type DiffCopyStream = Answers;

    async fn diff_copy(&self, request: Request<Streaming<PbPacket>>) -> Result<Response<Answers>, Status> {
        let headers = request.metadata();
        let name = list(headers, "dir-name").into_iter().next().unwrap_or_default();
        let root = self.0.get(&name).cloned().ok_or_else(|| Status::not_found(format!("no access allowed to dir {name:?}")))?;
        let (include, exclude, follow) =
            (list(headers, "include-patterns"), list(headers, "exclude-patterns"), list(headers, "followpaths"));
        let (sender, stream) = mpsc::channel(QUEUE);
        let incoming = request.into_inner();
        task::spawn("send files", async move {
            let base = root.clone();
            let filter = task::blocking(move || {
                Filter::new(&base, &include, &exclude, &follow).map_err(|e| Fault::new(Kind::Unknown, format!("invalid patterns: {e}")))
            });
            let outcome = match filter.await {
                Ok(filter) => send(root, filter, Box::new(Sink(sender.clone())), Box::new(Source(incoming))).await,
                Err(fault) => Err(fault),
            };
            if let Err(fault) = outcome {
                let _ = sender.send(Err(status::of_build(&fault))).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    type TarStreamStream = Answers;

    async fn tar_stream(&self, _: Request<Streaming<PbPacket>>) -> Result<Response<Answers>, Status> {
        Err(Status::unimplemented("files are synced by DiffCopy only"))
    }
}

/// All values of a key, unescaped where they are marked as escaped.
fn list(headers: &MetadataMap, key: &str) -> Vec<String> {
    let values = headers.get_all(key).iter().filter_map(|value| value.to_str().ok());
    let escaped = headers.get(wire::is_escaped_key(key)).is_some_and(|mark| matches!(mark.to_str(), Ok("1" | "true")));
    values.map(|value| if escaped { wire::unescape(value).unwrap_or_default() } else { value.to_owned() }).collect()
}

pub struct Sink(pub mpsc::Sender<Result<PbPacket, Status>>);

#[async_trait]
impl PacketSink for Sink {
    async fn send(&mut self, packet: Packet) -> fault::Result<()> {
        let gone = |_| Fault::new(Kind::Unavailable, "the daemon ended the transfer");
        self.0.send(Ok(wire::from_packet(packet))).await.map_err(gone)
    }
}

pub struct Source(pub Streaming<PbPacket>);

#[async_trait]
impl PacketSource for Source {
    async fn receive(&mut self) -> fault::Result<Option<Packet>> {
        match self.0.message().await {
            Ok(packet) => packet.map(wire::into_packet).transpose(),
            Err(status) => Err(status::into_fault(&status)),
        }
    }
}
