//! Clients' tunnels: how a session arrives, is found, is watched, and what is asked through it.
//!
//! On a tunnel the daemon is the HTTP/2 client. [`Sessions`] is the table of open ones; [`WireSession`] one of them.
mod content;
mod health;
mod streams;
mod table;
mod tunnel;
mod verifier;
mod wire_session;

pub use table::Sessions;
pub(crate) use tunnel::{Outgoing, serve};
pub use wire_session::{Identity, WireSession};
