//! Parts of ops as they also travel outside of graphs: in gateway containers, source questions, worker records.
use proto::pb;

use crate::types::*;
use crate::{OpError, decode, encode};

/// A container's mount. Input indices are not checked: there is no graph.
pub fn mount(message: pb::Mount) -> Result<Mount, OpError> {
    decode::free_mount(message)
}

pub fn meta(message: pb::Meta) -> Meta {
    decode::meta(message)
}

pub fn platform(message: pb::Platform) -> oci::Platform {
    decode::platform(message)
}

pub fn platform_message(platform: &oci::Platform) -> pb::Platform {
    encode::platform(platform)
}
