//! Exec, file, merge, diff, source, build: each gives a cache map and a run.
