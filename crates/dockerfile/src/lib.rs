//! Dockerfile text to syntax to LLB; no I/O.
