//! Ring four: the house as its users meet it. The daemon runs as a process, clients are real ones, the registry is Debian's; see `tests/`.
//!
//! All of them need root (steps run in real containers) and the packages that `cargo xtask test` installs.
