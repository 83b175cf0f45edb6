//! Exporters that a client names once the result is there: it is asked for them, and told of the response.
#![allow(clippy::unwrap_used)]
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use client::{Client, Endpoint, new_id};
use kiln_tests::session::serve;
use llb::{Builder, FileAction, FileActionKind, FileOp, Op};
use proto::moby::buildkit::v1 as pb;
use proto::moby::exporter::v1::exporter_server::{Exporter, ExporterServer};
use proto::moby::exporter::v1::{
    ExporterRequest, FinalizeExportRequest, FinalizeExportResponse, FindExportersRequest, FindExportersResponse,
};
use proto::moby::filesync::v1::BytesMessage;
use proto::moby::filesync::v1::file_send_server::{FileSend, FileSendServer};
use serde_json::Value;
use testkit::{Daemon, PATIENCE, Registry, read_tar};
use tokio_stream::Stream;
use tonic::service::RoutesBuilder;
use tonic::{Code, Request, Response, Status, Streaming};

const FIND: &str = "/moby.exporter.v1.Exporter/FindExporters";
const FINALIZE: &str = "/moby.exporter.v1.Exporter/FinalizeExport";
const SEND: &str = "/moby.filesync.v1.FileSend/DiffCopy";

/// What the client answers, and what it is told.
#[derive(Clone, Default)]
struct Script {
    exporters: Vec<ExporterRequest>,
    find_fails: Option<Status>,
    finalize_fails: Option<Status>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    asked: Vec<FindExportersRequest>,
    told: Vec<HashMap<String, String>>,
    /// By the exporter's index.
    files: HashMap<String, Vec<u8>>,
}

#[tonic::async_trait]
impl Exporter for Script {
    async fn find_exporters(&self, request: Request<FindExportersRequest>) -> Result<Response<FindExportersResponse>, Status> {
        self.seen.lock().unwrap().asked.push(request.into_inner());
        match &self.find_fails {
            Some(status) => Err(status.clone()),
            None => Ok(Response::new(FindExportersResponse { exporters: self.exporters.clone() })),
        }
    }

    async fn finalize_export(&self, request: Request<FinalizeExportRequest>) -> Result<Response<FinalizeExportResponse>, Status> {
        self.seen.lock().unwrap().told.push(request.into_inner().exporter_response.into_iter().collect());
        self.finalize_fails.clone().map_or_else(|| Ok(Response::new(FinalizeExportResponse {})), Err)
    }
}

#[tonic::async_trait]
impl FileSend for Script {
    type DiffCopyStream = Pin<Box<dyn Stream<Item = Result<BytesMessage, Status>> + Send>>;

    async fn diff_copy(&self, request: Request<Streaming<BytesMessage>>) -> Result<Response<Self::DiffCopyStream>, Status> {
        let index = request.metadata().get("buildkit-attachable-exporter-id").unwrap().to_str().unwrap().to_owned();
        let (mut incoming, mut file) = (request.into_inner(), Vec::new());
        while let Some(message) = incoming.message().await? {
            file.extend_from_slice(&message.data);
        }
        self.seen.lock().unwrap().files.insert(index, file);
        Ok(Response::new(Box::pin(tokio_stream::empty())))
    }
}

