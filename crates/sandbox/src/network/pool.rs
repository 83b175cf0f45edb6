//! Namespaces between containers. One that a container has left is the next one's; what is more than wanted goes after a while.
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use fault::Fault;

use super::Namespace;
use crate::SandboxError;

/// How long a namespace beyond those wanted stays unused.
const PATIENCE: Duration = Duration::from_secs(5 * 60);

/// Makes namespaces. All of it blocks.
pub(super) trait Source: std::fmt::Debug + Send + Sync {
    fn make(&self, hostname: Option<&str>) -> Result<Namespace, SandboxError>;

    fn release(&self, namespace: Namespace) -> Result<(), SandboxError>;

    /// Called once, after every namespace at hand was released.
    fn close(&self) {}
}

#[derive(Debug)]
pub(super) struct Pool {
    source: Arc<dyn Source>,
    wanted: usize,
    shelf: Mutex<Shelf>,
}

#[derive(Debug, Default)]
struct Shelf {
    /// The one used last is at the end.
    ready: Vec<(Instant, Namespace)>,
    /// With those in use.
    all: usize,
    closed: bool,
}

impl Pool {
    pub fn open(source: Arc<dyn Source>, wanted: usize) -> Result<Arc<Self>, SandboxError> {
        let pool = Arc::new(Self { source, wanted, shelf: Mutex::default() });
        let first = pool.source.make(None)?;
        pool.shelf().all = 1;
        pool.put(first);
        let filled = Arc::clone(&pool);
        task::spawn("network pool", async move {
            let missing = || wanted.saturating_sub(filled.shelf().all);
            while missing() > 0 && !filled.shelf().closed {
                match filled.make(None).await {
                    Ok(namespace) => filled.put(namespace),
                    Err(error) => {
                        tracing::warn!(error = &error as &dyn std::error::Error, "failed to prepare a network namespace");
                        break;
                    }
                }
            }
        });
        task::spawn("network pool", shrink(Arc::downgrade(&pool)));
        Ok(pool)
    }

    /// A namespace that was ready, or a new one.
    pub async fn get(self: &Arc<Self>, hostname: Option<&str>) -> Result<Lease, SandboxError> {
        // Plugins may give out names, so a container with a name has a namespace of its own.
        let ready = if hostname.is_none() { self.shelf().ready.pop() } else { None };
        let namespace = match ready {
            Some((_, namespace)) => namespace,
            None => self.make(hostname).await?,
        };
        Ok(Lease { pool: Arc::clone(self), namespace: Some(namespace), reusable: hostname.is_none() })
    }

    async fn make(self: &Arc<Self>, hostname: Option<&str>) -> Result<Namespace, SandboxError> {
        let (pool, hostname) = (Arc::clone(self), hostname.map(str::to_owned));
        self.shelf().all += 1;
        let made = task::blocking(move || Ok(pool.source.make(hostname.as_deref()))).await;
        let made = made.unwrap_or_else(|fault: Fault| Err(SandboxError::Helper(fault.to_string())));
        if made.is_err() {
            self.shelf().all -= 1;
        }
        made
    }

    fn put(self: &Arc<Self>, namespace: Namespace) {
        let mut shelf = self.shelf();
        if !shelf.closed {
            shelf.ready.push((Instant::now(), namespace));
            return;
        }
        drop(shelf);
        self.release(vec![namespace]);
    }

    /// In the background, if there is one.
    fn release(self: &Arc<Self>, namespaces: Vec<Namespace>) {
        if namespaces.is_empty() {
            return;
        }
        self.shelf().all -= namespaces.len();
        let source = Arc::clone(&self.source);
        let release = move || {
            for namespace in namespaces {
                if let Err(error) = source.release(namespace) {
                    tracing::warn!(error = &error as &dyn std::error::Error, "failed to release a network namespace");
                }
            }
            Ok(())
        };
        match tokio::runtime::Handle::try_current() {
            Ok(_) => drop(task::spawn("network release", task::blocking(release))),
            Err(_) => drop(release()),
        }
    }

    pub async fn close(self: &Arc<Self>) {
        let pool = Arc::clone(self);
        let _ = task::blocking(move || {
            pool.empty();
            Ok(())
        })
        .await;
    }

    fn empty(&self) {
        let ready = {
            let mut shelf = self.shelf();
            if std::mem::replace(&mut shelf.closed, true) {
                return;
            }
            std::mem::take(&mut shelf.ready)
        };
        for (_, namespace) in ready {
            if let Err(error) = self.source.release(namespace) {
                tracing::warn!(error = &error as &dyn std::error::Error, "failed to release a network namespace");
            }
        }
        self.source.close();
    }

    fn shelf(&self) -> std::sync::MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.empty();
    }
}

/// Lets go what nobody has used for long, as long as there is a pool.
async fn shrink(pool: Weak<Pool>) {
    loop {
        tokio::time::sleep(PATIENCE / 5).await;
        let Some(pool) = pool.upgrade() else { return };
        let surplus = {
            let mut shelf = pool.shelf();
            let most = shelf.all.saturating_sub(pool.wanted);
            let idle = shelf.ready.iter().take_while(|(since, _)| since.elapsed() >= PATIENCE).count();
            shelf.ready.drain(..most.min(idle)).map(|(_, namespace)| namespace).collect()
        };
        pool.release(surplus);
    }
}

/// A namespace of the pool that one container has. Dropped when nothing of the container is left.
#[derive(Debug)]
pub struct Lease {
    pool: Arc<Pool>,
    namespace: Option<Namespace>,
    reusable: bool,
}

impl Lease {
    /// Nobody else is to have it: its container could change it.
    pub(crate) fn spoil(&mut self) {
        self.reusable = false;
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_ref().expect("it is there until the drop").fd.as_fd()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(namespace) = self.namespace.take() {
            if self.reusable { self.pool.put(namespace) } else { self.pool.release(vec![namespace]) }
        }
    }
}
