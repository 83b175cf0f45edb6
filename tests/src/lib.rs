//! Whole-house tests live in tests/.
