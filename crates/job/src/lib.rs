//! One Solve from request to response: policy, frontend bridge, worker choice, history, provenance.
//!
//! [`Service`] is the room's face: what the porch (`grpc`, `dashboard`) may ask of the daemon, in plain types. Start at [`api`]; what a build tells
//! its watchers goes through [`progress_hub`], and what is left of it when it has ended is in [`history`].
//! Invariants: no wire message comes in here; a build is cancelled by dropping the future of its solve.
pub mod api;
mod attest;
mod blobs;
pub mod board;
mod bridge;
mod build;
mod builds;
mod caches;
mod contained;
mod container;
mod driven;
mod entitlement;
mod exports;
pub mod figures;
mod files;
mod foreign;
mod gateway;
pub mod history;
mod nested;
mod platforms;
mod policy;
pub mod progress_hub;
mod provenance;
mod reference;
pub mod trace;
mod usage;
pub mod why;

pub use api::*;
pub use builds::{Builds, Settings};
pub use contained::FrontendDoor;
pub use frontend::attestations::Generator;
pub use gateway::*;
