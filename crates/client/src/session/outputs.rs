//! `FileSend`: exporters write to us. One method, two kinds of messages: bytes of one file, or packets of a tree, as the target has it.
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::Write;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use fault::{Context as _, Fault, Kind, Result};
use futures_core::Stream;
use proto::fsutil::types::Packet as PbPacket;
use proto::moby::filesync::v1::BytesMessage;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::server::StreamingService;
use tonic::{Request, Response, Status, Streaming};
use wire::status;

use crate::files::{Mode, Receiver};

/// Where one exporter's output goes.
#[derive(Clone)]
pub enum Output {
    File(Target),
    Directory { path: PathBuf, mode: Mode },
}

/// Opens the file when the output comes, with the exporter's metadata; `None` if there is nothing to write because the target exists.
pub type Target = Arc<dyn Fn(&BTreeMap<String, String>) -> std::io::Result<Option<Box<dyn Write + Send>>> + Send + Sync>;

const QUEUE: usize = 32;

#[derive(Clone)]
pub struct Outputs(Arc<BTreeMap<usize, Output>>);

impl Outputs {
    pub fn new(outputs: BTreeMap<usize, Output>) -> Self {
        Self(Arc::new(outputs))
    }
}

impl tonic::server::NamedService for Outputs {
    const NAME: &'static str = "moby.filesync.v1.FileSend";
}

impl tower::Service<http::Request<Body>> for Outputs {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let header = |key: &str| request.headers().get(key).and_then(|value| value.to_str().ok());
        let index = header("buildkit-attachable-exporter-id").and_then(|id| id.parse().ok()).unwrap_or(0usize);
        let split_by_platform = header("buildkit-exporter-multi-platform") == Some("1");
        let known = request.uri().path() == "/moby.filesync.v1.FileSend/DiffCopy";
        let output = self.0.get(&index).cloned().filter(|_| known);
        Box::pin(async move {
            Ok(match output {
                None if !known => Status::unimplemented("no such method").into_http(),
                None => Status::unknown(format!("exporter {index} not found")).into_http(),
                Some(Output::File(target)) => server().streaming(FileCall(target), request).await,
                Some(Output::Directory { mode: Mode::Delete, .. }) if !split_by_platform => {
                    let text = "local exporter mode=delete requires a BuildKit daemon with multi-platform local export support";
                    Status::unknown(text).into_http()
                }
                Some(Output::Directory { path, mode }) => server().streaming(TreeCall { path, mode }, request).await,
            })
        })
    }
}

