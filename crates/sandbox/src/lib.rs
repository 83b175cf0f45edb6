//! Runs one process in a container: the built-in runtime or any OCI runtime.
