//! Frontends: the built-in Dockerfile frontend and what a gateway container may ask.
//!
//! Owns the [`Bridge`] trait, through which a frontend asks the daemon back, and [`Outcome`], what it gives back. Knows no wire format
//! (`grpc` translates the gateway service) and no solver (`job` implements [`Bridge`]). Start at [`bridge`]; [`dockerfile`] is the built-in frontend.
pub mod attestations;
pub mod bridge;
mod caps;
pub mod dockerfile;
pub mod sbom;

pub use bridge::{Bridge, Outcome, Ref, Refs, ResolveRequest, SolveRequest, SourceMeta};
pub use caps::GATEWAY_CAPABILITIES;
