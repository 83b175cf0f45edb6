//! Fixtures for tests of the whole house: a base image made of Debian's busybox, a real registry, the daemon as a process, plain HTTP.
//!
//! Nothing here uses the rooms under test beyond `oci`'s digests: what checks kiln must not share its mistakes. Everything that is
//! started ends when its handle drops. Start reading at [`Daemon`] and [`Registry`].
#![allow(clippy::missing_panics_doc, clippy::unwrap_used)]

mod daemon;
mod http;
mod image;
mod registry;
mod tar;
mod user;
mod wait;

pub use daemon::{Daemon, kiln_binary};
pub use http::{Reply, http};
pub use image::{BaseImage, busybox_image};
pub use registry::Registry;
pub use tar::{Tar, TarEntry, read_tar};
pub use user::{User, copy_program};
pub use wait::{PATIENCE, wait_until};
