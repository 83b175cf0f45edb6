//! Results leave: image, oci and docker tar, local, tar.
