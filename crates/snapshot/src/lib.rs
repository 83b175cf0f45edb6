//! File trees on disk: prepare, commit, mount; overlay and native.
