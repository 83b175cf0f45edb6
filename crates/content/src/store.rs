use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kv::{Batch, Db, Json, Table};
use oci::Digest;
use serde::{Deserialize, Serialize};

use crate::error::{Error, OpenError, Result};
use crate::hold::{Held, Hold};
use crate::ingest::Ingest;
use crate::read::Reader;
use crate::scratch::Scratch;
use crate::stream::IngestStream;
use crate::watermark::Watermark;

const BLOBS: Table<str, Json<Record>> = Table::new("content.blobs");
/// `<digest>\0<label>` to its value.
const LABELS: Table<str, String> = Table::new("content.labels");

/// `<digest>/<owner>`: who needs a blob across restarts.
const PINS: Table<str, ()> = Table::new("content.pins");

/// An ingest that was given up puts its last bytes away in a thread of its own; the next one of its key waits so long.
const LAST_BYTES: Duration = Duration::from_secs(2);

/// A partial blob that nobody came back for is removed after this.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    size: u64,
    /// Seconds since 1970.
    created: u64,
}

/// One line of [`Store::list`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    pub created: SystemTime,
}

/// The blobs. Clones are the same store.
#[derive(Clone)]
pub struct Store(Arc<Shared>);

struct Shared {
    blobs: PathBuf,
    partials: PathBuf,
    directory: File,
    db: Db,
    watermark: Watermark,
    held: Arc<Held>,
    running: Mutex<HashSet<String>>,
    /// Told when one of them ends.
    ended: tokio::sync::Notify,
    once: AtomicU64,
    /// Bytes in files without a name.
    scratch: AtomicU64,
    /// Bytes on disk of all blobs; before they were added up, what changed since the start.
    used: AtomicI64,
    added_up: OnceLock<()>,
    /// Blobs that this process wrote or read through, and that were right.
    trusted: Mutex<HashSet<Digest>>,
}

/// Bytes that a file of `size` bytes takes.
pub fn on_disk(size: u64) -> u64 {
    size.next_multiple_of(BLOCK)
}

const BLOCK: u64 = 4096;

impl Store {
    /// Opens the store under `root`. Drops what a power cut may have torn; looks at no other blob.
    pub fn open(root: &Path, db: Db) -> Result<Self, OpenError> {
        let boot_id = crate::watermark::boot_id().map_err(OpenError::BootId)?;
        Self::open_as_of_boot(root, db, &boot_id)
    }

    /// [`Store::open`] for tests of what happens when the machine was restarted.
    pub fn open_as_of_boot(root: &Path, db: Db, boot_id: &str) -> Result<Self, OpenError> {
        let (blobs, partials) = (root.join("blobs/sha256"), root.join("ingest"));
        for path in [&blobs, &partials] {
            std::fs::create_dir_all(path).map_err(|source| OpenError::Directory { path: path.clone(), source })?;
        }
        let directory = File::open(root).map_err(|source| OpenError::Directory { path: root.into(), source })?;
        let (watermark, doubtful) = Watermark::open(&db, "content", boot_id)?;
        let (held, running) = (Arc::default(), Mutex::default());
        let store = Self(Arc::new(Shared {
            blobs,
            partials,
            directory,
            db,
            watermark,
            held,
            running,
            ended: tokio::sync::Notify::new(),
            once: AtomicU64::new(0),
            scratch: AtomicU64::new(0),
            used: AtomicI64::new(0),
            added_up: OnceLock::new(),
            trusted: Mutex::default(),
        }));
        store.drop_doubtful(doubtful)?;
        Ok(store)
    }

