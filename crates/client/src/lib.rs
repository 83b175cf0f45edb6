//! The other end: a session server and calls, for the CLI, tests and remote workers.
