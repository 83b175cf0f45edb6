//! Where a result came from: what is captured while a build runs, and the SLSA provenance made of it.
//!
//! [`Scope`] follows who asked for what; [`Capture`] is what one result was made from; [`Predicate`] is the document. The formats and rules are
//! BuildKit's (`docs/attestations` in its repository), so that its clients and policy tools read ours.
mod attestation;
mod capture;
mod machine;
mod options;
mod predicate;
mod request;
mod scope;
mod sources;
mod steps;
mod usage;

pub use attestation::{Captured, attest, captured, record};
pub use capture::Capture;
pub use machine::Machine;
pub use options::Options;
pub use scope::{Producers, Request, Scope, Traced};
pub use sources::ImageSource;
