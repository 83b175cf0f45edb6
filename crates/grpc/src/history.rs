//! The build history on the wire: records as messages, and how its blobs are written and read back.
use std::panic::Location;

use bytes::{Buf as _, Bytes, BytesMut};
use fault::{Fault, Kind};
use job::history::{Encoding, Event, Failure, Query, Record, Results};
use job::{Version, progress_hub};
use oci::Descriptor;
use prost::Message as _;
use prost_types::Any;
use proto::moby::buildkit::v1 as pb;
use serde_json::json;
use session::Download;
use tokio::sync::mpsc;
use tonic::Status;
use wire::status;

use crate::convert::timestamp;
use crate::status_stream;

/// Blobs of the history as BuildKit's clients read them.
#[derive(Debug, Clone, Default)]
pub struct WireEncoding {
    /// Of the daemon, as stacks of failures name it.
    pub version: Version,
}

const STACK: &str = "github.com/moby/buildkit/stack.Stack+json";

impl Encoding for WireEncoding {
    fn progress(&self, events: Vec<progress_hub::Event>, frames: &mut Vec<u8>) {
        if events.is_empty() {
            return;
        }
        for message in status_stream::messages(events) {
            let length = u32::try_from(message.encoded_len()).expect("messages are split long before that");
            frames.extend_from_slice(&length.to_le_bytes());
            message.encode(frames).expect("a vector grows");
        }
    }

    fn failure(&self, fault: &Fault) -> (Failure, Bytes) {
        let mut message = status::into_message(fault);
        // Upstream's order: the way that the failure took comes first.
        message.details.splice(0..0, fault.trail().into_iter().map(|at| self.stack(at)));
        let failure = Failure { code: message.code, message: message.message.clone() };
        (failure, message.encode_to_vec().into())
    }
}

impl WireEncoding {
    /// One link of a failure's chain, in the form of a stack of one frame: it is all we know of how we came there.
    fn stack(&self, at: &Location<'_>) -> Any {
        let room = at.file().strip_prefix("crates/").and_then(|path| path.split('/').next()).unwrap_or("kiln");
        let stack = json!({
            "frames": [{ "Name": room, "File": at.file(), "Line": at.line() }],
            "pid": std::process::id(),
            "version": self.version.version,
            "revision": self.version.revision,
        });
        Any { type_url: STACK.to_owned(), value: stack.to_string().into_bytes() }
    }
}

/// Sends a stored log as the messages that it is made of.
pub async fn replay(mut log: Box<dyn Download>, sender: mpsc::Sender<Result<pb::StatusResponse, Status>>) {
    let mut frames = Frames::default();
    loop {
        let outcome = match log.read().await {
            Ok(Some(data)) => frames.add(&data),
            Ok(None) => return frames.end().map_or((), |fault| drop(sender.try_send(Err(status::of_call(&fault))))),
            Err(fault) => Err(fault),
        };
        match outcome {
            Ok(messages) => {
                for message in messages {
                    if sender.send(Ok(message)).await.is_err() {
                        return;
                    }
                }
            }
            Err(fault) => return drop(sender.send(Err(status::of_call(&fault))).await),
        }
    }
}

/// Takes a log apart as it comes.
#[derive(Default)]
struct Frames(BytesMut);

impl Frames {
    /// The messages that are whole by now.
    fn add(&mut self, data: &[u8]) -> fault::Result<Vec<pb::StatusResponse>> {
        self.0.extend_from_slice(data);
        let mut messages = Vec::new();
        while let Some(head) = self.0.first_chunk::<4>() {
            let length = u32::from_le_bytes(*head) as usize;
            if length > wire::MAX_MESSAGE {
                return Err(broken());
            }
            if self.0.len() < 4 + length {
                break;
            }
            self.0.advance(4);
            messages.push(pb::StatusResponse::decode(self.0.split_to(length)).map_err(|_| broken())?);
        }
        Ok(messages)
    }

    fn end(&self) -> Option<Fault> {
        (!self.0.is_empty()).then(broken)
    }
}

fn broken() -> Fault {
    Fault::new(Kind::Internal, "the log of a build in the history is damaged")
}

