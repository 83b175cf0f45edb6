//! Digests, references, platforms, descriptors, manifests and image configs.
