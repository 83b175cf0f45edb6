//! Containers of a gateway get no more than steps do, whatever their caller asks for (CVE-2024-23653).
use ::client::new_id;
use proto::moby::buildkit::v1 as control;
use proto::moby::buildkit::v1::frontend as pb;
use proto::moby::buildkit::v1::frontend::exec_message::Input;
use testkit::{Daemon, PATIENCE};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;

use crate::client::connect;
use crate::lives_on;

const UNSET: i32 = 0;
const HOST: i32 = 1;
const SANDBOX: i32 = 0;
const INSECURE: i32 = 1;

/// What becomes of a program that does not exist, in an empty container with this network, asked for in this mode. The client grants nothing.
async fn outcome(daemon: &Daemon, network: i32, security: i32) -> String {
    let client = connect(daemon).await;
    let build = new_id();
    let request = control::SolveRequest { r#ref: build.clone(), ..Default::default() };
    let solving = client.clone();
    let solving = tokio::spawn(async move { drop(solving.control().solve(request).await) });
    fn of_build<T>(build: &str, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("buildkit-controlapi-buildid", build.parse().unwrap());
        request
    }
    let root = proto::pb::Mount { dest: "/".into(), output: -1, ..Default::default() };
    let container = pb::NewContainerRequest { container_id: "c".into(), mounts: vec![root], network, ..Default::default() };
    client.bridge().new_container(of_build(&build, container)).await.unwrap();
    let (sender, messages) = mpsc::channel(4);
    let mut answers = client.bridge().exec_process(of_build(&build, ReceiverStream::new(messages))).await.unwrap().into_inner();
    let meta = proto::pb::Meta { args: vec!["/nothing".into()], cwd: "/".into(), ..Default::default() };
    let init = pb::InitMessage { container_id: "c".into(), meta: Some(meta), fds: vec![1, 2], security, ..Default::default() };
    sender.send(pb::ExecMessage { process_id: "p".into(), input: Some(Input::Init(init)) }).await.unwrap();
    let exit = async {
        loop {
            if let Some(Input::Exit(exit)) = answers.message().await.unwrap().unwrap().input {
                return exit.error.map(|error| error.message).unwrap_or_default();
            }
        }
    };
    let said = tokio::time::timeout(PATIENCE, exit).await.expect("the process ends");
    solving.abort();
    said
}

/// The operator grants everything; the client has not.
#[tokio::test]
async fn privileges_of_containers_need_a_grant() {
    let daemon = Daemon::start(&["--allow-insecure-entitlement", "security.insecure", "--allow-insecure-entitlement", "network.host"]);
    let plain = outcome(&daemon, UNSET, SANDBOX).await;
    assert_eq!(plain, "exit code: 1", "there is a container, without that program");
    let insecure = outcome(&daemon, UNSET, INSECURE).await;
    assert!(insecure.contains("security.insecure is not allowed"), "{insecure}");
    let host = outcome(&daemon, HOST, SANDBOX).await;
    assert!(host.contains("network.host is not allowed"), "{host}");
    lives_on(&daemon);
}
