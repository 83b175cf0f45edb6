//! Failures as gRPC statuses, and back.
//!
//! BuildKit gives most failures of a build no code of their own, and clients print a code in front of the message. So [`of_build`] names a code only
//! where clients act on it; [`of_call`] keeps the kind, for calls whose callers look at it.
use fault::{Detail, Fault, Kind};
use prost::Message as _;
use tonic::{Code, Status};

use crate::details;

/// How a build, or a step of one, failed.
pub fn of_build(fault: &Fault) -> Status {
    let code = match fault.kind() {
        Kind::Canceled => Code::Cancelled,
        Kind::Deadline => Code::DeadlineExceeded,
        Kind::Exhausted => Code::ResourceExhausted,
        Kind::Internal => Code::Internal,
        Kind::Unimplemented => Code::Unimplemented,
        _ => Code::Unknown,
    };
    with_code(fault, remote_code(fault).unwrap_or(code))
}

/// How a call failed that is not about a build's own work.
pub fn of_call(fault: &Fault) -> Status {
    with_code(fault, remote_code(fault).unwrap_or(code(fault.kind())))
}

/// A failed call to a peer. The message gets the code in front, as peers print it, unless the code is unknown; [`of_call`] and [`of_build`] take the prefix
/// away again where nothing was added. Details stay as they came.
pub fn into_fault(status: &Status) -> Fault {
    let remote = Remote { code: status.code(), message: status.message().to_owned() };
    let fault = Fault::of(kind(status.code()), remote);
    details_of(status.details()).into_iter().rev().fold(fault, Fault::with_detail)
}

/// A status that arrived as a message (a gateway's `Return`).
pub fn message_into_fault(status: &proto::google::rpc::Status) -> Fault {
    let remote = Remote { code: Code::from_i32(status.code), message: status.message.clone() };
    let fault = Fault::of(kind(remote.code), remote);
    status.details.iter().map(other).rev().fold(fault, Fault::with_detail)
}

/// A failure as a message (a process's exit, a record in the history).
pub fn into_message(fault: &Fault) -> proto::google::rpc::Status {
    let status = of_build(fault);
    message_of(fault, status.code(), status.message().to_owned())
}

/// A status of a peer. Prints like BuildKit's: the code, unless it says nothing, and the message.
#[derive(Debug)]
struct Remote {
    code: Code,
    message: String,
}

impl std::fmt::Display for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.code {
            Code::Unknown | Code::Ok => f.write_str(&self.message),
            code => write!(f, "{}: {}", name(code), self.message),
        }
    }
}

impl std::error::Error for Remote {}

fn with_code(fault: &Fault, code: Code) -> Status {
    let text = fault.to_string();
    let prefix = format!("{}: ", name(code));
    let message = text.strip_prefix(&prefix).unwrap_or(&text).to_owned();
    if fault.details().is_empty() {
        return Status::new(code, message);
    }
    let details = message_of(fault, code, message.clone()).encode_to_vec();
    Status::with_details(code, message, details.into())
}

fn message_of(fault: &Fault, code: Code, message: String) -> proto::google::rpc::Status {
    let details = fault.details().into_iter().map(details::encode).collect();
    proto::google::rpc::Status { code: code as i32, message, details }
}

/// The code that a peer gave, where the failure is a peer's: its text begins with the code's name at some border of the chain.
fn remote_code(fault: &Fault) -> Option<Code> {
    let text = fault.to_string();
    let code = code(fault.kind());
    let named = format!("{}: ", name(code));
    (code != Code::Unknown && (text.starts_with(&named) || text.contains(&format!(": {named}")))).then_some(code)
}

fn details_of(bytes: &[u8]) -> Vec<Detail> {
    proto::google::rpc::Status::decode(bytes).map(|status| status.details.iter().map(other).collect()).unwrap_or_default()
}

fn other(any: &prost_types::Any) -> Detail {
    Detail::Other { type_url: any.type_url.clone(), value: any.value.clone() }
}

fn code(kind: Kind) -> Code {
    match kind {
        Kind::Invalid => Code::InvalidArgument,
        Kind::NotFound => Code::NotFound,
        Kind::AlreadyExists => Code::AlreadyExists,
        Kind::Denied => Code::PermissionDenied,
        Kind::Unauthenticated => Code::Unauthenticated,
        Kind::Unimplemented => Code::Unimplemented,
        Kind::Unavailable => Code::Unavailable,
        Kind::Exhausted => Code::ResourceExhausted,
        Kind::Canceled => Code::Cancelled,
        Kind::Deadline => Code::DeadlineExceeded,
        Kind::Precondition => Code::FailedPrecondition,
        Kind::OutOfRange => Code::OutOfRange,
        Kind::Internal => Code::Internal,
        Kind::Unknown => Code::Unknown,
    }
}

fn kind(code: Code) -> Kind {
    match code {
        Code::InvalidArgument => Kind::Invalid,
        Code::NotFound => Kind::NotFound,
        Code::AlreadyExists => Kind::AlreadyExists,
        Code::PermissionDenied => Kind::Denied,
        Code::Unauthenticated => Kind::Unauthenticated,
        Code::Unimplemented => Kind::Unimplemented,
        Code::Unavailable => Kind::Unavailable,
        Code::ResourceExhausted => Kind::Exhausted,
        Code::Cancelled => Kind::Canceled,
        Code::DeadlineExceeded => Kind::Deadline,
        Code::FailedPrecondition | Code::Aborted => Kind::Precondition,
        Code::OutOfRange => Kind::OutOfRange,
        Code::Internal | Code::DataLoss => Kind::Internal,
        Code::Unknown | Code::Ok => Kind::Unknown,
    }
}

/// The code's name as Go prints it.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_failures_of_a_build_have_no_code() {
        let status = of_build(&Fault::new(Kind::NotFound, "\"/x\": not found").context("failed to calculate checksum"));
        assert_eq!((status.code(), status.message()), (Code::Unknown, "failed to calculate checksum: \"/x\": not found"));
        assert_eq!(of_build(&Fault::new(Kind::Canceled, "context canceled")).code(), Code::Cancelled);
        assert_eq!(of_call(&Fault::new(Kind::NotFound, "no such job x")).code(), Code::NotFound);
    }

    #[test]
    fn a_peers_failure_keeps_code_message_and_details_and_prints_the_code_once() {
        let detail = Detail::Other { type_url: "example.com/x".into(), value: vec![1, 255] };
        let sent = of_call(
            &Fault::new(Kind::Denied, "go away").with_detail(detail.clone()).with_detail(Detail::Vertex { digest: "sha256:0".into() }),
        );
        let fault = into_fault(&sent);
        assert_eq!((fault.kind(), fault.to_string().as_str()), (Kind::Denied, "PermissionDenied: go away"));
        assert_eq!(fault.details()[1], &detail, "details stay as they came and in order");
        let again = of_build(&fault);
        assert_eq!((again.code(), again.message(), again.details()), (Code::PermissionDenied, "go away", sent.details()));
        let wrapped = of_build(&fault.context("failed to solve"));
        assert_eq!((wrapped.code(), wrapped.message()), (Code::PermissionDenied, "failed to solve: PermissionDenied: go away"));
    }

    #[test]
    fn broken_details_are_dropped_not_fatal() {
        let status = Status::with_details(Code::Unknown, "m", vec![0xff, 1, 2].into());
        assert_eq!(into_fault(&status).to_string(), "m");
    }
}
