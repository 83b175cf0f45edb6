use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, Weak};

use crate::batch::Op;
use crate::engine::{Engine, Snapshot, Visit};
use crate::error::{Error, Result};

/// sled 0.34: a directory, one keyspace, in which a table is a prefix.
///
/// It keeps everything through `kill -9`, but never calls fsync: a power cut may lose what was acknowledged or leave a directory that does
/// not open (it is set aside then). It has no snapshots either, so a commit saves what it overwrites for those that are held.
pub struct SledEngine(Arc<Shared>);

struct Shared {
    path: PathBuf,
    cache_bytes: u64,
    /// Written to by commits and reopens only, so that readers see all of a commit or nothing.
    open: RwLock<Open>,
    /// What the snapshots that are held must still see.
    held: Mutex<Vec<Weak<Saved>>>,
}

struct Open {
    database: Option<sled::Db>,
    /// Counts reopens.
    generation: u64,
}

/// Values from before later commits, by place; `None` if there was none.
type Saved = Mutex<BTreeMap<Vec<u8>, Option<sled::IVec>>>;

impl SledEngine {
    pub fn open(path: &Path, cache_bytes: usize) -> Result<Self> {
        let cache_bytes = cache_bytes as u64;
        tracing::warn!(?path, "the database engine is sled, which does not wait for the disk: a power cut may cost the whole build cache");
        let open = RwLock::new(Open { database: Some(open(path, cache_bytes)?), generation: 0 });
        Ok(Self(Arc::new(Shared { path: path.into(), cache_bytes, open, held: Mutex::default() })))
    }
}

impl Shared {
    fn open(&self) -> RwLockReadGuard<'_, Open> {
        self.open.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open(path: &Path, cache_bytes: u64) -> Result<sled::Db> {
    sled::Config::new().path(path).cache_capacity(cache_bytes).flush_every_ms(None).open().map_err(from)
}

fn from(error: sled::Error) -> Error {
    match error {
        sled::Error::Io(e) => Error::Io(e),
        sled::Error::Corruption { .. } => Error::Damaged(error.to_string()),
        sled::Error::CollectionNotFound(_) | sled::Error::Unsupported(_) | sled::Error::ReportableBug(_) => {
            Error::Engine(error.to_string())
        }
    }
}

/// Table names hold no NUL.
fn place(table: &str, key: &[u8]) -> Vec<u8> {
    [table.as_bytes(), b"\0", key].concat()
}

impl Engine for SledEngine {
    fn snapshot(&self) -> Result<Box<dyn Snapshot>> {
        let open = self.0.open();
        let saved = Arc::new(Saved::default());
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&saved));
        Ok(Box::new(SledSnapshot { shared: self.0.clone(), generation: open.generation, saved }))
    }

    fn commit(&self, ops: &mut dyn Iterator<Item = Op>) -> Result<()> {
        let open = self.0.open.write().unwrap_or_else(PoisonError::into_inner);
        let database = open.database.as_ref().ok_or(Error::Closed)?;
        let held: Vec<Arc<Saved>> = {
            let mut held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
            held.retain(|saved| saved.strong_count() > 0);
            held.iter().filter_map(Weak::upgrade).collect()
        };
        let mut batch = sled::Batch::default();
        for op in ops {
            let place = place(op.table, &op.key);
            if !held.is_empty() {
                let before = database.get(&place).map_err(from)?;
                for saved in &held {
                    saved.lock().unwrap_or_else(PoisonError::into_inner).entry(place.clone()).or_insert_with(|| before.clone());
                }
            }
            match op.value {
                Some(value) => batch.insert(place, value),
                None => batch.remove(place),
            }
        }
        database.apply_batch(batch).map_err(from)?;
        database.flush().map_err(from)?;
        Ok(())
    }

    fn reopen(&self) -> Result<()> {
        let mut guard = self.0.open.write().unwrap_or_else(PoisonError::into_inner);
        // The old instance holds the lock of the directory.
        guard.database = None;
        guard.generation += 1;
        guard.database = Some(open(&self.0.path, self.0.cache_bytes)?);
        Ok(())
    }
}

struct SledSnapshot {
    shared: Arc<Shared>,
    generation: u64,
    saved: Arc<Saved>,
}

/// Records read under one hold of the lock during a scan.
const CHUNK: usize = 256;

impl SledSnapshot {
    fn with<T>(&self, work: impl FnOnce(&sled::Db) -> Result<T>) -> Result<T> {
        let open = self.shared.open();
        if open.generation != self.generation {
            return Err(Error::Io(std::io::Error::other("the database was reopened during a read")));
        }
        work(open.database.as_ref().ok_or(Error::Closed)?)
    }

    /// The next records of a range, as they were when the snapshot was taken, and whether these are the last.
    fn chunk(&self, start: Bound<&[u8]>, end: Bound<&[u8]>) -> Result<(BTreeMap<Vec<u8>, sled::IVec>, Option<Vec<u8>>)> {
        self.with(|database| {
            let bounds = (start.map(<[u8]>::to_vec), end.map(<[u8]>::to_vec));
            let mut found = BTreeMap::new();
            for record in database.range(bounds).take(CHUNK) {
                let (place, value) = record.map_err(from)?;
                found.insert(place.to_vec(), value);
            }
            let full = found.len() == CHUNK;
            let last = found.keys().next_back().filter(|_| full).cloned();
            let upper = last.as_deref().map_or(end, Bound::Included);
            let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
            for (place, before) in saved.range::<[u8], _>((start, upper)) {
                match before {
                    Some(value) => found.insert(place.clone(), value.clone()),
                    None => found.remove(place),
                };
            }
            Ok((found, last))
        })
    }
}

impl Snapshot for SledSnapshot {
    fn get(&self, table: &'static str, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let place = place(table, key);
        self.with(|database| {
            let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner).get(&place).cloned();
            let value = saved.map_or_else(|| database.get(&place).map_err(from), Ok)?;
            Ok(value.map(|value| value.to_vec()))
        })
    }

    fn scan(&self, table: &'static str, range: (Bound<&[u8]>, Bound<&[u8]>), visit: &mut Visit<'_>) -> Result<()> {
        let prefix = place(table, b"");
        let within = |bound: Bound<&[u8]>| bound.map(|key| place(table, key));
        let mut start = match within(range.0) {
            Bound::Unbounded => Bound::Included(prefix.clone()),
            bound => bound,
        };
        let end = match within(range.1) {
            Bound::Unbounded => Bound::Excluded([table.as_bytes(), b"\x01"].concat()),
            bound => bound,
        };
        loop {
            let (found, last) = self.chunk(start.as_ref().map(Vec::as_slice), end.as_ref().map(Vec::as_slice))?;
            if found.iter().any(|(place, value)| visit(&place[prefix.len()..], value).is_break()) {
                return Ok(());
            }
            match last {
                Some(last) => start = Bound::Excluded(last),
                None => return Ok(()),
            }
        }
    }
}
