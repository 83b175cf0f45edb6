//! Exec, file, merge, diff, source and build: each gives a cache map and a run.
//!
//! Owns what an op does, given its inputs as layers. Does not know when it runs, nor who wants it (`engine`), nor where a cached result is (`cache`).
//!
//! Start at [`exec::Exec`] and `file`; merge and diff are `layers`' own operations, and `build` finds a graph that the engine's user builds.
pub mod build;
pub mod checksum;
pub mod exec;
pub mod file;
