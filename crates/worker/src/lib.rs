//! A place where steps run: platforms, sandbox and layers.
//!
//! Owns the store, the sandbox and the sources of one worker, and implements [`engine::Execute`] with them. Does not know builds, clients or results'
//! destinations (`job` does, with the worker's [`Worker::exporters`]).
//!
//! Start at [`Worker::open`]; `execute` is one op at a time.
mod background;
mod devices;
mod execute;
mod notes;
mod open;
mod platforms;
mod proxied;
mod remains;
mod resolve;

pub use ::proxy::Captured;
pub use devices::{Device, Devices};
pub use open::{Facts, Runtime, Settings, Worker};
pub use registry::Traffic;
pub use remains::Remains;
pub use sandbox::{NET, Sample};
pub use sources::normal_identifier;
