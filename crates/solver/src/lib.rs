//! Decides what runs: a synchronous state machine that knows no op, disk or clock.
