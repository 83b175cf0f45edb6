//! Strict fakes, fixtures and fault injection for tests.
