//! The exec op: one process in a container.
pub mod log;
