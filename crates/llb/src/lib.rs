//! A validated build graph: decode, check, digest, build.
