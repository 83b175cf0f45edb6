//! Streams of a session call: packets, uploads, downloads.
//!
//! Peers that only receive send no response headers until they are done, so a streaming call is opened in the background and its answer awaited only when
//! somebody reads.
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use bytes::Bytes;
use fault::{Fault, Kind, Result};
use futures_core::Stream;
use session::{Download, FileStream, Packet, PacketSink, PacketSource, Upload};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{MetadataKey, MetadataMap, MetadataValue};
use tonic::{Code, Request, Response, Status, Streaming};
use wire::Connection;
use wire::status::into_fault;

/// Messages on their way out that are not yet in the connection's hands.
pub const QUEUE: usize = 32;
/// Stock peers refuse messages of more than 4 MiB.
const MAX_CHUNK: usize = 3 << 20;

pub fn set(headers: &mut MetadataMap, key: &str, value: &str) -> Result<()> {
    let bad = || Fault::invalid(format!("{key:?} with value {value:?} cannot be sent as metadata"));
    let key = MetadataKey::from_bytes(key.as_bytes()).map_err(|_| bad())?;
    headers.insert(key, MetadataValue::try_from(value).map_err(|_| bad())?);
    Ok(())
}

/// Sets all values of a key, escaped where the protocol wants it.
pub fn set_list(headers: &mut MetadataMap, key: &'static str, values: &[String]) -> Result<()> {
    let (values, escaped) = wire::escape(values);
    for value in values {
        let value = MetadataValue::try_from(&value).map_err(|_| Fault::invalid(format!("{key} {value:?} cannot be sent as metadata")))?;
        headers.append(key, value);
    }
    if escaped { set(headers, &wire::is_escaped_key(key), "1") } else { Ok(()) }
}

pub fn request<T>(headers: MetadataMap, message: T) -> Request<T> {
    Request::from_parts(headers, tonic::Extensions::new(), message)
}

/// Calls a method with packets both ways.
pub async fn packets_call<S>(
    connection: Connection,
    path: &'static str,
    request: Request<S>,
) -> Result<Response<Streaming<PbPacket>>, Status>
where
    S: Stream<Item = PbPacket> + Send + 'static,
{
    let origin = http::Uri::from_static("http://localhost");
    let mut grpc = tonic::client::Grpc::with_origin(connection, origin).max_decoding_message_size(wire::MAX_MESSAGE);
    grpc.ready().await.map_err(|e| Status::unavailable(format!("the session's connection is gone: {e}")))?;
    grpc.streaming(request, http::uri::PathAndQuery::from_static(path), tonic_prost::ProstCodec::default()).await
}

pub type PbPacket = proto::fsutil::types::Packet;

/// The answer of a streaming call that may not have begun yet.
pub struct Incoming<T> {
    state: State<T>,
    /// Ends the call when dropped.
    _guard: task::CancelOnDrop,
}

enum State<T> {
    Opening(oneshot::Receiver<Result<Response<Streaming<T>>, Status>>),
    Open(Box<Streaming<T>>),
    Ended,
}

impl<T: Send + 'static> Incoming<T> {
    /// Starts the call. It ends with `session`, or when the returned stream is dropped.
    pub fn open(session: &task::Cancel, call: impl Future<Output = Result<Response<Streaming<T>>, Status>> + Send + 'static) -> Self {
        let (answer, opening) = oneshot::channel();
        let cancel = session.child();
        let guard = task::CancelOnDrop::new(cancel.clone(), "the stream was dropped");
        task::spawn("session call", async move {
            let mut outcome = tokio::select! {
                outcome = call => outcome,
                () = cancel.cancelled() => Err(Status::cancelled(cancel.reason())),
            };
            if let Err(status) = &outcome
                && is_ours(status)
            {
                outcome = Err(Status::unavailable(format!("the client's session broke: {}", status.message())));
            }
            let _ = answer.send(outcome);
        });
        Self { state: State::Opening(opening), _guard: guard }
    }
}

/// Whether tonic or hyper made this of a connection that is gone, rather than the client.
fn is_ours(status: &Status) -> bool {
    std::error::Error::source(status).is_some() || status.message().starts_with("Service was not ready")
}

impl<T> Stream for Incoming<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let this = &mut *self;
            match &mut this.state {
                State::Opening(opening) => match ready!(Pin::new(opening).poll(cx)) {
                    Ok(Ok(response)) => this.state = State::Open(Box::new(response.into_inner())),
                    Ok(Err(status)) => {
                        this.state = State::Ended;
                        return Poll::Ready(Some(Err(status)));
                    }
                    Err(_) => return Poll::Ready(Some(Err(Status::cancelled("the call was abandoned")))),
                },
                State::Open(stream) => {
                    let next = ready!(Pin::new(stream.as_mut()).poll_next(cx));
                    if !matches!(next, Some(Ok(_))) {
                        this.state = State::Ended;
                    }
                    return Poll::Ready(next);
                }
                State::Ended => return Poll::Ready(None),
            }
        }
    }
}

fn no_reader() -> Fault {
    Fault::new(Kind::Unavailable, "the client ended the transfer")
}

pub struct PacketStream {
    sink: Sink,
    source: Source,
}

struct Sink(mpsc::Sender<Vec<Packet>>);

