//! Both ends of the wire in one process: the server over a fake daemon, our own client on the other side of a pipe.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod builds;
mod daemon;
mod processes;
mod reflection;
mod sessions;
