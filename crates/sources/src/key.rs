use oci::Digest;

/// The cache key of a pinned source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    pub digest: Digest,
    /// What the source was pinned to, for provenance: a manifest digest, a checksum.
    pub pin: String,
    /// Another key follows under the next index.
    pub more: bool,
}

impl Key {
    /// From a source's key text, as BuildKit's source op makes it. Text that names a session gives a key that never matches outside of it.
    pub(crate) fn new(text: &str, pin: impl Into<String>, more: bool) -> Self {
        let digest = Digest::of(format!("buildkit.source.v0:{text}"));
        let digest = if text.starts_with("session:") { digest.into_random() } else { digest };
        Self { digest, pin: pin.into(), more }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_keys_are_random() {
        assert!(!Key::new("sha256:00", "", false).digest.is_random());
        let local = Key::new("session:context:sha256:00", "", false);
        assert!(local.digest.is_random());
        assert_eq!(local.digest.hex(), Digest::of("buildkit.source.v0:session:context:sha256:00").hex());
    }
}
