//! Transactions, typed tables, schema version and crash safety over the embedded engine.
