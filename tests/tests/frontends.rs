//! Frontends in containers, and graphs that steps write.
#![allow(clippy::unwrap_used)]
use std::process::Output;

use client::{Client, Endpoint, new_id};
use oci::Digest;
use prost::Message as _;
use proto::moby::buildkit::v1::{self as control, frontend as gateway};
use proto::pb;
use serde_json::json;
use testkit::{BaseImage, Daemon, PATIENCE, Registry, Tar, busybox_image};

/// What a frontend writes to its pipe for one call of `Return` and nothing after it: an HTTP/2 connection, recorded.
fn returning(request: &gateway::ReturnRequest) -> Vec<u8> {
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let length = &(payload.len() as u32).to_be_bytes()[1..];
        [length, &[kind, flags], &stream.to_be_bytes(), payload].concat()
    };
    // Literal header fields, never indexed, without Huffman coding.
    let field = |name: &str, value: &str| [&[0x10, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat();
    let headers = [
        field(":method", "POST"),
        field(":scheme", "http"),
        field(":path", "/moby.buildkit.v1.frontend.LLBBridge/Return"),
        field(":authority", "localhost"),
        field("content-type", "application/grpc"),
        field("te", "trailers"),
    ]
    .concat();
    let message = request.encode_to_vec();
    let data = [&[0], (message.len() as u32).to_be_bytes().as_slice(), &message].concat();
    let (settings, no_more) = (frame(4, 0, 0, &[]), frame(7, 0, 0, &[0; 8]));
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), settings, frame(1, 4, 1, &headers), frame(0, 1, 1, &data), no_more].concat()
}

/// A frontend that does what its option `do` says.
fn frontend_image() -> BaseImage {
    let metadata = [("frontend.said".to_owned(), b"hello".to_vec())].into();
    let result = gateway::Result { metadata, ..Default::default() };
    let success = returning(&gateway::ReturnRequest { result: Some(result), error: None });
    let status = proto::google::rpc::Status { code: 9, message: "the frontend gives up".into(), details: Vec::new() };
    let failure = returning(&gateway::ReturnRequest { result: None, error: Some(status) });
    let script = "set -e\n\
        test -s /run/config/buildkit/metadata/frontend.bin\n\
        env | grep -q '^BUILDKIT_WORKERS=\\[{'\n\
        case \"$(env | grep '^BUILDKIT_FRONTEND_OPT_')\" in\n\
        *=do=succeed*) cat /success; cat > /dev/null ;;\n\
        *=do=fail*) cat /failure; cat > /dev/null; exit 3 ;;\n\
        *=do=die*) exit 7 ;;\n\
        *=do=regret*) cat /success; cat > /dev/null; exit 8 ;;\n\
        esac\n";
    let own = Tar::new().file("run.sh", 0o755, script).file("success", 0o644, success).file("failure", 0o644, failure).finish();
    let mut layers = busybox_image().layers;
    layers.push(own);
    let labels = json!({"moby.buildkit.frontend.caps": "moby.buildkit.frontend.subrequests"});
    BaseImage::of_layers(layers, json!({"Env": ["PATH=/bin"], "Entrypoint": ["/bin/sh", "/run.sh"], "Labels": labels}))
}