fn server<In, Out>() -> tonic::server::Grpc<tonic_prost::ProstCodec<Out, In>>
where
    In: prost::Message + Default + Send + 'static,
    Out: prost::Message + Send + 'static,
{
    tonic::server::Grpc::new(tonic_prost::ProstCodec::default())
        .apply_max_message_size_config(Some(wire::MAX_MESSAGE), Some(wire::MAX_MESSAGE))
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Answered<T> = Pin<Box<dyn Future<Output = Result<Response<Answers<T>>, Status>> + Send>>;

struct FileCall(Target);

impl StreamingService<BytesMessage> for FileCall {
    type Response = BytesMessage;
    type ResponseStream = Answers<BytesMessage>;
    type Future = Answered<BytesMessage>;

    fn call(&mut self, request: Request<Streaming<BytesMessage>>) -> Self::Future {
        let target = self.0.clone();
        Box::pin(async move {
            let metadata = request.metadata().iter().filter_map(|entry| match entry {
                tonic::metadata::KeyAndValueRef::Ascii(key, value) => {
                    Some((key.as_str().strip_prefix("exporter-md-")?.to_owned(), value.to_str().ok()?.to_owned()))
                }
                tonic::metadata::KeyAndValueRef::Binary(..) => None,
            });
            let metadata: BTreeMap<String, String> = metadata.collect();
            let (sender, chunks) = mpsc::channel(QUEUE);
            let writing = task::spawn("write output", task::blocking(move || write(&target, &metadata, chunks)));
            let mut incoming = request.into_inner();
            let answer = async move {
                let mut failure = None;
                loop {
                    match incoming.next().await {
                        Some(Ok(message)) => {
                            if sender.send(message.data).await.is_err() {
                                break;
                            }
                        }
                        Some(Err(status)) => {
                            failure = Some(status);
                            break;
                        }
                        None => break,
                    }
                }
                drop(sender);
                let written = writing.join().await.and_then(|written| written).map_err(|fault| status::of_call(&fault));
                failure.map_or(written, Err)
            };
            // Ends with the status and no message.
            let end = futures_util::FutureExt::into_stream(answer).filter_map(|outcome| outcome.err().map(Err));
            Ok(Response::new(Box::pin(end) as Answers<BytesMessage>))
        })
    }
}

/// Blocking.
fn write(target: &Target, metadata: &BTreeMap<String, String>, mut chunks: mpsc::Receiver<Bytes>) -> Result<()> {
    let file = target(metadata).context("failed to open the output")?;
    let mut file = file.ok_or_else(|| Fault::new(Kind::AlreadyExists, "target already exists"))?;
    while let Some(chunk) = chunks.blocking_recv() {
        file.write_all(&chunk).context("failed to write the output")?;
    }
    file.flush().context("failed to write the output")
}

struct TreeCall {
    path: PathBuf,
    mode: Mode,
}

/// Packets that are handed over together, and how often that may be before they are taken.
const SHARE: usize = 64;
const SHARES: usize = 4;

type Replies = mpsc::Sender<Vec<Result<PbPacket, Status>>>;

impl StreamingService<PbPacket> for TreeCall {
    type Response = PbPacket;
    type ResponseStream = Answers<PbPacket>;
    type Future = Answered<PbPacket>;

    fn call(&mut self, request: Request<Streaming<PbPacket>>) -> Self::Future {
        let (path, mode) = (self.path.clone(), self.mode);
        Box::pin(async move {
            let (replies, stream) = mpsc::channel(SHARES);
            let incoming = request.into_inner();
            task::spawn("receive tree", async move {
                if let Err(fault) = receive(path, mode, incoming, &replies).await {
                    let packet = wire::from_packet(session::Packet::Error(fault.to_string()));
                    let _ = replies.send(vec![Ok(packet), Err(status::of_build(&fault))]).await;
                }
            });
            let stream = futures_util::StreamExt::flat_map(ReceiverStream::new(stream), futures_util::stream::iter);
            Ok(Response::new(Box::pin(stream) as Answers<PbPacket>))
        })
    }
}

async fn receive(path: PathBuf, mode: Mode, incoming: Streaming<PbPacket>, replies: &Replies) -> Result<()> {
    let receiver = task::blocking(move || Receiver::new(&path, mode)).await?;
    let receiver = Arc::new(Mutex::new(receiver));
    let (packets, queue) = mpsc::channel(SHARES);
    let working = task::spawn("write tree", {
        let (receiver, replies) = (receiver.clone(), replies.clone());
        task::blocking(move || work(&receiver, queue, &replies))
    });
    // Most packets are small, and so is what is done with one: what has come already goes on together.
    let mut incoming = futures_util::StreamExt::ready_chunks(incoming, SHARE);
    let mut broken = None;
    while let Some(share) = incoming.next().await {
        let sound = |packet: Result<_, Status>| packet.map_err(|status| broken = Some(status::into_fault(&status))).ok();
        let share = share.into_iter().map_while(sound).collect();
        if packets.send(share).await.is_err() || broken.is_some() {
            break;
        }
    }
    drop(packets);
    working.join().await??;
    if receiver.lock().expect("no holder of this lock panics").is_finished() {
        return Ok(());
    }
    Err(broken.unwrap_or_else(|| Fault::new(Kind::Unavailable, "the sender ended the transfer early")))
}

/// Blocking.
fn work(receiver: &Mutex<Receiver>, mut queue: mpsc::Receiver<Vec<PbPacket>>, replies: &Replies) -> Result<()> {
    let mut receiver = receiver.lock().expect("no holder of this lock panics");
    while let Some(share) = queue.blocking_recv() {
        let mut answers = Vec::new();
        for packet in share {
            answers.extend(receiver.take(wire::into_packet(packet)?)?.map(|reply| Ok(wire::from_packet(reply))));
        }
        // A sender that does not listen any more will not send what was asked for either.
        if !answers.is_empty() && replies.blocking_send(answers).is_err() {
            return Ok(());
        }
    }
    Ok(())
}
