use std::fs::File;
use std::io;
use std::ops::Bound;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard};

use redb::{BackendError, Database, DatabaseError, ReadTransaction, ReadableDatabase as _, StorageError, TableDefinition, TableError};

use crate::batch::Op;
use crate::engine::{Engine, Snapshot, Visit};
use crate::error::{Error, Result};

type Guard<'a> = redb::AccessGuard<'a, &'static [u8]>;
type Definition<'a> = TableDefinition<'a, &'static [u8], &'static [u8]>;

/// redb: one file, copy-on-write trees, two commit slots with checksums.
///
/// Commits save the allocator's state ("quick repair"), so that opening after a crash does not walk the file.
pub struct RedbEngine(Arc<Shared>);

struct Shared {
    path: PathBuf,
    cache_bytes: usize,
    open: RwLock<Open>,
    /// Whether anything was ever committed. Before that a power cut can take nothing away, so the making of the file waits for no disk.
    in_use: Arc<AtomicBool>,
}

/// Every use of the database happens under the lock: a reopen must not leave an older instance that still reads or, on its drop, writes.
struct Open {
    database: Option<Database>,
    /// Counts reopens. Pages of an older generation's snapshots may have been overwritten.
    generation: u64,
}

impl RedbEngine {
    pub fn open(path: &Path, cache_bytes: usize) -> Result<Self> {
        let in_use = Arc::new(AtomicBool::new(path.metadata().is_ok_and(|m| m.len() > 0)));
        let open = RwLock::new(Open { database: Some(open(path, cache_bytes, &in_use)?), generation: 0 });
        Ok(Self(Arc::new(Shared { path: path.into(), cache_bytes, open, in_use })))
    }
}

impl Shared {
    fn open(&self) -> RwLockReadGuard<'_, Open> {
        self.open.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn open(path: &Path, cache_bytes: usize, in_use: &Arc<AtomicBool>) -> Result<Database> {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(Error::Io)?;
    redb::Builder::new().set_cache_size(cache_bytes).create_with_backend(Disk { file, in_use: in_use.clone() }).map_err(|error| match error
    {
        DatabaseError::Storage(StorageError::Io(e)) if malformed(&e) => Error::Damaged(e.to_string()),
        DatabaseError::UpgradeRequired(version) => Error::Damaged(format!("file format {version}")),
        DatabaseError::RepairAborted => Error::Damaged("repair was aborted".into()),
        other => convert(other.into()),
    })
}

/// A file that is not a database, or is cut short, shows as one of these.
fn malformed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

fn convert(error: redb::Error) -> Error {
    match error {
        redb::Error::Io(e) => Error::Io(e),
        redb::Error::PreviousIo => Error::Io(io::Error::other("an earlier write failed")),
        redb::Error::Corrupted(what) => Error::Damaged(what),
        redb::Error::LockPoisoned(_) => Error::Io(io::Error::other("an earlier operation panicked")),
        other => Error::Engine(other.to_string()),
    }
}

fn from<E: Into<redb::Error>>(error: E) -> Error {
    convert(error.into())
}

impl Engine for RedbEngine {
    fn snapshot(&self) -> Result<Box<dyn Snapshot>> {
        let open = self.0.open();
        let transaction = open.database.as_ref().ok_or(Error::Closed)?.begin_read().map_err(from)?;
        Ok(Box::new(RedbSnapshot { shared: self.0.clone(), generation: open.generation, transaction }))
    }

    fn commit(&self, ops: &mut dyn Iterator<Item = Op>) -> Result<()> {
        let open = self.0.open();
        self.0.in_use.store(true, Ordering::Release);
        let mut transaction = open.database.as_ref().ok_or(Error::Closed)?.begin_write().map_err(from)?;
        transaction.set_quick_repair(true);
        let mut ops = ops.peekable();
        while let Some(name) = ops.peek().map(|op| op.table) {
            let mut table = transaction.open_table(Definition::new(name)).map_err(from)?;
            while let Some(op) = ops.next_if(|op| op.table == name) {
                match op.value {
                    Some(value) => table.insert(op.key.as_slice(), value.as_slice()).map_err(from)?,
                    None => table.remove(op.key.as_slice()).map_err(from)?,
                };
            }
        }
        transaction.commit().map_err(from)
    }

    fn reopen(&self) -> Result<()> {
        let mut guard = self.0.open.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        // The old instance goes before the new one comes: two live ones would corrupt the file.
        guard.database = None;
        guard.generation += 1;
        guard.database = Some(open(&self.0.path, self.0.cache_bytes, &self.0.in_use)?);
        Ok(())
    }
}

struct RedbSnapshot {
    shared: Arc<Shared>,
    generation: u64,
    transaction: ReadTransaction,
}

/// Records read under one hold of the lock during a scan.
const CHUNK: usize = 256;

impl RedbSnapshot {
    /// Runs `work` on a table while no reopen can happen. `None` if there is no such table.
    fn with<T>(
        &self,
        name: &'static str,
        work: impl FnOnce(redb::ReadOnlyTable<&'static [u8], &'static [u8]>) -> Result<T>,
    ) -> Result<Option<T>> {
        let open = self.shared.open();
        if open.generation != self.generation {
            return Err(Error::Io(io::Error::other("the database was reopened during a read")));
        }
        match self.transaction.open_table(Definition::new(name)) {
            Ok(table) => work(table).map(Some),
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(from(error)),
        }
    }
}

impl Snapshot for RedbSnapshot {
    fn get(&self, table: &'static str, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let found = self.with(table, |table| Ok(table.get(key).map_err(from)?.map(|guard| guard.value().to_vec())))?;
        Ok(found.flatten())
    }

    /// `visit` runs without the lock, so that it may read and write the database itself.
    fn scan(&self, table: &'static str, range: (Bound<&[u8]>, Bound<&[u8]>), visit: &mut Visit<'_>) -> Result<()> {
        let mut start = range.0.map(<[u8]>::to_vec);
        loop {
            let chunk = self.with(table, |table| {
                let from_start = table.range::<&[u8]>((start.as_ref().map(Vec::as_slice), range.1)).map_err(from)?;
                let copy = |record: redb::Result<(Guard<'_>, Guard<'_>), _>| {
                    record.map(|(k, v)| (k.value().to_vec(), v.value().to_vec())).map_err(from::<StorageError>)
                };
                from_start.take(CHUNK).map(copy).collect::<Result<Vec<_>>>()
            })?;
            let chunk = chunk.unwrap_or_default();
            if chunk.iter().any(|(key, value)| visit(key, value).is_break()) || chunk.len() < CHUNK {
                return Ok(());
            }
            start = chunk.into_iter().next_back().map_or(Bound::Unbounded, |(key, _)| Bound::Excluded(key));
        }
    }
}

/// The file under redb. Locking is done once for the whole life of the [`crate::Db`], not by each opening, so that a reopen cannot lose
/// the file to another process or be refused because of a snapshot still held.
#[derive(Debug)]
struct Disk {
    file: File,
    in_use: Arc<AtomicBool>,
}

impl redb::StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.in_use.load(Ordering::Acquire) { self.file.sync_data() } else { Ok(()) }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn try_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn try_lock_shared_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn unlock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }
}