pub fn query(request: pb::BuildHistoryRequest) -> Query {
    let pb::BuildHistoryRequest { active_only, r#ref, early_exit, filter, limit } = request;
    Query { active_only, reference: r#ref, early_exit, filters: filter, limit }
}

pub fn event(event: &Event) -> pb::BuildHistoryEvent {
    use pb::BuildHistoryEventType::{Complete, Deleted, Started};
    let (kind, record) = match event {
        Event::Started(record) => (Started, message(record)),
        Event::Complete(record) => (Complete, message(record)),
        Event::Deleted { reference } => (Deleted, pb::BuildHistoryRecord { r#ref: reference.clone(), ..Default::default() }),
    };
    pb::BuildHistoryEvent { r#type: kind as i32, record: Some(record) }
}

fn message(record: &Record) -> pb::BuildHistoryRecord {
    let count = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
    let error = |f: &Failure| proto::google::rpc::Status { code: f.code, message: f.message.clone(), details: Vec::new() };
    pb::BuildHistoryRecord {
        r#ref: record.reference.clone(),
        frontend: record.frontend.clone(),
        frontend_attrs: record.frontend_attrs.clone(),
        exporters: record.exporters.iter().map(|e| pb::Exporter { r#type: e.kind.clone(), attrs: e.attrs.clone() }).collect(),
        error: record.error.as_ref().map(error),
        created_at: Some(timestamp(record.created_at)),
        completed_at: record.completed_at.map(timestamp),
        logs: record.logs.as_ref().map(descriptor),
        exporter_response: record.response.clone(),
        result: record.result.as_ref().map(results),
        results: record.results.iter().map(|(platform, r)| (platform.clone(), results(r))).collect(),
        generation: record.generation,
        trace: record.trace.as_ref().map(descriptor),
        pinned: record.pinned,
        num_cached_steps: count(record.steps.cached),
        num_total_steps: count(record.steps.total),
        num_completed_steps: count(record.steps.completed),
        external_error: record.failure.as_ref().map(descriptor),
        num_warnings: count(record.steps.warnings),
    }
}

fn results(results: &Results) -> pb::BuildResultInfo {
    pb::BuildResultInfo {
        // Older clients know of one exporter only.
        result_deprecated: results.exported.values().next().map(descriptor),
        attestations: results.attestations.iter().map(descriptor).collect(),
        results: results.exported.iter().map(|(exporter, d)| (i64::from(*exporter), descriptor(d))).collect(),
    }
}

fn descriptor(descriptor: &Descriptor) -> pb::Descriptor {
    pb::Descriptor {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.to_string(),
        size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
        annotations: descriptor.annotations.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci::Digest;
    use std::time::SystemTime;

    fn log(text: &str) -> progress_hub::Event {
        progress_hub::Event::Log { vertex: Digest::of("v"), at: SystemTime::UNIX_EPOCH, stream: 1, data: Bytes::from(text.to_owned()) }
    }

    #[test]
    fn a_log_is_read_back_from_any_pieces() {
        let (mut bytes, encoding) = (Vec::new(), WireEncoding::default());
        encoding.progress(vec![log("a"), log("b")], &mut bytes);
        encoding.progress(Vec::new(), &mut bytes);
        encoding.progress(vec![log("c")], &mut bytes);
        for size in [1, 3, 1000] {
            let mut frames = Frames::default();
            let messages: Vec<_> = bytes.chunks(size).flat_map(|piece| frames.add(piece).unwrap()).collect();
            let text: Vec<Vec<&[u8]>> = messages.iter().map(|m| m.logs.iter().map(|l| &l.msg[..]).collect()).collect();
            assert_eq!(text, [vec![&b"a"[..], b"b"], vec![b"c"]]);
            assert!(frames.end().is_none());
        }
        let mut frames = Frames::default();
        frames.add(&bytes[..bytes.len() - 1]).unwrap();
        assert!(frames.end().is_some(), "a log that ends early is damaged");
        assert!(Frames::default().add(&[0xff; 8]).is_err());
    }

    #[test]
    fn the_first_result_is_also_where_old_clients_look() {
        let mut made = Results::default();
        let of = |text: &str| Descriptor::new("m", Digest::of(text), 1);
        made.exported.extend([(2, of("two")), (1, of("one"))]);
        let message = results(&made);
        assert_eq!(message.result_deprecated.unwrap().digest, Digest::of("one").to_string());
        assert_eq!(message.results.keys().copied().collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_failure_has_its_details_and_the_way_it_took() {
        let fault = Fault::new(Kind::Unknown, "boom").with_detail(fault::Detail::Vertex { digest: "d".into() });
        let (failure, blob) = WireEncoding::default().failure(&fault);
        let whole = proto::google::rpc::Status::decode(blob).unwrap();
        assert_eq!((failure.code, failure.message.as_str()), (2, "boom"));
        assert_eq!((whole.code, whole.message.as_str()), (2, "boom"));
        let kinds: Vec<&str> = whole.details.iter().map(|d| d.type_url.rsplit('.').next().unwrap()).collect();
        assert_eq!(kinds, ["Stack+json", "Stack+json", "Vertex+json"]);
        let stack: serde_json::Value = serde_json::from_slice(&whole.details[1].value).unwrap();
        assert_eq!(stack["frames"][0]["Name"], "grpc");
    }
}
