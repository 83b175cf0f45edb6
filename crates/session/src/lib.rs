//! What may be asked of the client, as plain traits.
