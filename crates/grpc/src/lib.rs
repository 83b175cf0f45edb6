//! The daemon's doors for programs: Control, session transport, gateway, content, health; own types to messages, faults to statuses.
//!
//! Knows how things travel and nothing of how they are done: builds are `job`'s ([`job::Service`]), what a session may be asked is `session`'s. Start at
//! [`Server`] for what is served, at [`session`] for clients' tunnels.
//! Invariants: malformed input dies here; no lock is held across an await; a stream that may stay silent sends its headers first.
mod blobs;
mod control;
mod convert;
mod filter;
mod gateway;
mod health;
mod history;
mod request;
mod server;
pub mod session;
mod status_stream;
mod traces;

pub use gateway::{Door, serve_pipe};
pub use history::WireEncoding;
pub use server::Server;
pub use session::Sessions;
