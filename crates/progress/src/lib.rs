//! What a user may watch of a build.
