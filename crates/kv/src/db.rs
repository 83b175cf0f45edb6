use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::batch::{Batch, Op};
use crate::codec::{Key, Table, Value, unseal};
use crate::engine::{Engine, Snapshot, Visit};
use crate::error::{Error, OpenError, Result};
use crate::open::{self, Options};
use crate::overlay::Overlay;
use crate::writer::{self, Queue};

/// An open database. Clones are the same database; it closes, after a last commit, when the last clone drops.
#[derive(Clone)]
pub struct Db(Arc<Shared>);

struct Shared {
    engine: Arc<dyn Engine>,
    queue: Arc<Queue>,
    /// Held through an update, so that no other change comes between its reads and its writes.
    turn: Mutex<()>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Db {
    /// Opens or makes the database file at `path`. One that is damaged, or of another schema, is renamed, logged and replaced by an
    /// empty one.
    pub fn open(path: &Path, options: Options) -> Result<Self, OpenError> {
        let engine = open::engine(path, &options)?;
        Self::over(engine, &options)
    }

    /// A database over an engine that is already open.
    pub fn over(engine: Arc<dyn Engine>, options: &Options) -> Result<Self, OpenError> {
        let queue = Arc::new(Queue::new());
        let (shared, delay) = ((queue.clone(), engine.clone()), options.commit_delay);
        let writer = std::thread::Builder::new()
            .name("kv-writer".into())
            .stack_size(512 << 10)
            .spawn(move || writer::run(&shared.0, &*shared.1, delay))
            .map_err(OpenError::Thread)?;
        Ok(Self(Arc::new(Shared { engine, queue, turn: Mutex::new(()), writer: Mutex::new(Some(writer)) })))
    }

    pub fn get<K: Key + ?Sized, V: Value>(&self, table: &Table<K, V>, key: &K) -> Result<Option<V>> {
        let key = key.encode();
        // The order matters: what leaves the overlay between the two looks is by then in the engine.
        let value = match self.0.queue.with(|pending| pending.get(table.name, &key)) {
            Some(value) => value.map(|v| v.to_vec()),
            None => self.0.engine.snapshot()?.get(table.name, &key)?,
        };
        Ok(value.and_then(|v| usable(&self.0.queue, table.name, &key, &v)))
    }

    /// A view of the database that no later change touches.
    pub fn read(&self) -> Result<Reader> {
        self.0
            .queue
            .with(|pending| Ok(Reader { overlay: pending.freeze(), snapshot: self.0.engine.snapshot()?, queue: self.0.queue.clone() }))
    }

    /// Makes the batch visible at once and queues it for the disk. Never waits for the disk; may wait for a running [`Db::update`].
    pub fn submit(&self, batch: Batch) {
        let _turn = self.0.turn.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.0.queue.submit(batch.ops);
    }

    /// Reads and writes with no other change in between. Nothing is changed if `work` fails. Keep `work` short: other writers wait.
    pub fn update<T, E: From<Error>>(&self, work: impl FnOnce(&mut Update<'_>) -> Result<T, E>) -> Result<T, E> {
        let _turn = self.0.turn.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut update = Update { db: self, batch: Batch::new(), written: BTreeMap::new() };
        let outcome = work(&mut update)?;
        self.0.queue.submit(update.batch.ops);
        Ok(outcome)
    }

    /// Waits until everything submitted before is durable. Concurrent flushes share a commit.
    pub async fn flush(&self) -> Result<()> {
        match self.0.queue.flush()? {
            None => Ok(()),
            Some(done) => done.await.map_err(|_| Error::Closed)?.map_err(Error::Commit),
        }
    }

    /// [`Db::flush`] for threads that may block.
    pub fn flush_blocking(&self) -> Result<()> {
        match self.0.queue.flush()? {
            None => Ok(()),
            Some(done) => done.blocking_recv().map_err(|_| Error::Closed)?.map_err(Error::Commit),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.queue.close();
        let writer = self.writer.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        if writer.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("database writer panicked");
        }
    }
}

fn decode<V: Value>(key: &[u8], sealed: &[u8]) -> Result<V, String> {
    unseal(key, sealed).and_then(V::decode)
}

/// The value, or nothing if it is damaged: then it is put aside, and never read again.
fn usable<V: Value>(queue: &Queue, table: &'static str, key: &[u8], sealed: &[u8]) -> Option<V> {
    match decode(key, sealed) {
        Ok(value) => Some(value),
        Err(reason) => {
            put_aside(queue, table, key, sealed, &reason);
            None
        }
    }
}

/// `<table> <key in hex>` to the bytes of records that could not be read.
pub const QUARANTINE: Table<str, Vec<u8>> = Table::new("kv.quarantine");

fn put_aside(queue: &Queue, table: &'static str, key: &[u8], sealed: &[u8], reason: &str) {
    let pending = queue.with(|pending| pending.get(table, key));
    if pending.is_some_and(|value| value.is_none_or(|value| *value != *sealed)) {
        // It was replaced meanwhile.
        return;
    }
    let shown = key.escape_ascii().to_string();
    tracing::error!(table, key = shown, reason, "a damaged record was found; it is put aside, and what it stood for will be made again");
    let place = format!("{table} {}", key.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    let mut batch = Batch::new();
    batch.put(&QUARANTINE, place.as_str(), &sealed.to_vec());
    batch.ops.push(Op { table, key: key.to_vec(), value: None });
    queue.submit(batch.ops);
}

/// See [`Db::read`].
pub struct Reader {
    overlay: Overlay,
    snapshot: Box<dyn Snapshot>,
    queue: Arc<Queue>,
}

impl Reader {
    pub fn get<K: Key + ?Sized, V: Value>(&self, table: &Table<K, V>, key: &K) -> Result<Option<V>> {
        let key = key.encode();
        let value = match self.overlay.get(table.name, &key) {
            Some(value) => value.map(|v| v.to_vec()),
            None => self.snapshot.get(table.name, &key)?,
        };
        Ok(value.and_then(|v| usable(&self.queue, table.name, &key, &v)))
    }

    /// All records whose encoded key starts with `prefix`, in key order.
    pub fn prefix<K: Key + ?Sized, V: Value>(&self, table: &Table<K, V>, prefix: &[u8]) -> Result<Vec<(K::Owned, V)>> {
        let end = end_of(prefix);
        let upper = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        self.collect(table, (Bound::Included(prefix), upper))
    }

    /// All records with keys from `start` up to but not `end`, in key order.
    pub fn range<K: Key + ?Sized, V: Value>(&self, table: &Table<K, V>, start: &K, end: &K) -> Result<Vec<(K::Owned, V)>> {
        self.collect(table, (Bound::Included(&start.encode()), Bound::Excluded(&end.encode())))
    }

    /// The whole table, in key order.
    pub fn all<K: Key + ?Sized, V: Value>(&self, table: &Table<K, V>) -> Result<Vec<(K::Owned, V)>> {
        self.prefix(table, b"")
    }

    /// Encoded keys and values with a prefix, one at a time, until `visit` breaks; for tables too large to collect.
    pub fn each<K: Key + ?Sized, V: Value>(
        &self,
        table: &Table<K, V>,
        prefix: &[u8],
        mut visit: impl FnMut(K::Owned, V) -> ControlFlow<()>,
    ) -> Result<()> {
        let end = end_of(prefix);
        let upper = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        self.scan(table.name, (Bound::Included(prefix), upper), &mut |key, value| match self.record::<K, V>(table.name, key, value) {
            Some((key, value)) => visit(key, value),
            None => ControlFlow::Continue(()),
        })
    }

    fn collect<K: Key + ?Sized, V: Value>(&self, table: &Table<K, V>, range: (Bound<&[u8]>, Bound<&[u8]>)) -> Result<Vec<(K::Owned, V)>> {
        let mut found = Vec::new();
        self.scan(table.name, range, &mut |key, value| {
            found.extend(self.record::<K, V>(table.name, key, value));
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    /// `None`, and it is put aside, if it is damaged.
    fn record<K: Key + ?Sized, V: Value>(&self, table: &'static str, key: &[u8], sealed: &[u8]) -> Option<(K::Owned, V)> {
        let value = usable(&self.queue, table, key, sealed)?;
        let decoded = K::decode(key);
        if decoded.is_none() {
            put_aside(&self.queue, table, key, sealed, "its key is malformed");
        }
        Some((decoded?, value))
    }

    /// Engine and overlay merged in key order; the overlay wins.
    fn scan(&self, table: &'static str, range: (Bound<&[u8]>, Bound<&[u8]>), visit: &mut Visit<'_>) -> Result<()> {
        let mut changes = self.overlay.range(table, range).into_iter().peekable();
        let mut flow = ControlFlow::Continue(());
        self.snapshot.scan(table, range, &mut |key, value| {
            while let Some((changed, new)) = changes.next_if(|(changed, _)| changed.as_slice() < key) {
                if let Some(new) = new {
                    flow = visit(&changed, &new);
                    flow?;
                }
            }
            flow = match changes.next_if(|(changed, _)| changed.as_slice() == key) {
                Some((_, None)) => ControlFlow::Continue(()),
                Some((_, Some(new))) => visit(key, &new),
                None => visit(key, value),
            };
            flow
        })?;
        for (key, value) in changes {
            if flow.is_break() {
                break;
            }
            if let Some(value) = value {
                flow = visit(&key, &value);
            }
        }
        Ok(())
    }
}

/// The first key after all keys with this prefix.
fn end_of(prefix: &[u8]) -> Option<Vec<u8>> {
    let kept = prefix.iter().rposition(|&b| b != u8::MAX)?;
    let mut end = prefix[..=kept].to_vec();
    end[kept] += 1;
    Some(end)
}

/// Reads that see the update's own writes, and writes that take effect together at its end.
pub struct Update<'a> {
    db: &'a Db,
    batch: Batch,
    /// Where in the batch a place was last written.
    written: BTreeMap<(&'static str, Vec<u8>), usize>,
}

impl Update<'_> {
    pub fn get<K: Key + ?Sized, V: Value>(&self, table: &Table<K, V>, key: &K) -> Result<Option<V>> {
        match self.written.get(&(table.name, key.encode().into_owned())) {
            Some(&at) => {
                let op = &self.batch.ops[at];
                let value = op.value.as_ref().map(|sealed| decode(&op.key, sealed));
                value.transpose().map_err(|reason| Error::Decode { table: table.name, reason })
            }
            None => self.db.get(table, key),
        }
    }

    /// Records with a prefix as they were before this update.
    pub fn prefix_before<K: Key + ?Sized, V: Value>(&self, table: &Table<K, V>, prefix: &[u8]) -> Result<Vec<(K::Owned, V)>> {
        self.db.read()?.prefix(table, prefix)
    }

    pub fn put<K: Key + ?Sized, V: Value>(&mut self, table: &Table<K, V>, key: &K, value: &V) {
        self.batch.put(table, key, value);
        self.note();
    }

    pub fn delete<K: Key + ?Sized, V>(&mut self, table: &Table<K, V>, key: &K) {
        self.batch.delete(table, key);
        self.note();
    }

    fn note(&mut self) {
        let at = self.batch.ops.len() - 1;
        let op = &self.batch.ops[at];
        self.written.insert((op.table, op.key.clone()), at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix() {
        assert_eq!(end_of(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(end_of(b"a\xff\xff"), Some(b"b".to_vec()));
        assert_eq!(end_of(b"\xff"), None);
        assert_eq!(end_of(b""), None);
    }
}
