//! A build's progress as Status messages: batched, ordered, and never too large.
use std::time::Duration;

use job::progress_hub::{self, Event, RowState, VertexState, Watch};
use proto::moby::buildkit::v1 as pb;
use tokio::sync::mpsc;
use tonic::Status;

use crate::convert::{self, timestamp};

/// Bytes of logs in one message, as upstream splits them.
const MAX_LOGS: usize = 1 << 20;
/// Entries of the other kinds in one message, to stay well below the message limit.
const MAX_ENTRIES: usize = 2000;
/// How long to gather events after a message was sent, unless there was much to send.
const GATHER: Duration = Duration::from_millis(60);

/// Sends everything until the build ends or the receiver goes away.
pub async fn pump(mut watch: Watch, sender: mpsc::Sender<Result<pb::StatusResponse, Status>>) {
    while let Some(events) = watch.next().await {
        let is_much = events.iter().map(progress_hub::weight).sum::<usize>() >= MAX_LOGS / 2;
        for message in messages(events) {
            if sender.send(Ok(message)).await.is_err() {
                return;
            }
        }
        if is_much {
            continue;
        }
        tokio::select! {
            () = tokio::time::sleep(GATHER) => {}
            () = watch.ended() => {}
            () = sender.closed() => return,
        }
    }
}

/// The events of one batch, in as many messages as they need.
pub fn messages(events: Vec<Event>) -> Vec<pb::StatusResponse> {
    let mut all = pb::StatusResponse::default();
    for event in events {
        match event {
            Event::Vertex(state) => all.vertexes.push(vertex(state)),
            Event::Status(row) => all.statuses.push(status(row)),
            Event::Log { vertex, at, stream, data } => {
                all.logs.push(pb::VertexLog {
                    vertex: vertex.to_string(),
                    timestamp: Some(timestamp(at)),
                    stream: stream.into(),
                    msg: data,
                });
            }
            Event::Warning(w) => all.warnings.push(warning(w)),
        }
    }
    // Events come in the order of their time but for vertices, whose order is that of their start; those that have not started come first.
    all.vertexes.sort_by_key(|v| v.started.map(|at| (at.seconds, at.nanos)));
    split(all)
}

fn split(all: pb::StatusResponse) -> Vec<pb::StatusResponse> {
    let mut messages = vec![pb::StatusResponse::default()];
    let mut size = 0;
    let mut place = |messages: &mut Vec<pb::StatusResponse>, entries: usize, bytes: usize| {
        size += bytes;
        if entries >= MAX_ENTRIES || (size > MAX_LOGS && size > bytes) {
            messages.push(pb::StatusResponse::default());
            size = bytes;
        }
    };
    let entries =
        |message: &pb::StatusResponse| message.vertexes.len() + message.statuses.len() + message.warnings.len() + message.logs.len();
    macro_rules! spread {
        ($list:ident, $bytes:expr) => {
            for item in all.$list {
                let count = messages.last().map_or(0, entries);
                place(&mut messages, count, $bytes(&item));
                messages.last_mut().expect("there is always a message").$list.push(item);
            }
        };
    }
    spread!(vertexes, |_: &pb::Vertex| 0);
    spread!(statuses, |_: &pb::VertexStatus| 0);
    spread!(warnings, |w: &pb::VertexWarning| w.info.as_ref().map_or(0, |info| info.data.len()));
    spread!(logs, |log: &pb::VertexLog| log.msg.len());
    messages
}

fn vertex(state: VertexState) -> pb::Vertex {
    let group = state.vertex.group.as_ref();
    pb::Vertex {
        digest: state.vertex.digest.to_string(),
        inputs: state.vertex.inputs.iter().map(ToString::to_string).collect(),
        name: state.vertex.name.clone(),
        cached: state.cached,
        started: state.started.map(timestamp),
        completed: state.completed.map(timestamp),
        error: state.error,
        progress_group: group.map(|g| proto::pb::ProgressGroup { id: g.id.clone(), name: g.name.clone(), weak: g.weak }),
    }
}

fn status(row: RowState) -> pb::VertexStatus {
    pb::VertexStatus {
        id: row.id,
        vertex: row.vertex.to_string(),
        name: row.action,
        current: row.current,
        total: row.total,
        timestamp: Some(timestamp(row.at)),
        started: Some(timestamp(row.started)),
        completed: row.completed.map(timestamp),
    }
}

fn warning(warning: progress::Warning) -> pb::VertexWarning {
    let (info, ranges) =
        warning.source.as_ref().map(convert::source_range).map_or((None, Vec::new()), |(info, ranges)| (Some(info), ranges));
    pb::VertexWarning {
        vertex: warning.vertex.to_string(),
        level: warning.level,
        short: warning.short.to_vec(),
        detail: warning.detail.iter().map(|line| line.to_vec()).collect(),
        url: warning.url,
        info,
        ranges,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use oci::Digest;
    use prost::Message as _;
    use std::time::{Duration, SystemTime};

    fn log(size: usize) -> Event {
        Event::Log { vertex: Digest::of("v"), at: SystemTime::now(), stream: 1, data: Bytes::from(vec![b'x'; size]) }
    }

    #[test]
    fn many_logs_are_split_and_stay_in_order() {
        let sizes = [400_000, 400_000, 400_000, 3_000_000, 10];
        let split = messages(sizes.iter().map(|size| log(*size)).collect());
        let lengths: Vec<Vec<usize>> = split.iter().map(|m| m.logs.iter().map(|l| l.msg.len()).collect()).collect();
        assert_eq!(lengths, [vec![400_000, 400_000], vec![400_000], vec![3_000_000], vec![10]]);
    }

    #[test]
    fn many_small_entries_stay_below_the_message_limit() {
        let split = messages((0..50_000).map(|_| log(1)).collect());
        assert!(split.iter().all(|m| m.encoded_len() < 1 << 20));
        assert_eq!(split.iter().map(|m| m.logs.len()).sum::<usize>(), 50_000);
    }

    #[test]
    fn vertices_are_sorted_by_their_start() {
        let at = |seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        let state = |name: &str, started| {
            let vertex = progress::Vertex { digest: Digest::of(name), inputs: vec![], name: name.into(), group: None };
            Event::Vertex(VertexState { vertex: vertex.into(), started, completed: None, cached: false, error: String::new() })
        };
        let [message] = messages(vec![state("b", at(2)), state("c", None), state("a", at(1))]).try_into().unwrap();
        let names: Vec<&str> = message.vertexes.iter().map(|v| v.name.as_str()).collect();
        assert_eq!(names, ["c", "a", "b"]);
    }
}
