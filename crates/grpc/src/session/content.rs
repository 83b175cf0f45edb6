//! A content store at the client's side, over containerd's content service.
use async_trait::async_trait;
use bytes::Bytes;
use fault::{Fault, Kind, Result};
use oci::Digest;
use proto::containerd::services::content::v1 as pb;
use session::{ContentStore, Download, Upload};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};
use wire::Connection;
use wire::status::into_fault;

use super::streams::{self, Incoming, WireDownload};

pub struct RemoteContent {
    connection: Connection,
    store: String,
}

type Client = pb::content_client::ContentClient<Connection>;

/// Bytes in one message of a write.
const CHUNK: usize = 1 << 20;

impl RemoteContent {
    pub fn new(connection: Connection, store: String) -> Self {
        Self { connection, store }
    }

    fn client(&self) -> Client {
        Client::with_origin(self.connection.clone(), http::Uri::from_static("http://localhost"))
            .max_decoding_message_size(wire::MAX_MESSAGE)
            .max_encoding_message_size(wire::MAX_MESSAGE)
    }

    fn request<T>(&self, message: T) -> Result<Request<T>> {
        let mut headers = MetadataMap::new();
        streams::set(&mut headers, "buildkit-attachable-store-id", &self.store)?;
        Ok(streams::request(headers, message))
    }
}

#[async_trait]
impl ContentStore for RemoteContent {
    async fn size(&self, digest: &Digest) -> Result<Option<u64>> {
        let request = self.request(pb::InfoRequest { digest: digest.to_string() })?;
        match self.client().info(request).await {
            Ok(answer) => Ok(answer.into_inner().info.map(|info| info.size as u64)),
            Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
            Err(status) => Err(into_fault(&status)),
        }
    }

    async fn read(&self, digest: &Digest, offset: u64) -> Result<Box<dyn Download>> {
        let request = self.request(pb::ReadContentRequest { digest: digest.to_string(), offset: offset as i64, size: 0 })?;
        let mut client = self.client();
        let incoming = Incoming::open(self.connection.life(), async move { client.read(request).await });
        Ok(Box::new(WireDownload::new(incoming.map(|message| message.map(|m| m.data)))))
    }

    async fn write(&self, digest: &Digest, size: u64) -> Result<Option<Box<dyn Upload>>> {
        let (sender, outgoing) = mpsc::channel(streams::QUEUE);
        let request = self.request(ReceiverStream::new(outgoing))?;
        let mut client = self.client();
        let mut incoming = Incoming::open(self.connection.life(), async move { client.write(request).await });
        let first = pb::WriteContentRequest {
            action: pb::WriteAction::Stat as i32,
            r#ref: format!("kiln-{digest}"),
            total: size as i64,
            expected: digest.to_string(),
            ..Default::default()
        };
        let _ = sender.send(first.clone()).await;
        match answer(&mut incoming).await {
            Err(status) if status.code() == tonic::Code::AlreadyExists => Ok(None),
            Err(status) => Err(into_fault(&status)),
            Ok(_) => Ok(Some(Box::new(Write { sender, incoming, template: first, offset: 0 }))),
        }
    }
}

async fn answer(incoming: &mut Incoming<pb::WriteContentResponse>) -> Result<pb::WriteContentResponse, Status> {
    incoming.next().await.unwrap_or_else(|| Err(Status::unknown("the content store ended the write early")))
}

/// A write in lockstep: the store answers every message.
struct Write {
    sender: mpsc::Sender<pb::WriteContentRequest>,
    incoming: Incoming<pb::WriteContentResponse>,
    template: pb::WriteContentRequest,
    offset: i64,
}

impl Write {
    async fn exchange(&mut self, request: pb::WriteContentRequest) -> Result<pb::WriteContentResponse, Status> {
        // If the store is gone the reason is in what it sent last.
        let _ = self.sender.send(request).await;
        answer(&mut self.incoming).await
    }
}

#[async_trait]
impl Upload for Write {
    async fn write(&mut self, mut data: Bytes) -> Result<()> {
        while !data.is_empty() {
            let chunk = data.split_to(data.len().min(CHUNK));
            let next = self.offset + chunk.len() as i64;
            let request = pb::WriteContentRequest {
                action: pb::WriteAction::Write as i32,
                offset: self.offset,
                data: chunk,
                ..self.template.clone()
            };
            let answer = self.exchange(request).await.map_err(|status| into_fault(&status))?;
            if answer.offset != next {
                return Err(Fault::new(Kind::Unknown, format!("content store is at offset {} instead of {next}", answer.offset)));
            }
            self.offset = next;
        }
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<()> {
        let request = pb::WriteContentRequest { action: pb::WriteAction::Commit as i32, offset: self.offset, ..self.template.clone() };
        match self.exchange(request).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == tonic::Code::AlreadyExists => Ok(()),
            Err(status) => Err(into_fault(&status)),
        }
    }
}