struct Source {
    incoming: Incoming<PbPacket>,
    /// What ended the stream, behind packets that came before.
    failure: Option<Fault>,
}

/// How many packets, and how many bytes in them, are handed over at once.
const SOME: (usize, usize) = (256, 512 << 10);

/// Lists of packets on their way out that are not yet in the connection's hands.
const LISTS: usize = 8;

/// What leads from a [`PacketStream`] to the call that sends its packets.
pub fn packet_queue() -> (mpsc::Sender<Vec<Packet>>, impl Stream<Item = PbPacket>) {
    let (sender, outgoing) = mpsc::channel::<Vec<Packet>>(LISTS);
    let packets = ReceiverStream::new(outgoing).map(tokio_stream::iter);
    (sender, futures_util::StreamExt::flatten(packets).map(wire::from_packet))
}

impl PacketStream {
    pub fn new(sender: mpsc::Sender<Vec<Packet>>, incoming: Incoming<PbPacket>) -> Self {
        Self { sink: Sink(sender), source: Source { incoming, failure: None } }
    }
}

#[async_trait]
impl FileStream for PacketStream {
    async fn send(&mut self, packet: Packet) -> Result<()> {
        match self.sink.send(packet).await {
            Ok(()) => Ok(()),
            // Why the client stopped reading is at the end of what it sent.
            Err(gone) => loop {
                match self.source.receive().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return Err(gone),
                    Err(fault) => return Err(fault),
                }
            },
        }
    }

    async fn receive(&mut self) -> Result<Option<Packet>> {
        self.source.receive().await
    }

    fn split(self: Box<Self>) -> (Box<dyn PacketSink>, Box<dyn PacketSource>) {
        (Box::new(self.sink), Box::new(self.source))
    }
}

#[async_trait]
impl PacketSink for Sink {
    async fn send(&mut self, packet: Packet) -> Result<()> {
        self.send_some(vec![packet]).await
    }

    async fn send_some(&mut self, packets: Vec<Packet>) -> Result<()> {
        self.0.send(packets).await.map_err(|_| no_reader())
    }
}

impl Source {
    /// The next packet; `None` at the end.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Packet>>> {
        if let Some(failure) = self.failure.take() {
            return Poll::Ready(Err(failure));
        }
        Poll::Ready(match ready!(Pin::new(&mut self.incoming).poll_next(cx)) {
            Some(Ok(packet)) => wire::into_packet(packet).map(Some),
            Some(Err(status)) => Err(into_fault(&status)),
            None => Ok(None),
        })
    }
}

#[async_trait]
impl PacketSource for Source {
    async fn receive(&mut self) -> Result<Option<Packet>> {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    async fn receive_some(&mut self) -> Result<Vec<Packet>> {
        let mut packets: Vec<Packet> = self.receive().await?.into_iter().collect();
        let mut bytes = 0;
        std::future::poll_fn(|cx| {
            while !packets.is_empty() && packets.len() < SOME.0 && bytes < SOME.1 {
                match self.poll(cx) {
                    Poll::Ready(Ok(Some(packet))) => {
                        bytes += if let Packet::Data { data, .. } = &packet { data.len() } else { 0 };
                        packets.push(packet);
                    }
                    Poll::Ready(Err(failure)) => {
                        self.failure = Some(failure);
                        break;
                    }
                    // The end stays the end.
                    Poll::Ready(Ok(None)) | Poll::Pending => break,
                }
            }
            Poll::Ready(())
        })
        .await;
        Ok(packets)
    }
}

/// A file on its way to the client, in messages that stock clients take.
pub struct WireUpload<T> {
    sender: mpsc::Sender<Bytes>,
    incoming: Incoming<T>,
}

impl<T: Send + 'static> WireUpload<T> {
    pub fn new(sender: mpsc::Sender<Bytes>, incoming: Incoming<T>) -> Self {
        Self { sender, incoming }
    }

    async fn ended(incoming: &mut Incoming<T>) -> Result<()> {
        while let Some(message) = incoming.next().await {
            match message {
                Ok(_) => {}
                // The target exists already: nothing to do.
                Err(status) if status.code() == Code::AlreadyExists => return Ok(()),
                Err(status) => return Err(into_fault(&status)),
            }
        }
        Ok(())
    }
}

#[async_trait]
impl<T: Send + 'static> Upload for WireUpload<T> {
    async fn write(&mut self, mut data: Bytes) -> Result<()> {
        while !data.is_empty() {
            let chunk = data.split_to(data.len().min(MAX_CHUNK));
            if self.sender.send(chunk).await.is_err() {
                return Self::ended(&mut self.incoming).await;
            }
        }
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<()> {
        let Self { sender, mut incoming } = *self;
        drop(sender);
        Self::ended(&mut incoming).await
    }
}

pub struct WireDownload<S>(S);

impl<S> WireDownload<S> {
    pub fn new(stream: S) -> Self {
        Self(stream)
    }
}

#[async_trait]
impl<S: Stream<Item = Result<Bytes, Status>> + Send + Unpin> Download for WireDownload<S> {
    async fn read(&mut self) -> Result<Option<Bytes>> {
        self.0.next().await.transpose().map_err(|status| into_fault(&status))
    }
}