#[test]
fn a_frontend_in_a_container_drives_the_build() {
    let registry = Registry::start();
    registry.push("frontend", "latest", &frontend_image());
    let daemon = Daemon::start(&[]);
    let source = format!("source={}/frontend:latest", registry.host());
    let metadata = daemon.home().join("metadata.json");
    let build = |opts: &[&str]| -> Output {
        let mut args = vec!["build", "--progress", "plain", "--frontend", "gateway.v0", "--opt", &source];
        args.extend(opts.iter().flat_map(|opt| ["--opt", *opt]));
        args.extend(["--metadata-file", metadata.to_str().unwrap()]);
        daemon.kiln(&args).output().unwrap()
    };
    let told = |opts: &[&str]| {
        let output = build(opts);
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let output = build(&["do=succeed"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let response: serde_json::Value = serde_json::from_slice(&std::fs::read(&metadata).unwrap()).unwrap();
    assert_eq!(response["frontend.said"], "hello");
    for (what, want) in [
        ("do=fail", "the frontend gives up"),
        ("do=die", "exit code: 7"),
        ("do=regret", "exit code: 8"),
        ("do=nothing", "no result for incomplete build"),
    ] {
        let said = told(&[what]);
        assert!(said.contains(want), "{what}: {said}");
    }
    let said = told(&["do=succeed", "frontend.caps=moby.buildkit.frontend.subrequests,moby.buildkit.frontend.contexts"]);
    assert!(said.contains("unsupported frontend capability moby.buildkit.frontend.contexts"), "{said}");
}

/// As `docker buildx build --build-context docker/dockerfile:1=docker-image://...` asks for it.
#[test]
fn a_named_context_takes_the_place_of_the_image_that_a_dockerfile_asks_for() {
    let registry = Registry::start();
    registry.push("frontend", "latest", &frontend_image());
    let daemon = Daemon::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("Dockerfile"), "# syntax=docker/dockerfile:1\nFROM scratch\nCOPY Dockerfile /\n").unwrap();
    let metadata = daemon.home().join("metadata.json");
    let context = format!("context:docker/dockerfile:1=docker-image://{}/frontend:latest", registry.host());
    let args = ["build", "--progress", "plain", "--opt", &context, "--opt", "do=succeed", "--metadata-file", metadata.to_str().unwrap()];
    let output = daemon.ok(&[args.as_slice(), &[dir.path().to_str().unwrap()]].concat());
    let response: serde_json::Value = serde_json::from_slice(&std::fs::read(&metadata).unwrap()).unwrap();
    assert_eq!(response["frontend.said"], "hello", "{}", String::from_utf8_lossy(&output.stderr));
    let shown = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(shown.contains("[context docker/dockerfile:1]"), "{shown}");
}

fn digest(op: &pb::Op) -> String {
    Digest::of(op.encode_to_vec()).to_string()
}

fn definition(ops: &[&pb::Op]) -> pb::Definition {
    let inputs = ops.last().map(|op| pb::Input { digest: digest(op), index: 0 }).into_iter().collect();
    let end = pb::Op { inputs, ..Default::default() };
    pb::Definition { def: ops.iter().copied().chain([&end]).map(|op| op.encode_to_vec().into()).collect(), ..Default::default() }
}

fn over(inputs: &[&pb::Op], op: pb::op::Op) -> pb::Op {
    let inputs = inputs.iter().map(|op| pb::Input { digest: digest(op), index: 0 }).collect();
    pb::Op { inputs, op: Some(op), ..Default::default() }
}

fn made(path: &str, data: Vec<u8>) -> pb::Op {
    let action = pb::FileActionMkFile { path: path.into(), mode: 0o644, data, timestamp: -1, ..Default::default() };
    let action = pb::file_action::Action::Mkfile(action);
    over(
        &[],
        pb::op::Op::File(pb::FileOp { actions: vec![pb::FileAction { input: -1, secondary_input: -1, output: 0, action: Some(action) }] }),
    )
}

fn copied(from: &pb::Op, path: &str) -> pb::Op {
    let action = pb::FileActionCopy { src: path.into(), dest: "/copy".into(), mode: -1, timestamp: -1, ..Default::default() };
    let action = pb::file_action::Action::Copy(action);
    over(
        &[from],
        pb::op::Op::File(pb::FileOp { actions: vec![pb::FileAction { input: -1, secondary_input: 0, output: 0, action: Some(action) }] }),
    )
}

fn built(from: &pb::Op, attrs: &[(&str, &str)]) -> pb::Op {
    let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let inputs = [("buildkit.llb.definition".to_owned(), pb::BuildInput { input: 0 })].into();
    over(&[from], pb::op::Op::Build(pb::BuildOp { builder: -1, inputs, attrs, def: None }))
}

#[tokio::test]
async fn a_step_may_write_a_graph_that_another_builds() {
    let daemon = Daemon::start(&[]);
    let client = Client::connect(&Endpoint::Unix(daemon.socket()), PATIENCE).await.unwrap();
    let solve = async |definition: pb::Definition| {
        let request = control::SolveRequest { r#ref: new_id(), definition: Some(definition), ..Default::default() };
        client.control().solve(request).await.map_or_else(|status| status.message().to_owned(), |_| String::new())
    };
    let inner = made("/inner", b"inner".to_vec());
    let written = made("/graph", definition(&[&inner]).encode_to_vec());
    let nested = built(&written, &[("llbbuild.filename", "graph")]);
    let (good, bad) = (copied(&nested, "/inner"), copied(&nested, "/graph"));
    assert_eq!(solve(definition(&[&written, &nested, &good])).await, "");
    let said = solve(definition(&[&written, &nested, &bad])).await;
    assert!(said.contains("/graph") && said.contains("not found"), "the build's result is the graph's: {said}");
    let unnamed = built(&written, &[]);
    let said = solve(definition(&[&written, &unnamed])).await;
    assert!(said.contains("failed to open buildkit.llb.definition"), "{said}");

    // What a build may not do, a graph that it finds may not either.
    let meta = pb::Meta { args: vec!["/x".into()], cwd: "/".into(), ..Default::default() };
    let root = pb::Mount { input: 0, dest: "/".into(), output: 0, ..Default::default() };
    let exec = pb::ExecOp { meta: Some(meta), mounts: vec![root], security: pb::SecurityMode::Insecure.into(), ..Default::default() };
    let insecure = over(&[&inner], pb::op::Op::Exec(exec));
    let written = made("/graph", definition(&[&inner, &insecure]).encode_to_vec());
    let nested = built(&written, &[("llbbuild.filename", "graph")]);
    let said = solve(definition(&[&written, &nested])).await;
    assert!(said.contains("security.insecure is not allowed"), "{said}");
}
