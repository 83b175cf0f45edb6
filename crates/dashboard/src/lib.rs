//! The debug and metrics endpoint: the daemon in numbers, over plain HTTP, for those whom the operator lets reach it.
//!
//! Owns the pages and the text format of Prometheus. Does not know where the numbers come from ([`job::figures`] does), nor listeners (`kiln` does).
//!
//! Start at [`Dashboard`]; `metrics` says what there is to see. Invariants: no page tells arguments, names of files or secrets of builds; no page but
//! `/debug/gc` changes anything.
mod exposition;
mod metrics;
mod process;
mod serve;

pub use serve::Dashboard;
