use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::batch::Op;
use crate::engine::{Engine, Snapshot};
use crate::error::{Error, OpenError, Result};
use crate::redb_engine::RedbEngine;

/// Which embedded database is under it all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EngineKind {
    #[default]
    Redb,
    /// Only in builds with the feature `sled`.
    Sled,
}

impl std::str::FromStr for EngineKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "redb" => Ok(EngineKind::Redb),
            "sled" => Ok(EngineKind::Sled),
            _ => Err(format!("unknown database engine {name:?}, expected redb or sled")),
        }
    }
}

#[derive(Debug, Clone)]
pub struct Options {
    pub engine: EngineKind,
    /// Memory that the engine may use to cache pages, in bytes.
    pub cache_bytes: usize,
    /// Version of the meaning of all tables. A database of another version is set aside.
    pub schema: u32,
    /// How long changes may wait for others to share a commit with, unless somebody flushes.
    pub commit_delay: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { engine: EngineKind::default(), cache_bytes: 8 << 20, schema: 2, commit_delay: Duration::from_millis(100) }
    }
}

const META: &str = "kv";
const SCHEMA: &[u8] = b"schema";

/// Opens the engine, past a damaged file if need be.
pub(crate) fn engine(path: &Path, options: &Options) -> Result<Arc<dyn Engine>, OpenError> {
    // A directory of its own, so that changing the engine finds the other one's data untouched.
    let path = &if options.engine == EngineKind::Sled { beside(path, "sled") } else { path.to_owned() };
    let failed = |source| OpenError::Open { path: path.into(), source };
    let lock = lock(path)?;
    let mark = damage_mark(path);
    if mark.exists() {
        set_aside(path, "a read found it damaged")?;
        std::fs::remove_file(&mark).map_err(|source| OpenError::SetAside { path: path.into(), source })?;
    }
    let (engine, stamp) = match open_checked(path, options) {
        Err(Error::Damaged(reason)) => {
            set_aside(path, &reason)?;
            open_checked(path, options).map_err(failed)?
        }
        outcome => outcome.map_err(failed)?,
    };
    Ok(Arc::new(Guarded { engine, stamp: Mutex::new(stamp), mark, _lock: lock }))
}

/// Opens the file and compares the schema version. A new database gets it with its first commit.
fn open_checked(path: &Path, options: &Options) -> Result<(Box<dyn Engine>, Option<Op>)> {
    let engine = open_engine(path, options)?;
    match engine.snapshot()?.get(META, SCHEMA)? {
        None => Ok((engine, Some(Op { table: META, key: SCHEMA.into(), value: Some(options.schema.to_be_bytes().into()) }))),
        Some(found) if found == options.schema.to_be_bytes() => Ok((engine, None)),
        Some(found) => Err(Error::Damaged(format!("schema version {} is not {}", found.escape_ascii(), options.schema))),
    }
}

fn open_engine(path: &Path, options: &Options) -> Result<Box<dyn Engine>> {
    match options.engine {
        EngineKind::Redb => Ok(Box::new(RedbEngine::open(path, options.cache_bytes)?)),
        #[cfg(feature = "sled")]
        EngineKind::Sled => Ok(Box::new(crate::sled_engine::SledEngine::open(path, options.cache_bytes)?)),
        #[cfg(not(feature = "sled"))]
        EngineKind::Sled => Err(Error::Engine("this program was built without the engine sled".into())),
    }
}

/// One process at a time. The lock is on a file of its own, so that it outlives reopening and setting aside.
fn lock(path: &Path) -> Result<File, OpenError> {
    let file = File::options().create(true).truncate(false).write(true).open(beside(path, "lock"));
    let file = file.map_err(|e| OpenError::Open { path: path.into(), source: Error::Io(e) })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { path: path.into() }),
        Err(TryLockError::Error(e)) => Err(OpenError::Open { path: path.into(), source: Error::Io(e) }),
    }
}

fn set_aside(path: &Path, reason: &str) -> Result<(), OpenError> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let mut target = beside(path, &format!("damaged-{seconds}"));
    for n in 1.. {
        if !target.exists() {
            break;
        }
        target = beside(path, &format!("damaged-{seconds}-{n}"));
    }
    tracing::error!(?path, kept_as = ?target, reason, "database cannot be used; it is set aside and an empty one takes its place");
    match std::fs::rename(path, &target) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(OpenError::SetAside { path: path.into(), source: e }),
        _ => Ok(()),
    }
}

fn damage_mark(path: &Path) -> PathBuf {
    beside(path, "damage-found")
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// An engine that leaves a mark for the next start when the file turns out damaged while in use.
struct Guarded {
    engine: Box<dyn Engine>,
    /// The schema version, until it is committed.
    stamp: Mutex<Option<Op>>,
    mark: PathBuf,
    _lock: File,
}

impl Guarded {
    fn watch<T>(&self, outcome: Result<T>) -> Result<T> {
        if let Err(Error::Damaged(reason)) = &outcome {
            tracing::error!(reason, "database is damaged; it will be replaced at the next start");
            if let Err(error) = File::create(&self.mark) {
                tracing::error!(%error, mark = ?self.mark, "could not leave a mark of the damage");
            }
        }
        outcome
    }
}

impl Engine for Guarded {
    fn snapshot(&self) -> Result<Box<dyn Snapshot>> {
        self.watch(self.engine.snapshot())
    }

    fn commit(&self, ops: &mut dyn Iterator<Item = Op>) -> Result<()> {
        let mut stamp = self.stamp.lock().unwrap_or_else(PoisonError::into_inner);
        self.watch(self.engine.commit(&mut stamp.clone().into_iter().chain(ops)))?;
        *stamp = None;
        Ok(())
    }

    fn reopen(&self) -> Result<()> {
        self.watch(self.engine.reopen())
    }
}
