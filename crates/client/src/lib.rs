//! The other end: calls to a daemon, and the session that the daemon asks back through. For the CLI, tests and remote workers.
//!
//! Owns how a daemon is reached ([`Endpoint`]), its calls ([`Client`]), one client-driven build ([`build`]), and what a session serves ([`session`]):
//! files, outputs, secrets, ssh agents, credentials, content stores. Knows no environment and no command line: values come from `kiln`.
//! Start at [`build::run`].
//! Invariants: what a daemon sends is not trusted with the client's disk: outputs stay below their directory; a session serves only what it was given.
pub mod build;
mod calls;
mod endpoint;
pub mod files;
mod id;
pub mod layout;
pub mod session;

pub use calls::Client;
pub use endpoint::{ConnectError, Endpoint, Tls};
pub use id::new_id;