fn exporter(kind: &str, attrs: &[(&str, &str)]) -> ExporterRequest {
    ExporterRequest { r#type: kind.into(), attrs: attrs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect() }
}

/// Builds an image of one file, pushed as `name`, for a client that goes by the script.
async fn build(client: &Client, script: &Script, name: &str) -> Result<pb::SolveResponse, Status> {
    let mut routes = RoutesBuilder::default();
    routes.add_service(ExporterServer::new(script.clone())).add_service(FileSendServer::new(script.clone()));
    let session = serve(client, routes, &[FIND, FINALIZE, SEND]).await;
    let mut graph = Builder::new();
    let kind = FileActionKind::Mkfile { path: "/file".into(), mode: 0o644, data: "text".into(), owner: None, timestamp: -1 };
    let action = FileAction { input: None, secondary_input: None, output: Some(0), kind };
    let file = graph.add(Op::File(FileOp { actions: vec![action] }), vec![], None, vec![], Default::default());
    let definition = prost::Message::decode(graph.finish(Some(file)).to_bytes()).unwrap();
    let image = exporter("image", &[("name", name), ("push", "true")]);
    let request = pb::SolveRequest {
        r#ref: new_id(),
        definition: Some(definition),
        session,
        exporters: vec![pb::Exporter { r#type: image.r#type, attrs: image.attrs }],
        enable_session_exporter: true,
        ..Default::default()
    };
    client.control().solve(request).await.map(Response::into_inner)
}

async fn connect(daemon: &Daemon) -> Client {
    Client::connect(&Endpoint::Unix(daemon.socket()), PATIENCE).await.unwrap()
}

#[tokio::test]
async fn a_client_names_exporters_once_it_knows_the_result() {
    let (daemon, registry) = (Daemon::start(&[]), Registry::start());
    let client = connect(&daemon).await;
    let name = format!("{}/app:1", registry.host());
    let exporters =
        vec![exporter("oci", &[("compression", "zstd"), ("force-compression", "true"), ("name", "later:2")]), exporter("tar", &[])];
    let script = Script { exporters, ..Script::default() };
    let response = build(&client, &script, &name).await.unwrap();
    let seen = script.seen.lock().unwrap();
    assert_eq!(seen.asked.iter().map(|request| request.refs.len()).collect::<Vec<_>>(), [1]);
    // Theirs come after the request's own, of which there is one.
    assert_eq!(seen.files.keys().map(String::as_str).collect::<std::collections::BTreeSet<_>>(), ["1", "2"].into());
    let archive = read_tar(&seen.files["1"]);
    let index: Value = serde_json::from_slice(&archive["index.json"].data).unwrap();
    assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], "docker.io/library/later:2");
    let digest = index["manifests"][0]["digest"].as_str().unwrap();
    let manifest: Value = serde_json::from_slice(&archive[&format!("blobs/{}", digest.replace(':', "/"))].data).unwrap();
    assert_eq!(manifest["layers"][0]["mediaType"], "application/vnd.oci.image.layer.v1.tar+zstd");
    assert_eq!(read_tar(&seen.files["2"])["file"].data, b"text");
    // The client is told what it will get as the response, once everything is pushed.
    assert_eq!(seen.told, [response.exporter_response.into_iter().collect()]);
    assert_eq!(seen.told[0]["containerimage.digest"], digest, "that of the last exporter that has one");
    assert_eq!(registry.manifest("app", "1")["layers"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn what_the_client_answers_can_fail_the_build() {
    let (daemon, registry) = (Daemon::start(&[]), Registry::start());
    let client = connect(&daemon).await;
    let status = |code: Code| Some(Status::new(code, "the client says no"));
    let failing = [
        (Script { find_fails: status(Code::Unknown), ..Script::default() }, "the client says no", false),
        (Script { exporters: vec![exporter("nonsense", &[])], ..Script::default() }, "exporter \"nonsense\" could not be found", false),
        (Script { exporters: vec![exporter("oci", &[("tar", "x")])], ..Script::default() }, "non-bool value", false),
        (Script { finalize_fails: status(Code::Unknown), ..Script::default() }, "the client says no", true),
    ];
    for (number, (script, text, is_pushed)) in failing.into_iter().enumerate() {
        let refused = build(&client, &script, &format!("{}/refused:{number}", registry.host())).await.unwrap_err();
        assert!(refused.message().contains(text), "{number}: {refused}");
        assert_eq!(registry.get(&format!("/v2/refused/manifests/{number}")).status == 200, is_pushed, "{number}");
    }
    // A client that knows of no such thing is none that says no.
    for code in [Code::Unimplemented, Code::Unavailable] {
        let script = Script { find_fails: status(code), finalize_fails: status(code), ..Script::default() };
        build(&client, &script, &format!("{}/app:{code:?}", registry.host())).await.unwrap();
        assert_eq!(script.seen.lock().unwrap().told.len(), 1);
    }
}
