//! Namespaces between containers. One that a container has left is the next one's if nothing of it is left in there; what is more than
//! wanted goes after a while. Making one and taking one away is mostly waiting for the kernel's lock on all networks, so neither is done
//! while a container waits.
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use fault::Fault;
use tokio::sync::watch;

use super::Namespace;
use crate::SandboxError;

/// How long a namespace beyond those wanted stays unused.
const PATIENCE: Duration = Duration::from_secs(5 * 60);
/// Before each look at a namespace that comes back: the kernel frees some sockets a moment after their process has ended.
const SETTLING: [Duration; 4] = [Duration::ZERO, Duration::from_millis(5), Duration::from_millis(50), Duration::from_millis(500)];
/// How long the end of the daemon waits for namespaces on their way back.
const LEAVING: Duration = Duration::from_secs(10);

/// Makes namespaces. All of it blocks.
pub(super) trait Source: std::fmt::Debug + Send + Sync {
    fn make(&self, hostname: Option<&str>) -> Result<Namespace, SandboxError>;

    fn release(&self, namespace: Namespace) -> Result<(), SandboxError>;

    /// Whether a container's name goes into its namespace.
    fn knows_names(&self) -> bool {
        false
    }

    /// Called once, after every namespace at hand was released.
    fn close(&self) {}
}

#[derive(Debug)]
pub(super) struct Pool {
    source: Arc<dyn Source>,
    wanted: usize,
    shelf: Mutex<Shelf>,
    /// How much is being made, checked and released behind the containers.
    busy: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct Shelf {
    /// The one used last is at the end.
    ready: Vec<(Instant, Namespace)>,
    /// With those in use.
    all: usize,
    /// One is being made for whoever comes next.
    preparing: bool,
    shrinks: bool,
    /// Takes nothing any more.
    closed: bool,
    emptied: bool,
}

impl Pool {
    /// Makes nothing before it is asked.
    pub fn new(source: Arc<dyn Source>, wanted: usize) -> Arc<Self> {
        Arc::new(Self { source, wanted, shelf: Mutex::default(), busy: watch::Sender::new(0) })
    }

    /// Makes one namespace, to fail now, and those wanted behind. Must be called within a runtime.
    pub fn open(source: Arc<dyn Source>, wanted: usize) -> Result<Arc<Self>, SandboxError> {
        let pool = Self::new(source, wanted);
        let first = pool.source.make(None)?;
        pool.shelf().all = 1;
        pool.put(first);
        let filled = Arc::clone(&pool);
        pool.behind("network pool", async move {
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
        Ok(pool)
    }

    /// A namespace that was ready, or a new one. Must be called within a runtime.
    pub async fn get(self: &Arc<Self>, hostname: Option<&str>) -> Result<Lease, SandboxError> {
        // With a name of its own it is of no use to others.
        let named = hostname.filter(|_| self.source.knows_names());
        let ready = if named.is_none() { self.shelf().ready.pop() } else { None };
        let namespace = match ready {
            Some((_, namespace)) => namespace,
            None => self.make(named).await?,
        };
        if named.is_none() {
            self.prepare();
        }
        Ok(Lease { pool: Arc::clone(self), namespace: Some(namespace), reusable: AtomicBool::new(named.is_none()) })
    }

    /// While a container runs, a namespace is made for the next if none is ready: this one's may not be fit to be used again.
    fn prepare(self: &Arc<Self>) {
        let mut shelf = self.shelf();
        if !std::mem::replace(&mut shelf.shrinks, true) {
            task::spawn("network pool", shrink(Arc::downgrade(self)));
        }
        if shelf.closed || !shelf.ready.is_empty() || std::mem::replace(&mut shelf.preparing, true) {
            return;
        }
        drop(shelf);
        let pool = Arc::clone(self);
        self.behind("network pool", async move {
            let made = pool.make(None).await;
            pool.shelf().preparing = false;
            match made {
                Ok(namespace) => pool.put(namespace),
                // Whoever needs one makes it, or hears why not.
                Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "failed to prepare a network namespace"),
            }
        });
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

    /// What a container has left is used again once nothing of the container is in it.
    fn take_back(self: &Arc<Self>, namespace: Namespace) {
        if tokio::runtime::Handle::try_current().is_err() {
            return self.release(vec![namespace]);
        }
        let pool = Arc::clone(self);
        self.behind("network return", async move {
            let mut left = Some(namespace);
            for pause in SETTLING {
                tokio::time::sleep(pause).await;
                let Some(namespace) = left.take() else { return };
                match task::blocking(move || Ok((namespace.is_unused(), namespace))).await {
                    Ok((true, namespace)) => return pool.put(namespace),
                    Ok((false, namespace)) => left = Some(namespace),
                    Err(_) => return,
                }
            }
            pool.release(left.into_iter().collect());
        });
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
            Ok(_) => self.behind("network release", async { drop(task::blocking(release).await) }),
            Err(_) => drop(release()),
        }
    }

    /// Work that no container waits for, and [`close`](Self::close) does.
    fn behind(self: &Arc<Self>, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let busy = Busy::new(Arc::clone(self));
        task::spawn(name, async move {
            work.await;
            drop(busy);
        });
    }

    /// Releases what is ready, after what is on its way back.
    pub async fn close(self: &Arc<Self>) {
        self.shelf().closed = true;
        let mut busy = self.busy.subscribe();
        if tokio::time::timeout(LEAVING, busy.wait_for(|count| *count == 0)).await.is_err() {
            tracing::warn!("network namespaces are left to the next start");
        }
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
            if std::mem::replace(&mut shelf.emptied, true) {
                return;
            }
            shelf.closed = true;
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
            if most == 0 {
                // Begun again when a container takes one.
                shelf.shrinks = false;
                return;
            }
            let idle = shelf.ready.iter().take_while(|(since, _)| since.elapsed() >= PATIENCE).count();
            shelf.ready.drain(..most.min(idle)).map(|(_, namespace)| namespace).collect()
        };
        pool.release(surplus);
    }
}

/// Counts what is done behind the containers.
struct Busy(Arc<Pool>);

impl Busy {
    fn new(pool: Arc<Pool>) -> Self {
        pool.busy.send_modify(|count| *count += 1);
        Self(pool)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.send_modify(|count| *count -= 1);
    }
}

/// A namespace of the pool that one container has. Dropped when nothing of the container is left.
#[derive(Debug)]
pub struct Lease {
    pool: Arc<Pool>,
    namespace: Option<Namespace>,
    reusable: AtomicBool,
}

impl Lease {
    /// Nobody else is to have it: its container could change it.
    pub(crate) fn spoil(&self) {
        self.reusable.store(false, Ordering::Relaxed);
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.namespace().fd.as_fd()
    }

