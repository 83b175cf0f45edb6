//! The few kinds of failure, retry advice, and printing of an error chain.
//!
//! Rooms have error types of their own, one an operation; where such an error leaves for a room that only passes it on (engine, job,
//! grpc) it becomes a [`Fault`]: cheap to clone, because builds that share a vertex share its failure. A room's error says its
//! [`Kind`] by implementing [`Classified`]. gRPC codes are `grpc`'s business.
use std::error::Error;
use std::fmt;
use std::panic::Location;
use std::sync::Arc;

/// What a caller can do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The input is wrong; the same call fails again.
    Invalid,
    NotFound,
    AlreadyExists,
    /// Not allowed.
    Denied,
    /// Known credentials are missing or wrong.
    Unauthenticated,
    Unimplemented,
    /// The other side is away or busy; worth retrying.
    Unavailable,
    /// Disk, memory or a limit ran out.
    Exhausted,
    Canceled,
    Deadline,
    /// The state does not allow the call now.
    Precondition,
    OutOfRange,
    /// A broken invariant of ours.
    Internal,
    /// Anything else: a step that failed, an error of another program.
    Unknown,
}

impl Kind {
    /// Whether the same call may succeed a little later.
    pub fn retryable(self) -> bool {
        matches!(self, Kind::Unavailable)
    }

    pub fn of_io(error: &std::io::Error) -> Self {
        use std::io::ErrorKind as K;
        match error.kind() {
            K::NotFound => Kind::NotFound,
            K::AlreadyExists => Kind::AlreadyExists,
            K::PermissionDenied => Kind::Denied,
            K::StorageFull | K::QuotaExceeded | K::OutOfMemory => Kind::Exhausted,
            K::ConnectionRefused | K::ConnectionReset | K::ConnectionAborted | K::BrokenPipe | K::UnexpectedEof => Kind::Unavailable,
            K::TimedOut => Kind::Deadline,
            K::InvalidInput | K::InvalidData => Kind::Invalid,
            _ => Kind::Unknown,
        }
    }
}

/// An error that knows its kind, so that `?` turns it into a [`Fault`].
pub trait Classified: Error + Send + Sync + 'static {
    fn kind(&self) -> Kind;

    /// Facts that a client can act on.
    fn details(&self) -> Vec<Detail> {
        Vec::new()
    }
}

/// A fact that travels with a failure to the client, which prints or acts on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detail {
    /// The vertex that failed, by the digest that the client knows.
    Vertex {
        digest: String,
    },
    /// Where in the user's source the failure is rooted. Lines and characters as in LLB: lines from 1.
    Source {
        filename: String,
        language: String,
        data: Vec<u8>,
        /// The marshalled LLB that the file comes from; empty for none.
        definition: Vec<u8>,
        ranges: Vec<Range>,
    },
    Frontend {
        name: String,
        source: String,
    },
    /// A frontend capability that is not supported.
    FrontendCap {
        name: String,
    },
    /// A subrequest that is not supported.
    Subrequest {
        name: String,
    },
    /// The state of a failed op, so that a client can open a debug container on it. `op` is a marshalled `pb.Op`.
    Solve {
        input_ids: Vec<String>,
        mount_ids: Vec<String>,
        op: Vec<u8>,
        description: Vec<(String, String)>,
        subject: Option<Subject>,
    },
    /// A process's exit code.
    Exit {
        code: u32,
        error: String,
    },
    /// Passed through untouched, as it came from a gateway client.
    Other {
        type_url: String,
        value: Vec<u8>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    File { index: i64 },
    Cache { index: i64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub start: (i32, i32),
    pub end: (i32, i32),
}

/// A failure on its way out. `Display` prints the whole chain.
#[derive(Clone)]
pub struct Fault(Arc<Inner>);

struct Inner {
    kind: Kind,
    message: String,
    source: Option<Source>,
    details: Vec<Detail>,
    /// Where in our source this link of the chain was made.
    at: &'static Location<'static>,
}

enum Source {
    Fault(Fault),
    Error(Box<dyn Error + Send + Sync>),
}

pub type Result<T, E = Fault> = std::result::Result<T, E>;

impl Fault {
    #[track_caller]
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self::link(kind, message.into(), None, Vec::new())
    }

    #[track_caller]
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }

    #[track_caller]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// An error of a type that has no kind of its own.
    #[track_caller]
    pub fn of(kind: Kind, error: impl Error + Send + Sync + 'static) -> Self {
        Self::link(kind, String::new(), Some(Source::Error(Box::new(error))), Vec::new())
    }

    /// The same failure, seen from one step further out: prints as `message: self`.
    #[track_caller]
    pub fn context(self, message: impl Into<String>) -> Self {
        let kind = self.kind();
        Self::link(kind, message.into(), Some(Source::Fault(self)), Vec::new())
    }

    #[track_caller]
    pub fn with_detail(self, detail: Detail) -> Self {
        let kind = self.kind();
        Self::link(kind, String::new(), Some(Source::Fault(self)), vec![detail])
    }

    #[track_caller]
    fn link(kind: Kind, message: String, source: Option<Source>, details: Vec<Detail>) -> Self {
        Self(Arc::new(Inner { kind, message, source, details, at: Location::caller() }))
    }

    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Where in our source the links of the chain were made, outermost first: the way that the failure took.
    pub fn trail(&self) -> Vec<&'static Location<'static>> {
        let mut trail = vec![self.0.at];
        let mut link = self;
        while let Some(Source::Fault(inner)) = &link.0.source {
            trail.push(inner.0.at);
            link = inner;
        }
        trail
    }

    /// The first error of this type in the chain.
    pub fn find<T: Error + 'static>(&self) -> Option<&T> {
        match self.0.source.as_ref()? {
            Source::Fault(inner) => inner.find(),
            Source::Error(error) => {
                let first: &(dyn Error + 'static) = error.as_ref();
                std::iter::successors(Some(first), |&error| error.source()).find_map(|error| error.downcast_ref())
            }
        }
    }

    /// All details, outermost first.
    pub fn details(&self) -> Vec<&Detail> {
        let mut all: Vec<&Detail> = self.0.details.iter().collect();
        if let Some(Source::Fault(inner)) = &self.0.source {
            all.extend(inner.details());
        }
        all
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        let separator = if self.0.message.is_empty() { "" } else { ": " };
        match &self.0.source {
            None => Ok(()),
            Some(Source::Fault(inner)) => write!(f, "{separator}{inner}"),
            Some(Source::Error(error)) => write!(f, "{separator}{}", chain(error.as_ref())),
        }
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

/// Not an [`Error`] of the standard library's kind, so that every classified error converts with `?`.
impl<E: Classified> From<E> for Fault {
    #[track_caller]
    fn from(error: E) -> Self {
        let (kind, details) = (error.kind(), error.details());
        Self::link(kind, String::new(), Some(Source::Error(Box::new(error))), details)
    }
}

impl From<std::io::Error> for Fault {
    #[track_caller]
    fn from(error: std::io::Error) -> Self {
        Self::of(Kind::of_io(&error), error)
    }
}

/// Prints an error and its sources, outermost first, joined by `: `.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = link(error);
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&link(source));
        next = source.source();
    }
    text
}

