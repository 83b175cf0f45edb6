//! Blobs by digest: ingest, verify, read, lease, sweep.
