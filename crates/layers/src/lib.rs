//! Binds trees to blobs: lazy layers, diff, compress, unpack, exact usage, prune.