    fn drop_doubtful(&self, names: Vec<Vec<u8>>) -> Result<(), kv::Error> {
        if names.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        self.0.watermark.settle(&mut batch)?;
        for name in &names {
            let Some(digest) = std::str::from_utf8(name).ok().and_then(|text| text.parse::<Digest>().ok()) else { continue };
            tracing::warn!(%digest, "the machine went down before this blob was synced; dropping it");
            batch.delete(&BLOBS, digest.as_str());
            let path = self.path(&digest);
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::debug!(?path, %error, "could not remove a doubtful blob");
            }
        }
        self.0.db.submit(batch);
        Ok(())
    }

    /// The size of a blob that is there.
    pub fn has(&self, digest: &Digest) -> Result<Option<u64>> {
        Ok(self.0.db.get(&BLOBS, digest.as_str())?.map(|Json(record)| record.size))
    }

    /// Bytes on disk of all blobs. The first call looks at all records.
    pub fn used(&self) -> Result<u64> {
        if self.0.added_up.get().is_none() {
            let (read, during) = {
                let _counts = self.0.held.lock();
                (self.0.db.read()?, self.0.used.load(Ordering::Acquire))
            };
            let mut sum = 0;
            read.each(&BLOBS, b"", |_, Json(record)| {
                sum += on_disk(record.size) as i64;
                ControlFlow::Continue(())
            })?;
            // Of two that come first at once, one adds it.
            self.0.added_up.get_or_init(|| _ = self.0.used.fetch_add(sum - during, Ordering::AcqRel));
        }
        Ok(u64::try_from(self.0.used.load(Ordering::Acquire)).unwrap_or(0))
    }

    /// Bytes on disk of partial blobs, and of scratch files.
    pub fn in_flight(&self) -> Result<u64> {
        let entries = std::fs::read_dir(&self.0.partials).map_err(Error::io("read directory", &self.0.partials))?;
        let partial: u64 = entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|m| m.blocks() * 512).sum();
        Ok(partial + self.scratch_bytes().load(Ordering::Relaxed))
    }

    pub(crate) fn scratch_bytes(&self) -> &AtomicU64 {
        &self.0.scratch
    }

    /// A file for what the process alone needs.
    pub fn scratch(&self) -> Result<Scratch> {
        let number = self.0.once.fetch_add(1, Ordering::Relaxed);
        let path = self.0.partials.join(format!("once-{}-{number}", std::process::id()));
        // A process that had our id may have left one of this name.
        let _ = std::fs::remove_file(&path);
        Scratch::open(self.clone(), path)
    }

    /// Keeps a blob from removal while the result lives. `None` if it is not there.
    pub fn hold(&self, digest: &Digest) -> Result<Option<Hold>> {
        let mut counts = self.0.held.lock();
        let size = self.has(digest)?;
        Ok(size.map(|size| Hold::take(&self.0.held, &mut counts, digest, size)))
    }

    /// Opens a blob. One of an earlier life of the process is read through first, once: a damaged one is put aside and not found.
    pub fn open_blob(&self, digest: &Digest) -> Result<Reader> {
        let missing = || Error::NotFound { digest: digest.clone() };
        let hold = self.hold(digest)?.ok_or_else(missing)?;
        let path = self.path(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // Its record outlived it: the process was killed while it removed both.
                tracing::warn!(%digest, "a blob's file is gone; it will be brought or made again");
                let _counts = self.0.held.lock();
                self.delete(digest)?;
                return Err(missing());
            }
            Err(e) => return Err(Error::io("open blob", &path)(e)),
        };
        if !self.is_trusted(digest) {
            let mut hasher = oci::Hasher::new();
            let copied = io::copy(&mut &file, &mut hasher).map_err(Error::io("read blob", &path))?;
            if copied != hold.size() || hasher.finish() != *digest {
                self.put_aside(digest, &format!("its {copied} bytes are not those that it was stored with"));
                return Err(missing());
            }
            io::Seek::rewind(&mut &file).map_err(Error::io("read blob", &path))?;
            self.trust(digest);
        }
        Ok(Reader::new(file, hold))
    }

    fn is_trusted(&self, digest: &Digest) -> bool {
        self.0.trusted.lock().expect("no holder of the lock panics").contains(digest)
    }

    /// Its bytes passed through this process and were right.
    fn trust(&self, digest: &Digest) {
        self.0.trusted.lock().expect("no holder of the lock panics").insert(digest.clone());
    }

    /// Takes a blob that is not what it should be out of the way. It is as if it had never been there; who needs it brings it anew.
    fn put_aside(&self, digest: &Digest, reason: &str) {
        let quarantine = self.0.partials.with_file_name("quarantine");
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let target = quarantine.join(format!("{}-{seconds}", digest.hex()));
        tracing::error!(%digest, reason, kept_as = ?target, "a damaged blob was found; it is put aside, and will be brought or made again");
        let counts = self.0.held.lock();
        let moved = std::fs::create_dir_all(&quarantine).and_then(|()| std::fs::rename(self.path(digest), &target));
        if let Err(error) = moved.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) }) {
            tracing::error!(%digest, %error, "could not move a damaged blob");
        }
        if let Err(error) = self.delete(digest) {
            tracing::error!(%digest, %error, "could not forget a damaged blob");
        }
        drop(counts);
    }

    /// A whole blob that is known to be small.
    pub fn read(&self, digest: &Digest) -> Result<Vec<u8>> {
        let mut reader = self.open_blob(digest)?;
        let mut data = Vec::with_capacity(reader.size().try_into().unwrap_or(0));
        io::Read::read_to_end(&mut reader, &mut data).map_err(Error::io("read blob", &self.path(digest)))?;
        Ok(data)
    }

    /// Begins or resumes a blob. `key` names the attempt across restarts; callers use something that says what the source is.
    pub fn ingest(&self, key: &str, expected: Option<(Digest, u64)>) -> Result<Ingest> {
        let name = Digest::of(key).hex().to_owned();
        self.begin(name, key, expected, true)
    }

    /// An ingest that nobody will resume; its partial file goes with it.
    pub fn ingest_once(&self) -> Result<Ingest> {
        let number = self.0.once.fetch_add(1, Ordering::Relaxed);
        self.begin(format!("once-{}-{number}", std::process::id()), "once", None, false)
    }

    /// [`Store::ingest`] for async callers.
    pub async fn ingest_stream(&self, key: &str, expected: Option<(Digest, u64)>) -> Result<IngestStream> {
        let until = tokio::time::Instant::now() + LAST_BYTES;
        loop {
            let ended = self.0.ended.notified();
            match IngestStream::open(self.clone(), key.to_owned(), expected.clone()).await {
                Err(Error::Busy { .. }) if tokio::time::timeout_at(until, ended).await.is_ok() => {}
                outcome => return outcome,
            }
        }
    }

    fn begin(&self, name: String, key: &str, expected: Option<(Digest, u64)>, resumable: bool) -> Result<Ingest> {
        if let Some((digest, _)) = expected.as_ref().filter(|(digest, _)| digest.algorithm() != "sha256") {
            return Err(Error::Algorithm { digest: digest.clone() });
        }
        if !self.0.running.lock().expect("no holder of the lock panics").insert(name.clone()) {
            return Err(Error::Busy { key: key.into() });
        }
        let path = self.0.partials.join(&name);
        if !resumable {
            // A process that had our id may have left one of this name.
            let _ = std::fs::remove_file(&path);
        }
        Ingest::open(self.clone(), path, name.clone(), expected, resumable).inspect_err(|_| self.end_ingest(&name))
    }

    pub(crate) fn end_ingest(&self, name: &str) {
        self.0.running.lock().expect("no holder of the lock panics").remove(name);
        self.0.ended.notify_waiters();
    }

    /// Stores a small blob.
    pub fn put(&self, data: &[u8]) -> Result<Hold> {
        let digest = Digest::of(data);
        if let Some(hold) = self.hold(&digest)? {
            return Ok(hold);
        }
        let mut ingest = self.ingest_once()?;
        ingest.write(data)?;
        ingest.commit()
    }

    /// Makes a finished partial file the blob `digest`.
    pub(crate) fn adopt(&self, partial: &Path, digest: &Digest, size: u64) -> Result<Hold> {
        let path = self.path(digest);
        let mut counts = self.0.held.lock();
        if self.has(digest)?.is_some() && self.is_trusted(digest) && path.exists() {
            std::fs::remove_file(partial).map_err(Error::io("remove partial blob", partial))?;
        } else {
            std::fs::rename(partial, &path).map_err(Error::io("store blob", &path))?;
            let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
            let mut batch = Batch::new();
            if self.has(digest)?.is_none() {
                self.0.used.fetch_add(on_disk(size) as i64, Ordering::AcqRel);
            }
            batch.put(&BLOBS, digest.as_str(), &Json(Record { size, created }));
            self.0.watermark.note(&mut batch, digest.as_str().as_bytes());
            self.0.db.submit(batch);
            self.trust(digest);
        }
        Ok(Hold::take(&self.0.held, &mut counts, digest, size))
    }

    /// Removes a blob that nobody holds.
    pub fn remove(&self, digest: &Digest) -> Result<()> {
        let counts = self.0.held.lock();
        if counts.contains_key(digest) {
            return Err(Error::InUse { digest: digest.clone() });
        }
        if self.has(digest)?.is_none() {
            return Err(Error::NotFound { digest: digest.clone() });
        }
        self.delete(digest)
    }

    /// Removes a blob that nobody holds and nobody has pinned; says whether it did.
    pub fn remove_unneeded(&self, digest: &Digest) -> Result<bool> {
        let counts = self.0.held.lock();
        if counts.contains_key(digest) || self.has(digest)?.is_none() || self.is_pinned(digest)? {
            return Ok(false);
        }
        self.delete(digest)?;
        Ok(true)
    }

    /// Under the lock of the holds.
    fn delete(&self, digest: &Digest) -> Result<()> {
        let mut batch = Batch::new();
        self.0.trusted.lock().expect("no holder of the lock panics").remove(digest);
        if let Some(size) = self.has(digest)? {
            self.0.used.fetch_sub(on_disk(size) as i64, Ordering::AcqRel);
        }
        batch.delete(&BLOBS, digest.as_str());
        for (label, _) in self.labels(digest)? {
            batch.delete(&LABELS, label_key(digest, &label).as_str());
        }
        self.0.db.submit(batch);
        let path = self.path(digest);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove blob", &path)(e)),
            _ => Ok(()),
        }
    }

    /// Adds to `batch` that `owner` needs the blob, here or yet to come, until it is unpinned. Owners are names that their rooms choose,
    /// as in `layer/<id>`.
    pub fn pin(&self, batch: &mut Batch, digest: &Digest, owner: &str) {
        batch.put(&PINS, format!("{digest}/{owner}").as_str(), &());
    }

    pub fn unpin(&self, batch: &mut Batch, digest: &Digest, owner: &str) {
        batch.delete(&PINS, format!("{digest}/{owner}").as_str());
    }

    /// Whether anyone has the blob pinned.
    pub fn is_pinned(&self, digest: &Digest) -> Result<bool> {
        Ok(!self.0.db.read()?.prefix(&PINS, format!("{digest}/").as_bytes())?.is_empty())
    }

    /// Removes every blob that is not pinned, not held, and older than `grace`; and partial blobs that nobody came back for. Returns the
    /// bytes freed.
    pub fn sweep(&self, grace: Duration) -> Result<u64> {
        let mut freed = 0;
        let now = SystemTime::now();
        for blob in self.list()? {
            if now.duration_since(blob.created).unwrap_or_default() < grace {
                continue;
            }
            let counts = self.0.held.lock();
            if !counts.contains_key(&blob.digest) && !self.is_pinned(&blob.digest)? {
                self.delete(&blob.digest)?;
                freed += blob.size;
            }
        }
        Ok(freed + self.sweep_partials(now)?)
    }

    fn sweep_partials(&self, now: SystemTime) -> Result<u64> {
        let mut freed = 0;
        let failed = Error::io("read directory", &self.0.partials);
        let entries = std::fs::read_dir(&self.0.partials).map_err(failed)?;
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Ok(metadata) = entry.metadata() else { continue };
            let age = metadata.modified().ok().and_then(|t| now.duration_since(t).ok()).unwrap_or_default();
            let running = self.0.running.lock().expect("no holder of the lock panics");
            if !running.contains(&name) && (name.starts_with("once-") || age > ABANDONED) && std::fs::remove_file(entry.path()).is_ok() {
                freed += metadata.len();
            }
        }
        Ok(freed)
    }

    /// All blobs, by digest.
    pub fn list(&self) -> Result<Vec<Blob>> {
        let records = self.0.db.read()?.all(&BLOBS)?;
        let blob = |(digest, Json(record)): (String, Json<Record>)| {
            let created = UNIX_EPOCH + Duration::from_secs(record.created);
            Some(Blob { digest: digest.parse().ok()?, size: record.size, created })
        };
        Ok(records.into_iter().filter_map(blob).collect())
    }

    pub fn set_label(&self, digest: &Digest, label: &str, value: &str) {
        let mut batch = Batch::new();
        batch.put(&LABELS, label_key(digest, label).as_str(), &value.to_owned());
        self.0.db.submit(batch);
    }

    pub fn label(&self, digest: &Digest, label: &str) -> Result<Option<String>> {
        Ok(self.0.db.get(&LABELS, label_key(digest, label).as_str())?)
    }

    pub fn labels(&self, digest: &Digest) -> Result<Vec<(String, String)>> {
        let prefix = label_key(digest, "");
        let found = self.0.db.read()?.prefix(&LABELS, prefix.as_bytes())?;
        Ok(found.into_iter().map(|(key, value)| (key[prefix.len()..].to_owned(), value)).collect())
    }

    /// Waits until every blob stored before this call would survive a power cut.
    pub fn sync(&self) -> Result<()> {
        self.0.watermark.advance(|| rustix::fs::syncfs(&self.0.directory).map_err(|e| Error::io("sync", &self.0.blobs)(e.into())))
    }

    /// Whether there are files of blobs and no record of any: the database had to be replaced.
    pub fn is_forgotten(&self) -> Result<bool> {
        let mut any = false;
        self.0.db.read()?.each(&BLOBS, b"", |_, _| {
            any = true;
            ControlFlow::Break(())
        })?;
        let mut files = std::fs::read_dir(&self.0.blobs).map_err(Error::io("read directory", &self.0.blobs))?;
        Ok(!any && files.next().is_some())
    }

    /// Finds blobs that the database does not know, after it had to be replaced, and takes those back whose bytes match their names.
    /// Reads them all: for a background thread. Returns how many.
    pub fn recover(&self) -> Result<usize> {
        let mut found = 0;
        let entries = std::fs::read_dir(&self.0.blobs).map_err(Error::io("read directory", &self.0.blobs))?;
        for entry in entries.flatten() {
            let Ok(digest) = format!("sha256:{}", entry.file_name().to_string_lossy()).parse::<Digest>() else { continue };
            if self.has(&digest)?.is_some() {
                continue;
            }
            let mut hasher = oci::Hasher::new();
            let copied = File::open(entry.path()).and_then(|mut file| io::copy(&mut file, &mut hasher));
            let size = copied.map_err(Error::io("read blob", &entry.path()))?;
            let _counts = self.0.held.lock();
            if self.has(&digest)?.is_some() {
                continue;
            }
            if hasher.finish() == digest {
                let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
                let mut batch = Batch::new();
                batch.put(&BLOBS, digest.as_str(), &Json(Record { size, created }));
                self.0.used.fetch_add(on_disk(size) as i64, Ordering::AcqRel);
                self.0.watermark.note(&mut batch, digest.as_str().as_bytes());
                self.0.db.submit(batch);
                found += 1;
            } else {
                std::fs::remove_file(entry.path()).map_err(Error::io("remove blob", &entry.path()))?;
            }
        }
        Ok(found)
    }

    /// Where the file of a blob is, for those who pass it to the kernel by name. Hold the blob meanwhile.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.0.blobs.join(digest.hex())
    }
}

fn label_key(digest: &Digest, label: &str) -> String {
    format!("{digest}\0{label}")
}
