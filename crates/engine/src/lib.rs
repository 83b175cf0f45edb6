//! Does: owns the solver, runs its commands on tokio, shares work between jobs, cancels.
//!
//! Owns the one task that holds the solver (`run_loop`), the work it started, and for each vertex the watchers of the jobs that hold it (`fan`). Does
//! not know what an op does ([`Execute`] does), nor what a job is for.
//!
//! Start at [`Engine`], [`Job`] and [`Ref`]; [`Execute`] is what a place where steps run must offer.
//!
//! ```ignore
//! let engine = Engine::new(execute, cache::Index::new(db), Options { parallelism: Some(4) });
//! let job = engine.job(id, sink, sessions, cancel);
//! let reference = job.load(graph);              // lazy: watchers see its vertices, nothing runs
//! let built = reference.result().await?;        // looked for in the caches, else run; `job.build(graph)` does both
//! drop((job, reference));                       // what only this job wanted is cancelled
//! ```
//!
//! Invariants: the solver is touched by its own task only; every piece of work that was started reports its end, even if it panics; what a job alone
//! wanted is cancelled as soon as nobody waits for it; a watcher that joins late sees what the vertex reported before; a failure carries the digest by
//! which the job's client knows the vertex, and its place in the client's files.
mod blame;
mod execute;
mod fan;
mod job;
mod memory;
mod run_loop;
mod witness;
mod work;

pub use blame::for_client;
pub use execute::{CacheMap, Context, Execute, InputMap, Nested};
pub use job::{Built, Engine, Job, Options, Ref};
pub use run_loop::Census;
pub use witness::{Ran, RanInput, Witness};
