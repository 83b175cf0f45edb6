//! `ExecProcess` against containers whose every process is `cat`.
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use fault::{Fault, Kind, Result};
use job::{Container, Process, ProcessRequest};
use proto::moby::buildkit::v1 as control;
use proto::moby::buildkit::v1::frontend as pb;
use proto::moby::buildkit::v1::frontend::exec_message::Input;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use crate::daemon::house;

/// Its processes copy their input to their output and end with it, with code 0; `fail` as the command fails to start; signal n ends with 128 + n.
pub struct Cat;

struct Copying(watch::Sender<Option<i32>>);

#[async_trait]
impl Container for Cat {
    async fn start(&self, request: ProcessRequest) -> Result<Arc<dyn Process>> {
        if request.meta.args == ["fail"] {
            return Err(Fault::new(Kind::NotFound, "no such program"));
        }
        let ended = watch::channel(None).0;
        let end = ended.clone();
        tokio::spawn(async move {
            let copy = async {
                let Some(mut input) = request.stdin else { return };
                while let Some(data) = input.recv().await {
                    request.stdout.as_ref().unwrap().send(data).await.unwrap();
                }
            };
            let mut killed = end.subscribe();
            tokio::select! {
                () = copy => drop(end.send_replace(Some(0))),
                _ = killed.wait_for(Option::is_some) => {}
            }
        });
        Ok(Arc::new(Copying(ended)))
    }

    async fn read_file(&self, _: usize, _: &str, _: Option<(u64, u64)>) -> Result<Bytes> {
        Ok(Bytes::new())
    }

    async fn read_dir(&self, _: usize, _: &str, _: &str) -> Result<Vec<session::Stat>> {
        Ok(Vec::new())
    }

    async fn stat_file(&self, _: usize, _: &str) -> Result<session::Stat> {
        Ok(session::Stat::default())
    }

    async fn release(&self) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl Process for Copying {
    async fn wait(&self) -> Result<i32> {
        Ok(self.0.subscribe().wait_for(Option::is_some).await.unwrap().unwrap())
    }

    async fn resize(&self, _: u32, _: u32) -> Result<()> {
        Ok(())
    }

    async fn signal(&self, number: i32) -> Result<()> {
        self.0.send_replace(Some(128 + number));
        Ok(())
    }
}

struct Talk {
    sender: mpsc::Sender<pb::ExecMessage>,
    answers: tonic::Streaming<pb::ExecMessage>,
    _build: tokio::task::JoinHandle<()>,
}

/// A build with container `c` and a stream for its processes.
async fn talk() -> Talk {
    let (_daemon, _sessions, client) = house().await;
    let solving = client.clone();
    let build =
        tokio::spawn(async move { drop(solving.control().solve(control::SolveRequest { r#ref: "b".into(), ..Default::default() }).await) });
    fn of_build<T>(message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert("buildkit-controlapi-buildid", "b".parse().unwrap());
        request
    }
    let container = || of_build(pb::NewContainerRequest { container_id: "c".into(), ..Default::default() });
    client.bridge().new_container(container()).await.unwrap();
    let again = client.bridge().new_container(container()).await.unwrap_err();
    assert_eq!((again.code(), again.message()), (tonic::Code::AlreadyExists, "Container c already exists"));
    let (sender, messages) = mpsc::channel(16);
    let answers = client.bridge().exec_process(of_build(ReceiverStream::new(messages))).await.unwrap().into_inner();
    Talk { sender, answers, _build: build }
}

impl Talk {
    async fn send(&self, process: &str, input: Input) {
        self.sender.send(pb::ExecMessage { process_id: process.into(), input: Some(input) }).await.unwrap();
    }

    async fn start(&self, process: &str, init: pb::InitMessage) {
        self.send(process, Input::Init(pb::InitMessage { container_id: "c".into(), fds: vec![0, 1], ..init })).await;
    }

    /// Everything about one process until it is done.
    async fn until_done(&mut self) -> Vec<Input> {
        let mut seen = Vec::new();
        loop {
            let input = self.answers.message().await.unwrap().unwrap().input.unwrap();
            if matches!(input, Input::Done(_)) {
                return seen;
            }
            seen.push(input);
        }
    }
}

fn exit(seen: &[Input]) -> (u32, String) {
    let exit = seen.iter().find_map(|input| if let Input::Exit(exit) = input { Some(exit.clone()) } else { None }).unwrap();
    (exit.code, exit.error.map(|error| error.message).unwrap_or_default())
}

#[tokio::test]
async fn input_comes_back_as_output_and_everything_is_ended() {
    let mut talk = talk().await;
    talk.start("p", pb::InitMessage::default()).await;
    talk.send("p", Input::File(pb::FdMessage { fd: 0, data: b"hello".to_vec(), eof: false })).await;
    talk.send("p", Input::Resize(pb::ResizeMessage { rows: 1, cols: 2 })).await;
    talk.send("p", Input::File(pb::FdMessage { fd: 0, data: vec![], eof: true })).await;
    let seen = talk.until_done().await;
    assert!(matches!(seen[0], Input::Started(_)), "{seen:?}");
    assert_eq!(exit(&seen), (0, String::new()));
    let files: Vec<_> = seen
        .iter()
        .filter_map(|input| if let Input::File(file) = input { Some((file.fd, file.data.as_slice(), file.eof)) } else { None })
        .collect();
    assert_eq!(files, [(1, b"hello".as_slice(), false), (1, b"".as_slice(), true)]);
}

#[tokio::test]
async fn failures_to_start_are_told_by_the_exit() {
    let mut talk = talk().await;
    let meta = proto::pb::Meta { args: vec!["fail".into()], ..Default::default() };
    talk.start("p", pb::InitMessage { meta: Some(meta), ..Default::default() }).await;
    let seen = talk.until_done().await;
    assert!(matches!(seen[0], Input::Started(_)));
    assert_eq!(exit(&seen), (255, "no such program".to_owned()));
    talk.start("q", pb::InitMessage { security: 2, ..Default::default() }).await;
    assert_eq!(exit(&talk.until_done().await), (255, "invalid security mode 2".to_owned()));
}

#[tokio::test]
async fn signals_end_a_process_and_unknown_ones_the_stream() {
    let mut talk = talk().await;
    talk.start("p", pb::InitMessage::default()).await;
    talk.send("p", Input::Signal(pb::SignalMessage { name: "TERM".into() })).await;
    assert_eq!(exit(&talk.until_done().await), (143, "exit code: 143".to_owned()));
    talk.send("nobody", Input::File(pb::FdMessage::default())).await;
    let refused = talk.answers.message().await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (tonic::Code::NotFound, "IO for process \"nobody\" not found"));
}
