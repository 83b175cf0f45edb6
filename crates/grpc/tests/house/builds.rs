use std::sync::Arc;

use client::build::{self, Build, Typed};
use client::session::Session;
use fault::{Detail, Fault, Kind, Range};
use frontend::Outcome;
use oci::Digest;
use progress::{Sink as _, Update, Vertex};
use proto::moby::buildkit::v1 as pb;
use tokio::sync::mpsc;

use crate::daemon::{Daemon, house};

async fn run(
    daemon: &Arc<Daemon>,
    client: &client::Client,
    id: &str,
    during: impl FnOnce(&Daemon),
) -> (fault::Result<build::Outcome>, Vec<pb::StatusResponse>) {
    let (sender, mut parts) = mpsc::channel(100);
    let exporters = vec![Typed { kind: "image".into(), attrs: [("name".to_owned(), "x".to_owned())].into() }];
    let build = Build { id: id.into(), frontend: "dockerfile.v0".into(), exporters, ..Build::default() };
    during(daemon);
    let running = build::run(client, Session::new(""), build, sender);
    let collect = async {
        let mut all = Vec::new();
        while let Some(part) = parts.recv().await {
            all.push(part);
        }
        all
    };
    tokio::join!(running, collect)
}

#[tokio::test]
async fn a_client_driven_build_from_request_to_response() {
    let (daemon, _sessions, client) = house().await;
    let metadata = [("containerimage.digest".to_owned(), bytes::Bytes::from_static(b"sha256:0"))].into();
    *daemon.outcome.lock().unwrap() = Some(Ok(Outcome { metadata, ..Outcome::default() }));
    let (outcome, _) = run(&daemon, &client, "b1", |_| {}).await;
    assert_eq!(outcome.unwrap().exporter["containerimage.digest"], "sha256:0");
    let requests = daemon.requests.lock().unwrap();
    let [request] = requests.as_slice() else { panic!() };
    assert!(request.client_driven() && !request.session.is_empty());
    assert_eq!(request.exporters.len(), 1, "the legacy field is not a second exporter");
}

#[tokio::test]
async fn a_failure_keeps_its_text_and_details_on_the_way_round() {
    let (daemon, _sessions, client) = house().await;
    let ranges = vec![Range { start: (2, 0), end: (2, 9) }];
    let source = Detail::Source {
        filename: "Dockerfile".into(),
        language: "Dockerfile".into(),
        data: "FROM x\nRUN false\n".repeat(20_000).into_bytes(),
        definition: vec![],
        ranges,
    };
    let foreign = Detail::Other { type_url: "example.com/own".into(), value: vec![0, 255] };
    let fault =
        Fault::new(Kind::Unknown, "exit code: 1").context("process \"false\"").with_detail(foreign.clone()).with_detail(source.clone());
    *daemon.outcome.lock().unwrap() = Some(Err(fault));
    let (outcome, _) = run(&daemon, &client, "b2", |_| {}).await;
    let fault = outcome.unwrap_err();
    assert_eq!(fault.to_string(), "failed to solve: process \"false\": exit code: 1");
    let details: Vec<Detail> = fault.details().into_iter().cloned().map(wire::decode_detail).collect();
    assert_eq!(details, [source, foreign]);
}