/// Errors of the system as BuildKit's users know them: `no such file or directory`, not `No such file or directory (os error 2)`.
fn link(error: &(dyn Error + 'static)) -> String {
    let text = error.to_string();
    let code = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
    let Some(text) = code.and_then(|code| text.strip_suffix(&format!(" (os error {code})"))) else { return text };
    let mut letters = text.chars();
    let first = letters.next().map(|first| first.to_ascii_lowercase());
    first.into_iter().chain(letters).collect()
}

/// Adds a message on the way out.
pub trait Context<T> {
    fn context(self, message: impl Into<String>) -> Result<T>;
    fn with_context<M: Into<String>>(self, message: impl FnOnce() -> M) -> Result<T>;
}

impl<T, E: Into<Fault>> Context<T> for std::result::Result<T, E> {
    // No closures here: they would hide who called.
    #[track_caller]
    fn context(self, message: impl Into<String>) -> Result<T> {
        match self {
            Ok(value) => Ok(value),
            Err(error) => Err(error.into().context(message)),
        }
    }

    #[track_caller]
    fn with_context<M: Into<String>>(self, message: impl FnOnce() -> M) -> Result<T> {
        match self {
            Ok(value) => Ok(value),
            Err(error) => Err(error.into().context(message())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_system_errors_as_users_know_them() {
        let fault = Fault::from(std::io::Error::from_raw_os_error(2)).context("lstat /x");
        assert_eq!(fault.to_string(), "lstat /x: no such file or directory");
        assert_eq!(chain(&std::io::Error::other("A thing")), "A thing");
    }

    #[test]
    fn errors_are_found_by_type() {
        let fault =
            Fault::from(std::io::Error::from_raw_os_error(2)).context("outer").with_detail(Detail::FrontendCap { name: "x".into() });
        assert_eq!(fault.find::<std::io::Error>().and_then(std::io::Error::raw_os_error), Some(2));
        assert!(fault.find::<std::fmt::Error>().is_none());
    }

    #[test]
    fn prints_the_chain_and_keeps_kind_and_details() {
        let fault = Fault::new(Kind::NotFound, "no such file")
            .with_detail(Detail::Vertex { digest: "sha256:0".into() })
            .context("failed to load")
            .with_detail(Detail::FrontendCap { name: "x".into() });
        assert_eq!(fault.to_string(), "failed to load: no such file");
        assert_eq!(fault.kind(), Kind::NotFound);
        assert_eq!(fault.details().len(), 2);
        assert_eq!(fault.details()[0], &Detail::FrontendCap { name: "x".into() });
    }

    #[test]
    fn the_trail_names_where_each_link_was_made() {
        fn fails() -> Result<()> {
            Err(std::io::Error::from_raw_os_error(2))?;
            Ok(())
        }
        let (first, line) = (fails().context("outer").unwrap_err(), line!());
        let trail = first.trail();
        assert_eq!(trail.len(), 2);
        assert!(trail.iter().all(|at| at.file() == file!()));
        assert_eq!(trail[0].line(), line);
        assert_eq!(trail[1].line(), line - 3, "where `?` was");
    }
}
