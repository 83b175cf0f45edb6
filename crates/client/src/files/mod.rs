//! Trees of files to and from a daemon, in fsutil's protocol.
mod filter;
mod follow;
mod place;
mod receive;
mod send;
mod walk;

pub use filter::Filter;
pub use receive::{Mode, Receiver};
pub use send::send;
pub use walk::{WalkError, walk};
