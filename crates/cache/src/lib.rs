//! Which key gave which result: the local index, and remote caches.
