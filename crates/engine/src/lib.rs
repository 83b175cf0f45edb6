//! Does: owns the solver, runs its commands on tokio, shares work between jobs, cancels.
//!
//! Owns the one task that holds the solver (`run_loop`), the work it started, and for each vertex the watchers of the jobs that hold it (`fan`). Does not know
//! what an op does ([`Execute`] does), nor what a job is for.
//!
//! Start at [`Engine`] and [`Job`]; [`Execute`] is what a place where steps run must offer.
//!
//! Invariants: the solver is touched by its own task only; what a job alone wanted is cancelled when the job drops; a watcher that joins late
//! sees everything that the vertex reported before.
mod execute;
mod fan;
mod job;
mod memory;
mod run_loop;

pub use execute::{CacheMap, Context, Execute, InputMap};
pub use job::{Built, Engine, Job, Options};
