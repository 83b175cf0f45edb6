//! What both ends of the wire share: byte pipes inside streams, HTTP/2 connections on such pipes, packets, header values, error details.
//!
//! Knows no service: `grpc` serves and calls them from the daemon's side, `client` from the other. Start at [`Pipe`] and [`Connection`] for how a session
//! travels, at [`status`] for how a failure does.
//! Invariants: outside data is never trusted to be well formed; nothing here waits without a bound on what it stores.
mod connection;
mod details;
mod header;
mod packet;
mod pipe;
mod protojson;
mod serve;
pub mod status;

pub use connection::{Connection, connect};
pub use details::decode as decode_detail;
pub use header::{escape, is_escaped_key, unescape};
pub use packet::{from_packet, from_stat, into_packet, into_stat};
pub use pipe::Pipe;
pub use protojson::op_json;
pub use serve::{serve, serve_until};

/// Bytes that a peer may send on one stream before it must wait for us.
pub const STREAM_WINDOW: u32 = 8 << 20;
/// The same for all streams of a connection.
pub const CONNECTION_WINDOW: u32 = 16 << 20;
/// The same for a session, where a client may send a directory as entries of some ten bytes a frame without being asked. The HTTP/2 library gives a
/// connection up whose unread small frames cost more than half of this, at 256 bytes each; who receives a directory must take entries as they come, and
/// bounds what else it asks for.
pub const SESSION_WINDOW: u32 = 32 << 20;
/// The largest HTTP/2 frame that we take.
pub const MAX_FRAME: u32 = 1 << 20;
/// Bytes of headers and trailers that we take: failures carry whole source files in theirs.
pub const MAX_HEADERS: u32 = 16 << 20;
/// The largest message, both ways.
pub const MAX_MESSAGE: usize = 16 << 20;
