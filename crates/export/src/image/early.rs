//! Layers go to a registry while they are packed, so that little is left to send once the image is.
//!
//! Only blobs go early; nothing refers to them until the manifest does. Whatever fails here is tried again when the image is pushed, and told then.
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use content::{Growing, Store};
use fault::Result;
use futures_util::future::join_all;
use layers::{Begun, CompressionKind};
use oci::{Descriptor, Reference};
use progress::Reporter;
use registry::Repository;
use task::{Cancel, CancelOnDrop, Task};

use crate::image::blobs::Blobs;
use crate::image::push::{Target, Transfer};

/// A blob that gets this long, in bytes, is sent before it is whole. For smaller ones that would be a request more, and no time less.
const LONG: u64 = 4 << 20;

/// Uploads on their way, which end when this is dropped.
pub struct Early {
    shared: Arc<Shared>,
    _guard: CancelOnDrop,
}

struct Shared {
    repository: Repository,
    reference: Reference,
    store: Store,
    cancel: Cancel,
    /// One went wrong. What did may do so again: the others wait.
    failed: AtomicBool,
    tasks: Mutex<Vec<Task<()>>>,
}

impl Early {
    /// To the repository that `name` names; `None` if it names none.
    pub fn new(target: &Target, name: &str, store: &Store, cancel: &Cancel) -> Option<Self> {
        let reference: Reference = name.parse().ok()?;
        // Retries are for the push that follows.
        let repository = target.repository(&reference, &Reporter::silent());
        let cancel = cancel.child();
        let guard = CancelOnDrop::new(cancel.clone(), "the image is not pushed");
        let (failed, tasks) = (AtomicBool::new(false), Mutex::default());
        let shared = Shared { repository, reference, store: store.clone(), cancel, failed, tasks };
        Some(Self { shared: Arc::new(shared), _guard: guard })
    }

    /// What has to be told of blobs that are being made.
    pub fn begun(&self) -> Begun {
        let shared = Arc::downgrade(&self.shared);
        Arc::new(move |kind, growing| {
            let Some(shared) = shared.upgrade() else { return };
            let own = shared.clone();
            let upload = task::spawn("early push", async move { own.upload(kind, growing).await });
            shared.tasks.lock().expect("no holder of this lock panics").push(upload);
        })
    }

    /// Waits until nothing is on its way any more.
    pub async fn landed(&self) {
        let tasks = std::mem::take(&mut *self.shared.tasks.lock().expect("no holder of this lock panics"));
        join_all(tasks.into_iter().map(Task::join)).await;
    }
}

impl Shared {
    async fn upload(&self, kind: CompressionKind, growing: Growing) {
        let cancel = self.cancel.clone();
        if let Err(fault) = cancel.run(self.try_upload(kind, growing)).await {
            self.failed.store(true, Ordering::Relaxed);
            tracing::debug!(%fault, to = %self.reference, "a layer could not be pushed early");
        }
    }

    async fn try_upload(&self, kind: CompressionKind, mut growing: Growing) -> Result<()> {
        let described = |hold: &content::Hold| Descriptor::new(kind.media_type(), hold.digest().clone(), hold.size());
        let Ok(length) = growing.reaches(LONG).await else { return Ok(()) };
        if self.failed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let blobs = Blobs::new(self.store.clone(), Default::default());
        let silent = Reporter::silent();
        let transfer =
            Transfer { repository: &self.repository, reference: &self.reference, blobs: &blobs, cancel: &self.cancel, reporter: &silent };
        if length < LONG {
            let Ok(whole) = growing.whole().await else { return Ok(()) };
            return transfer.blob(&described(&whole)).await;
        }
        let mut end = growing.clone();
        let whole = async move { end.whole().await.ok().map(|hold| described(&hold)) };
        if self.repository.push_stream(kind.media_type(), growing.clone().chunks(), whole).await?.is_some()
            && let Ok(whole) = growing.whole().await
        {
            transfer.remember(&described(&whole))?;
        }
        Ok(())
    }
}