    pub(super) fn namespace(&self) -> &Namespace {
        self.namespace.as_ref().expect("it is there until the drop")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(namespace) = self.namespace.take() {
            if self.reusable.load(Ordering::Relaxed) { self.pool.take_back(namespace) } else { self.pool.release(vec![namespace]) }
        }
    }
}

/// These need root.
#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream};

    use super::super::enclosure::Pairs;
    use super::super::{Alone, within};
    use super::*;

    fn number(lease: &Lease) -> u64 {
        rustix::fs::fstat(lease.fd()).unwrap().st_ino
    }

    async fn settled(pool: &Pool) {
        pool.busy.subscribe().wait_for(|count| *count == 0).await.unwrap();
    }

    /// Whether a namespace with which that was done is ready for the next container.
    async fn is_ready_after<T: Send>(source: impl Source + 'static, work: impl FnOnce(&Lease) -> T + Send) -> bool {
        let pool = Pool::new(Arc::new(source), 0);
        let lease = pool.get(None).await.unwrap();
        let first = number(&lease);
        let _kept = work(&lease);
        drop(lease);
        settled(&pool).await;
        let (one, two) = (pool.get(None).await.unwrap(), pool.get(None).await.unwrap());
        [number(&one), number(&two)].contains(&first)
    }

    #[tokio::test]
    async fn a_namespace_comes_back_unless_something_is_left_in_it() {
        // What made it has let go: the kernel frees a socket some time after that, which may be longer than the pool waits.
        let settles = |lease: &Lease| {
            while !lease.namespace().is_unused() {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        assert!(is_ready_after(Alone, settles).await);
        assert!(is_ready_after(Pairs, settles).await);
        assert!(!is_ready_after(Alone, Lease::spoil).await);
        // A socket that a process elsewhere was handed, or that lives by itself for a while.
        let listens = |lease: &Lease| within(Some(lease.fd()), || TcpListener::bind("127.0.0.1:0")).unwrap();
        assert!(!is_ready_after(Alone, listens).await);
        let lingers = |lease: &Lease| {
            within(Some(lease.fd()), || {
                let listener = TcpListener::bind("127.0.0.1:0")?;
                let mut client = TcpStream::connect(listener.local_addr()?)?;
                drop(listener.accept()?);
                client.read(&mut [0])
            })
            .unwrap()
        };
        assert!(!is_ready_after(Alone, lingers).await);
    }

    #[tokio::test]
    async fn one_is_made_ahead_of_the_next_container() {
        let pool = Pool::new(Arc::new(Alone), 0);
        let held = pool.get(None).await.unwrap();
        settled(&pool).await;
        assert_eq!(pool.shelf().ready.len(), 1);
        assert_eq!(pool.shelf().all, 2);
        let other = pool.get(None).await.unwrap();
        assert_ne!(number(&held), number(&other));
        drop((held, other));
        pool.close().await;
        assert!(pool.shelf().ready.is_empty());
    }
}
