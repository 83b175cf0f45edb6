//! Content digest of a part of a file tree, bit-exact with BuildKit.
