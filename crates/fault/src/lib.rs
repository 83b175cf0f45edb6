//! The few kinds of failure, retry advice, and printing of an error chain.
