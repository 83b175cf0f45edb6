//! A client that sends what it is told to, well formed or not.
use std::pin::Pin;

use ::client::{Client, Endpoint, new_id};
use bytes::Bytes;
use kiln_tests::session::serve;
use proto::fsutil::types::Packet;
use proto::moby::buildkit::v1 as pb;
use proto::moby::filesync::v1::file_sync_server::{FileSync, FileSyncServer};
use testkit::{Daemon, PATIENCE};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tonic::service::RoutesBuilder;
use tonic::{Request, Response, Status, Streaming};

const DIFF_COPY: &str = "/moby.filesync.v1.FileSync/DiffCopy";

pub async fn connect(daemon: &Daemon) -> Client {
    Client::connect(&Endpoint::Unix(daemon.socket()), PATIENCE).await.unwrap()
}

/// What the daemon says to a definition; empty if it builds.
pub async fn solve(client: &Client, definition: pb_of::Definition, session: &str) -> String {
    let request = pb::SolveRequest { r#ref: new_id(), definition: Some(definition), session: session.into(), ..Default::default() };
    let answer = tokio::time::timeout(PATIENCE, client.control().solve(request)).await.expect("an answer comes");
    answer.map_or_else(|status| status.message().to_owned(), |_| String::new())
}

pub use proto::pb as pb_of;

/// A session whose files are what `packets` says, whoever asks for what.
pub struct Liar {
    pub id: String,
}

impl Liar {
    pub async fn open(client: &Client, packets: Vec<Packet>) -> Self {
        let mut routes = RoutesBuilder::default();
        routes.add_service(FileSyncServer::new(Files { packets }));
        Self { id: serve(client, routes, &[DIFF_COPY]).await }
    }
}

/// A session on whose tunnel the caller itself sends bytes.
pub async fn tunnel(client: &Client) -> (mpsc::Sender<Bytes>, Streaming<pb::BytesMessage>, String) {
    kiln_tests::session::tunnel(client, &[DIFF_COPY]).await
}

struct Files {
    packets: Vec<Packet>,
}

type Answers = Pin<Box<dyn Stream<Item = Result<Packet, Status>> + Send>>;

#[tonic::async_trait]
impl FileSync for Files {
    type DiffCopyStream = Answers;

    async fn diff_copy(&self, request: Request<Streaming<Packet>>) -> Result<Response<Answers>, Status> {
        let mut requests = request.into_inner();
        tokio::spawn(async move { while let Ok(Some(_)) = requests.message().await {} });
        Ok(Response::new(Box::pin(tokio_stream::iter(self.packets.clone().into_iter().map(Ok)))))
    }

    type TarStreamStream = Answers;

    async fn tar_stream(&self, _: Request<Streaming<Packet>>) -> Result<Response<Answers>, Status> {
        Err(Status::unimplemented("no tars"))
    }
}
