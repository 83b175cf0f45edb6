//! Does: owns the solver, runs its commands on tokio, shares work between jobs, cancels.
//!
//! Shape that its users (`job`, `worker`) rely on:
//!
//! ```ignore
//! let engine = Engine::new(execute: Arc<dyn Execute>, index: cache::Index, Options { parallelism: Option<usize> });
//! let job: Job = engine.job(id, sink: Arc<dyn progress::Sink>, sessions: session::Group, cancel: task::Cancel);
//! job.announce(&graph);                                      // progress shows its vertices
//! let built: Built = job.build(graph: Arc<llb::Graph>).await?; // Built { layer: Option<Layer>, key: Option<..> }; several graphs may be built in one job, also at once
//! drop(job);                                                 // what only this job wanted is cancelled
//! ```
// `execute` is compiled once `layers` has its handles.
