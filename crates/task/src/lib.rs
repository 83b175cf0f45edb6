//! Naming, spawning, cancelling (with a reason) and draining background work.
