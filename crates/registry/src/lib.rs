//! OCI distribution client: resolve, fetch, push, mirrors, auth challenge.
