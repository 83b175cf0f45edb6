//! Results leave: image, oci and docker tar, local, tar.
mod annotations;
mod attrs;
mod config;
mod send;
mod tar;
mod tree;
