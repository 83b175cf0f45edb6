use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use oci::Digest;

/// How many holds each blob has. A sweep decides under this lock.
#[derive(Default)]
pub(crate) struct Held(Mutex<HashMap<Digest, usize>>);

impl Held {
    pub fn lock(&self) -> MutexGuard<'_, HashMap<Digest, usize>> {
        self.0.lock().expect("no holder of the lock panics")
    }
}

/// Keeps a blob from being removed; cheap to clone.
#[derive(Clone)]
pub struct Hold(Arc<Inner>);

struct Inner {
    held: Arc<Held>,
    digest: Digest,
    size: u64,
}

impl Hold {
    /// Takes a hold while the caller has the lock, having seen that the blob exists.
    pub(crate) fn take(held: &Arc<Held>, counts: &mut HashMap<Digest, usize>, digest: &Digest, size: u64) -> Self {
        *counts.entry(digest.clone()).or_default() += 1;
        Self(Arc::new(Inner { held: held.clone(), digest: digest.clone(), size }))
    }

    pub fn digest(&self) -> &Digest {
        &self.0.digest
    }

    /// In bytes.
    pub fn size(&self) -> u64 {
        self.0.size
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let mut counts = self.held.lock();
        if let Some(count) = counts.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.digest);
            }
        }
    }
}

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hold({})", self.0.digest)
    }
}
