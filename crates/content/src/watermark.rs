use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use kv::{Batch, Db, Table};

/// Epoch (8 bytes, big-endian) and name of what was recorded in it, by scope: `<scope>\0<epoch><name>`.
const UNSYNCED: Table<[u8], ()> = Table::new("watermark.unsynced");
/// By scope: the boot id under which the journal was written.
const BOOT: Table<str, String> = Table::new("watermark.boot");

/// Tells after a power cut which records have their files on the disk.
///
/// The database is durable sooner than the files it speaks of, because nothing on the path of a build waits for files. So each record
/// about a file goes with an entry in a journal, and a sync of the file system takes the entries away that are older than its start. If
/// the journal is found under another boot id, what it still names may be torn: its owner drops that. After a mere crash of the process
/// the kernel still has every byte, and nothing is dropped.
#[derive(Clone)]
pub struct Watermark(Arc<Shared>);

struct Shared {
    db: Db,
    scope: &'static str,
    /// Entries of earlier processes are below.
    first: u64,
    epoch: Mutex<u64>,
}

/// The kernel's name for this boot.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

impl Watermark {
    /// Opens the journal of `scope` and gives the names that a change of boot put in doubt. The caller drops those records in a batch
    /// together with [`Watermark::settle`].
    pub fn open(db: &Db, scope: &'static str, boot_id: &str) -> Result<(Self, Vec<Vec<u8>>), kv::Error> {
        let key = |epoch: u64, name: &[u8]| [scope.as_bytes(), b"\0", &epoch.to_be_bytes(), name].concat();
        let mut epoch = 1;
        let mut names = Vec::new();
        let prefix = [scope.as_bytes(), b"\0"].concat();
        db.read()?.each(&UNSYNCED, &prefix, |entry, ()| {
            if let Some((number, name)) = entry[prefix.len()..].split_first_chunk() {
                epoch = epoch.max(u64::from_be_bytes(*number) + 1);
                names.push(name.to_vec());
            }
            ControlFlow::Continue(())
        })?;
        let before = db.get(&BOOT, scope)?;
        if before.as_deref() == Some(boot_id) {
            names.clear();
        } else {
            let mut batch = Batch::new();
            batch.put(&BOOT, scope, &boot_id.to_owned());
            if before.is_some() {
                // Until the owner settles them they must stay in doubt through further restarts, whatever the boot id then says.
                for name in &names {
                    batch.put(&UNSYNCED, &key(0, name), &());
                }
            }
            db.submit(batch);
        }
        if before.as_deref() == Some(boot_id) {
            let doubtful = db.read()?.prefix(&UNSYNCED, &key(0, b""))?;
            names.extend(doubtful.into_iter().map(|(entry, ())| entry[prefix.len() + 8..].to_vec()));
        }
        let shared = Shared { db: db.clone(), scope, first: epoch, epoch: Mutex::new(epoch) };
        Ok((Self(Arc::new(shared)), names))
    }

    /// Adds to `batch`, which records a file, that the file is not synced yet. The file must be complete.
    pub fn note(&self, batch: &mut Batch, name: &[u8]) {
        let epoch = *self.0.epoch.lock().expect("no holder of the epoch panics");
        batch.put(&UNSYNCED, &self.key(epoch, name), &());
    }

    /// Adds to `batch`, which drops all records that [`Watermark::open`] named, that this is done.
    pub fn settle(&self, batch: &mut Batch) -> Result<(), kv::Error> {
        let before = self.key(self.0.first, b"");
        let entries = self.0.db.read()?.prefix(&UNSYNCED, &self.prefix())?;
        for (entry, ()) in entries.iter().take_while(|(entry, ())| *entry < before) {
            batch.delete(&UNSYNCED, entry);
        }
        Ok(())
    }

    /// Moves the mark: everything noted before this call is believed once `sync` has returned.
    pub fn advance<E: From<kv::Error>>(&self, sync: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let closed = {
            let mut epoch = self.0.epoch.lock().expect("no holder of the epoch panics");
            *epoch += 1;
            *epoch
        };
        let entries = self.0.db.read()?.prefix(&UNSYNCED, &self.prefix())?;
        if entries.is_empty() {
            return Ok(());
        }
        sync()?;
        let mut batch = Batch::new();
        let (first, end) = (self.key(1, b""), self.key(closed, b""));
        for (entry, ()) in entries.iter().filter(|(entry, ())| (&first..&end).contains(&entry)) {
            batch.delete(&UNSYNCED, entry);
        }
        self.0.db.submit(batch);
        Ok(())
    }

    fn prefix(&self) -> Vec<u8> {
        [self.0.scope.as_bytes(), b"\0"].concat()
    }

    fn key(&self, epoch: u64, name: &[u8]) -> Vec<u8> {
        [&self.prefix(), &epoch.to_be_bytes()[..], name].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(db: &Db, mark: &Watermark, name: &str) {
        let mut batch = Batch::new();
        mark.note(&mut batch, name.as_bytes());
        db.submit(batch);
    }

    fn open(db: &Db, boot: &str) -> (Watermark, Vec<String>) {
        let (mark, names) = Watermark::open(db, "test", boot).unwrap();
        let mut names: Vec<_> = names.into_iter().map(|n| String::from_utf8(n).unwrap()).collect();
        names.sort();
        (mark, names)
    }

    #[test]
    fn only_another_boot_puts_unsynced_names_in_doubt() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("db"), kv::Options::default()).unwrap();
        let (mark, doubtful) = open(&db, "first");
        assert!(doubtful.is_empty());
        noted(&db, &mark, "a");
        mark.advance(|| {
            noted(&db, &mark, "b");
            Ok::<_, kv::Error>(())
        })
        .unwrap();
        noted(&db, &mark, "c");

        let (mark, doubtful) = open(&db, "first");
        assert!(doubtful.is_empty(), "the process ended, the machine did not: {doubtful:?}");
        noted(&db, &mark, "d");
        let (_, doubtful) = open(&db, "second");
        assert_eq!(doubtful, ["b", "c", "d"], "what came during the sync is not covered by it");
        let (mark, doubtful) = open(&db, "second");
        assert_eq!(doubtful, ["b", "c", "d"], "in doubt until settled");
        mark.advance(|| Ok::<_, kv::Error>(())).unwrap();

        let mut batch = Batch::new();
        mark.settle(&mut batch).unwrap();
        db.submit(batch);
        assert!(open(&db, "second").1.is_empty());
        assert!(open(&db, "third").1.is_empty());
    }
}