#[tokio::test]
async fn progress_is_complete_however_late_the_watcher() {
    let (daemon, _sessions, client) = house().await;
    let solving = tokio::spawn({
        let client = client.clone();
        async move { client.control().solve(pb::SolveRequest { r#ref: "b3".into(), ..Default::default() }).await }
    });
    // Status before the build exists: it waits.
    let early = tokio::spawn({
        let client = client.clone();
        async move { collect(&client, "b3").await }
    });
    while daemon.requests.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    let hub = daemon.hub("b3");
    let vertex = Vertex { digest: Digest::of("v"), inputs: vec![], name: "step".into(), group: None };
    hub.emit(Update::Announced(vertex));
    hub.emit(Update::Started { vertex: Digest::of("v") });
    let lines: Vec<String> = (0..3000).map(|n| format!("line {n:01000}\n")).collect();
    for line in &lines {
        hub.emit(Update::Log { vertex: Digest::of("v"), stream: 1, data: line.clone().into() });
    }
    let mut request = tonic::Request::new(pb::frontend::ReturnRequest { result: Some(Default::default()), error: None });
    request.metadata_mut().insert("buildkit-controlapi-buildid", "b3".parse().unwrap());
    client.bridge().r#return(request).await.unwrap();
    solving.await.unwrap().unwrap();
    for (parts, who) in [(early.await.unwrap(), "early"), (collect(&client, "b3").await, "late")] {
        let logs: Vec<u8> = parts.iter().flat_map(|p| &p.logs).flat_map(|log| &log.msg).copied().collect();
        assert!(logs == lines.concat().as_bytes(), "{who}: {} bytes", logs.len());
        let last = parts.iter().flat_map(|p| &p.vertexes).next_back().unwrap();
        assert!(last.completed.is_some() && last.error == "context canceled", "what was running is closed");
        assert!(parts.iter().all(|p| p.logs.iter().map(|l| l.msg.len()).sum::<usize>() <= 1 << 20));
    }
}

async fn collect(client: &client::Client, id: &str) -> Vec<pb::StatusResponse> {
    let mut all = Vec::new();
    client.status(id, |part| all.push(part)).await.unwrap();
    all
}

#[tokio::test]
async fn a_cancelled_call_cancels_the_build() {
    let (daemon, _sessions, client) = house().await;
    let solving = tokio::spawn({
        let client = client.clone();
        async move { client.control().solve(pb::SolveRequest { r#ref: "b5".into(), ..Default::default() }).await }
    });
    while daemon.running() == 0 {
        tokio::task::yield_now().await;
    }
    let again = client.control().solve(pb::SolveRequest { r#ref: "b5".into(), ..Default::default() }).await.unwrap_err();
    assert_eq!(again.message(), "job ID b5 exists");
    solving.abort();
    while daemon.running() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn status_headers_come_before_anything_else() {
    let (_daemon, _sessions, client) = house().await;
    let answer = client.control().status(pb::StatusRequest { r#ref: "nobody".into() }).await.unwrap();
    let clock = answer.metadata().get("buildkit-current-timestamp").unwrap().to_str().unwrap();
    assert!(clock.starts_with("20") && clock.ends_with('Z'), "{clock}");
    let history = client.control().listen_build_history(pb::BuildHistoryRequest::default()).await.unwrap();
    assert!(history.metadata().contains_key("buildkit-current-timestamp"));
}

#[tokio::test]
async fn the_gateway_says_what_it_can_and_wants_a_build() {
    let (daemon, _sessions, client) = house().await;
    let ping = |id: Option<&str>| {
        let mut request = tonic::Request::new(pb::frontend::PingRequest {});
        if let Some(id) = id {
            request.metadata_mut().insert("buildkit-controlapi-buildid", id.parse().unwrap());
        }
        let client = client.clone();
        async move { client.bridge().ping(request).await }
    };
    assert_eq!(ping(None).await.unwrap_err().message(), "no buildid found in context");
    let missing = ping(Some("nobody")).await.unwrap_err();
    assert_eq!((missing.code(), missing.message()), (tonic::Code::NotFound, "no such job nobody"));
    // The call may come before the build.
    let waiting = tokio::spawn(ping(Some("b4")));
    let solving = tokio::spawn({
        let client = client.clone();
        async move { client.control().solve(pb::SolveRequest { r#ref: "b4".into(), ..Default::default() }).await }
    });
    let pong = waiting.await.unwrap().unwrap().into_inner();
    assert_eq!(pong.frontend_api_caps.len(), 27);
    assert!(pong.llb_caps.iter().any(|cap| cap.id == "soruce.http.uidgid" && cap.enabled));
    assert!(pong.llb_caps.windows(2).all(|w| w[0].id < w[1].id));
    assert_eq!(daemon.requests.lock().unwrap().len(), 1);
    solving.abort();
}

#[tokio::test]
async fn small_calls() {
    let (_daemon, _sessions, client) = house().await;
    assert_eq!(client.info().await.unwrap().version, "v0.32.0+kiln.0");
    let workers = client.workers(vec![]).await.unwrap();
    assert_eq!((workers[0].id.as_str(), workers[0].gc_policy[0].keep_duration), ("w", 1_000_000_000));
    assert_eq!(client.workers(vec!["id==x".into()]).await.unwrap().len(), 0);
    assert_eq!(client.workers(vec![r#"labels."a.b"==c"#.into()]).await.unwrap().len(), 1);
    assert_eq!(client.workers(vec!["==".into()]).await.unwrap_err().kind(), Kind::Invalid);
    assert_eq!(client.disk_usage(vec![]).await.unwrap().len(), 2);
    let mut deleted = Vec::new();
    let pruned = client.prune(pb::PruneRequest::default(), |record| deleted.push(record.id)).await;
    assert_eq!((pruned.unwrap_err().to_string().as_str(), deleted), ("no more", vec!["a".to_owned()]));
    let mut blob = Vec::new();
    let hello = Digest::of("hello");
    let read = client.blob(hello.as_str(), |part| {
        blob.extend_from_slice(part);
        Ok(())
    });
    read.await.unwrap();
    assert_eq!(blob, b"hello");
    assert_eq!(client.blob(Digest::of("x").as_str(), |_| Ok(())).await.unwrap_err().kind(), Kind::NotFound);
    let mut events = 0;
    client.history(pb::BuildHistoryRequest { active_only: true, early_exit: true, ..Default::default() }, |_| events += 1).await.unwrap();
    assert_eq!(events, 0);
}
