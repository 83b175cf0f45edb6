//! Serves `Control.Session`: the stream is a byte pipe, and on it the daemon is the client.
use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use proto::moby::buildkit::v1::BytesMessage;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Status, Streaming};

use super::health;
use super::table::Sessions;
use super::wire_session::{Identity, WireSession};

const ID: &str = "x-docker-expose-session-uuid";
const SHARED_KEY: &str = "x-docker-expose-session-sharedkey";
const METHOD: &str = "x-docker-expose-session-grpc-method";
const HEALTH_INTERVAL: &str = "x-buildkit-session-health-custom-timeout";

/// Messages in each direction that wait to be taken.
const QUEUE: usize = 32;

pub type Outgoing = Pin<Box<dyn Stream<Item = Result<BytesMessage, Status>> + Send>>;

impl Identity {
    /// From the metadata of the call that opens the tunnel.
    pub fn from_metadata(metadata: &MetadataMap) -> Result<Self, Status> {
        let text = |key: &str| metadata.get(key).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        let id = text(ID);
        if id.is_empty() {
            return Err(Status::invalid_argument(format!("a session needs an id in {ID}")));
        }
        let methods: BTreeSet<String> =
            metadata.get_all(METHOD).iter().filter_map(|value| value.to_str().ok()).map(str::to_ascii_lowercase).collect();
        let millis = text(HEALTH_INTERVAL).parse::<u64>().ok().filter(|millis| *millis > 0);
        let health_interval = millis.map(|millis| Duration::from_millis(millis.max(1000)));
        Ok(Self { id, shared_key: text(SHARED_KEY), methods, health_interval })
    }
}

/// Opens the session and returns what goes back to the client. The session lives as long as the tunnel does.
pub async fn serve(sessions: &Sessions, identity: Identity, incoming: Streaming<BytesMessage>) -> Result<Outgoing, Status> {
    let (sender, outgoing) = mpsc::channel::<Bytes>(QUEUE);
    let pipe = wire::Pipe::new(incoming.map(|message| message.map(|m| m.data)), sender);
    let connection = wire::connect(pipe).await.map_err(|e| Status::unavailable(format!("cannot open the session: {e}")))?;
    let session = Arc::new(WireSession::new(identity, connection));
    let place = sessions.add(session.clone());
    task::spawn("session", async move {
        health::watch(&session).await;
        tracing::debug!(session = session.identity().id, reason = session.life().reason(), "session closed");
        drop(place);
    });
    Ok(Box::pin(ReceiverStream::new(outgoing).map(|data| Ok(BytesMessage { data }))))
}
