use std::sync::Arc;

use grpc::{Server, Sessions};
use prost::Message as _;
use prost_types::FileDescriptorProto;
use tokio_stream::StreamExt as _;
use tonic_reflection::pb::v1 as pb;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::daemon::Daemon;

async fn ask(question: MessageRequest) -> MessageResponse {
    let server = Server::new(Arc::new(Daemon::default()), Sessions::new());
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    server.connection(ours);
    let mut client = ServerReflectionClient::with_origin(wire::connect(theirs).await.unwrap(), "http://kiln".parse().unwrap());
    let request = pb::ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    answers.next().await.unwrap().unwrap().message_response.unwrap()
}

#[tokio::test]
async fn the_services_that_there_are_are_listed() {
    let MessageResponse::ListServicesResponse(listed) = ask(MessageRequest::ListServices(String::new())).await else { panic!("a list") };
    let mut names: Vec<String> = listed.service.into_iter().map(|service| service.name).collect();
    names.retain(|name| !name.starts_with("grpc.reflection."));
    names.sort();
    let expected = [
        "containerd.services.content.v1.Content",
        "grpc.health.v1.Health",
        "moby.buildkit.v1.Control",
        "moby.buildkit.v1.frontend.LLBBridge",
        "opentelemetry.proto.collector.trace.v1.TraceService",
    ];
    assert_eq!(names, expected);
}

#[tokio::test]
async fn a_services_methods_are_told() {
    let question = MessageRequest::FileContainingSymbol("moby.buildkit.v1.Control".into());
    let MessageResponse::FileDescriptorResponse(found) = ask(question).await else { panic!("a file") };
    let file = FileDescriptorProto::decode(found.file_descriptor_proto[0].as_slice()).unwrap();
    let control = file.service.iter().find(|service| service.name() == "Control").unwrap();
    assert!(control.method.iter().any(|method| method.name() == "Solve"));
}
