//! Exec, file, merge, diff, source and build: each gives a cache map and a run.
pub mod exec;
