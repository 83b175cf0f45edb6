//! What every engine must do, and what [`kv::Db`] adds over any engine.
#![allow(clippy::unwrap_used)]
use std::ops::{Bound, ControlFlow};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use kv::{Batch, Db, Engine, Error, Json, Op, Options, RedbEngine, Snapshot, Table};

const WORDS: Table<str, String> = Table::new("words");
const NUMBERS: Table<u64, u64> = Table::new("numbers");

fn put(table: &'static str, key: &str, value: &str) -> Op {
    Op { table, key: key.into(), value: Some(value.into()) }
}

fn keys(snapshot: &dyn Snapshot, range: (Bound<&[u8]>, Bound<&[u8]>)) -> Vec<String> {
    let mut found = Vec::new();
    snapshot
        .scan("t", range, &mut |key, _| {
            found.push(String::from_utf8(key.to_vec()).unwrap());
            ControlFlow::Continue(())
        })
        .unwrap();
    found
}

/// The engine suite. `open` opens the same database each time.
fn engine_suite<E: Engine>(open: impl Fn() -> E) {
    let engine = open();
    let empty = engine.snapshot().unwrap();
    assert_eq!(empty.get("t", b"a").unwrap(), None, "a table that was never written to is empty");
    assert!(keys(&*empty, (Bound::Unbounded, Bound::Unbounded)).is_empty());

    let many: Vec<Op> = (0..1000).map(|n| put("t", &format!("k{n:04}"), "v")).chain([put("u", "x", "1")]).collect();
    engine.commit(&mut many.into_iter()).unwrap();
    let before = engine.snapshot().unwrap();
    engine.commit(&mut [Op { table: "t", key: b"k0500".into(), value: None }, put("t", "k0501", "new")].into_iter()).unwrap();

    assert_eq!(before.get("t", b"k0500").unwrap().as_deref(), Some(&b"v"[..]), "a snapshot does not change");
    assert!(keys(&*empty, (Bound::Unbounded, Bound::Unbounded)).is_empty());
    assert_eq!(keys(&*before, (Bound::Unbounded, Bound::Unbounded)).len(), 1000);

    drop((empty, before));
    drop(engine);
    let engine = open();
    let now = engine.snapshot().unwrap();
    assert_eq!(now.get("t", b"k0500").unwrap(), None);
    assert_eq!(now.get("t", b"k0501").unwrap().as_deref(), Some(&b"new"[..]));
    assert_eq!(now.get("u", b"x").unwrap().as_deref(), Some(&b"1"[..]));
    let part = keys(&*now, (Bound::Included(b"k0498"), Bound::Excluded(b"k0503")));
    assert_eq!(part, ["k0498", "k0499", "k0501", "k0502"]);
    assert_eq!(keys(&*now, (Bound::Excluded(b"k0997"), Bound::Unbounded)), ["k0998", "k0999"]);

    let mut seen = 0;
    now.scan("t", (Bound::Unbounded, Bound::Unbounded), &mut |_, _| {
        seen += 1;
        if seen == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .unwrap();
    assert_eq!(seen, 3, "a scan ends when told");

    engine.reopen().unwrap();
    assert_eq!(engine.snapshot().unwrap().get("u", b"x").unwrap().as_deref(), Some(&b"1"[..]));
    engine.commit(&mut [put("u", "x", "2")].into_iter()).unwrap();
    assert_eq!(engine.snapshot().unwrap().get("u", b"x").unwrap().as_deref(), Some(&b"2"[..]));
}

#[test]
fn redb_is_an_engine() {
    let dir = tempfile::tempdir().unwrap();
    engine_suite(|| RedbEngine::open(&dir.path().join("db"), 1 << 20).unwrap());
}

#[cfg(feature = "sled")]
#[test]
fn sled_is_an_engine() {
    let dir = tempfile::tempdir().unwrap();
    engine_suite(|| kv::SledEngine::open(&dir.path().join("db"), 1 << 20).unwrap());
    let options = Options { engine: kv::EngineKind::Sled, ..patient() };
    let path = dir.path().join("other");
    Db::open(&path, options.clone()).unwrap().submit(word("a", "1"));
    assert_eq!(words(&Db::open(&path, options).unwrap()), pairs([("a", "1")]));
}

#[cfg(not(feature = "sled"))]
#[test]
fn sled_is_not_in_this_build() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { engine: kv::EngineKind::Sled, ..patient() };
    let error = Db::open(&dir.path().join("db"), options).err().unwrap();
    assert!(fault::chain(&error).contains("built without the engine sled"), "{error}");
}

/// An engine whose commits fail while told to, or wait, and that counts them.
struct Faulty {
    inner: RedbEngine,
    /// Commits to fail; `reopen` works throughout.
    failures: AtomicUsize,
    commits: AtomicUsize,
    reopens: AtomicUsize,
    /// Who holds it keeps commits waiting.
    gate: Mutex<()>,
}

impl Faulty {
    fn open(dir: &tempfile::TempDir, failures: usize) -> Arc<Self> {
        let inner = RedbEngine::open(&dir.path().join("db"), 1 << 20).unwrap();
        Arc::new(Self { inner, failures: failures.into(), commits: 0.into(), reopens: 0.into(), gate: Mutex::default() })
    }
}

impl Engine for Faulty {
    fn snapshot(&self) -> kv::Result<Box<dyn Snapshot>> {
        self.inner.snapshot()
    }
    fn commit(&self, ops: &mut dyn Iterator<Item = Op>) -> kv::Result<()> {
        let _passed = self.gate.lock().unwrap();
        self.commits.fetch_add(1, Ordering::SeqCst);
        let fail = self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
        if fail { Err(Error::Io(std::io::ErrorKind::StorageFull.into())) } else { self.inner.commit(ops) }
    }
    fn reopen(&self) -> kv::Result<()> {
        self.reopens.fetch_add(1, Ordering::SeqCst);
        self.inner.reopen()
    }
}

/// Never commits by itself, so that tests see the overlay.
fn patient() -> Options {
    Options { commit_delay: Duration::from_secs(3600), ..Options::default() }
}

fn word(key: &str, value: &str) -> Batch {
    let mut batch = Batch::new();
    batch.put(&WORDS, key, &value.to_owned());
    batch
}

fn words(db: &Db) -> Vec<(String, String)> {
    db.read().unwrap().all(&WORDS).unwrap()
}

fn pairs<const N: usize>(list: [(&str, &str); N]) -> Vec<(String, String)> {
    list.map(|(k, v)| (k.to_owned(), v.to_owned())).into()
}

#[test]
fn reads_see_what_is_submitted_and_not_committed() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Faulty::open(&dir, 0);
    let db = Db::over(engine.clone(), &patient()).unwrap();
    for key in ["a", "c", "e"] {
        db.submit(word(key, "old"));
    }
    db.flush_blocking().unwrap();
    let before = db.read().unwrap();

    db.submit(word("b", "new"));
    db.submit(word("c", "new"));
    let mut batch = Batch::new();
    batch.delete(&WORDS, "e").put(&WORDS, "f", &"new".into());
    db.submit(batch);
    let now = pairs([("a", "old"), ("b", "new"), ("c", "new"), ("f", "new")]);
    assert_eq!(words(&db), now);
    assert_eq!(db.get(&WORDS, "e").unwrap(), None);
    assert_eq!(db.get(&WORDS, "c").unwrap().as_deref(), Some("new"));
    assert_eq!(before.all(&WORDS).unwrap(), pairs([("a", "old"), ("c", "old"), ("e", "old")]));
    assert_eq!(engine.commits.load(Ordering::SeqCst), 1, "nothing waited for the disk");

    let middle = db.read().unwrap();
    db.submit(word("b", "newer"));
    assert_eq!(middle.get(&WORDS, "b").unwrap().as_deref(), Some("new"), "a reader's view stays");
    assert_eq!(middle.prefix(&WORDS, b"b").unwrap(), pairs([("b", "new")]));
    db.flush_blocking().unwrap();
    assert_eq!(engine.commits.load(Ordering::SeqCst), 2, "one commit for all");
    assert_eq!(middle.all(&WORDS).unwrap(), now, "also through a commit");
    assert_eq!(db.read().unwrap().range(&WORDS, "b", "f").unwrap(), pairs([("b", "newer"), ("c", "new")]));
}

#[test]
fn many_frozen_views_stay_right() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::over(Faulty::open(&dir, 0), &patient()).unwrap();
    let mut views = Vec::new();
    for n in 0..50u64 {
        let mut batch = Batch::new();
        batch.put(&NUMBERS, &n, &n).put(&NUMBERS, &1000, &n);
        db.submit(batch);
        views.push(db.read().unwrap());
    }
    for (n, view) in views.iter().enumerate() {
        assert_eq!(view.all(&NUMBERS).unwrap().len(), n + 2);
        assert_eq!(view.get(&NUMBERS, &1000).unwrap(), Some(n as u64));
    }
}

#[test]
fn updates_are_serial_and_whole() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::over(Faulty::open(&dir, 0), &Options { commit_delay: Duration::from_millis(1), ..Options::default() }).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..100 {
                    db.update(|tx| {
                        let n = tx.get(&NUMBERS, &0)?.unwrap_or(0);
                        tx.put(&NUMBERS, &0, &(n + 1));
                        assert_eq!(tx.get(&NUMBERS, &0)?, Some(n + 1));
                        Ok::<_, Error>(())
                    })
                    .unwrap();
                }
            });
        }
    });
    assert_eq!(db.get(&NUMBERS, &0).unwrap(), Some(800));
    let failed: Result<(), Error> = db.update(|tx| {
        tx.put(&NUMBERS, &0, &0);
        Err(Error::Closed)
    });
    assert!(failed.is_err());
    assert_eq!(db.get(&NUMBERS, &0).unwrap(), Some(800), "a failed update changes nothing");
}

#[test]
fn a_full_disk_is_survived() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Faulty::open(&dir, 2);
    let db = Db::over(engine.clone(), &patient()).unwrap();
    db.submit(word("a", "1"));
    let error = db.flush_blocking().unwrap_err();
    assert!(matches!(error, Error::Commit(_)), "{error}");
    assert_eq!(engine.reopens.load(Ordering::SeqCst), 1);
    assert_eq!(db.get(&WORDS, "a").unwrap().as_deref(), Some("1"), "still visible");
    db.submit(word("b", "2"));
    db.flush_blocking().unwrap();
    drop(db);
    let stored = engine.snapshot().unwrap();
    assert!(stored.get("words", b"a").unwrap().is_some() && stored.get("words", b"b").unwrap().is_some());
}

#[tokio::test]
async fn concurrent_flushes_share_commits() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Faulty::open(&dir, 0);
    let db = Db::over(engine.clone(), &patient()).unwrap();
    let flushes: Vec<_> = {
        // The first commit does not end before all have asked.
        let _gate = engine.gate.lock().unwrap();
        let ask = |n: u64| {
            let mut batch = Batch::new();
            batch.put(&NUMBERS, &n, &n);
            db.submit(batch);
            let db = db.clone();
            let mut flush = Box::pin(async move { db.flush().await });
            assert!(flush.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            flush
        };
        (0..64).map(ask).collect()
    };
    for flush in flushes {
        flush.await.unwrap();
    }
    assert!(engine.commits.load(Ordering::SeqCst) <= 2, "{} commits", engine.commits.load(Ordering::SeqCst));
    let stored = engine.snapshot().unwrap().get("numbers", &63u64.to_be_bytes()).unwrap().unwrap();
    assert!(stored.starts_with(&63u64.to_be_bytes()));
}

#[test]
fn closing_commits_what_is_left_and_a_second_opener_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let db = Db::open(&path, patient()).unwrap();
    db.submit(word("a", "1"));
    let refused = Db::open(&path, patient()).err().expect("one process, one opener");
    assert!(matches!(refused, kv::OpenError::InUse { .. }), "{refused}");
    drop(db);
    assert_eq!(words(&Db::open(&path, patient()).unwrap()), pairs([("a", "1")]));
}

fn set_aside_files(dir: &tempfile::TempDir) -> usize {
    std::fs::read_dir(dir).unwrap().filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().contains("damaged-")).count()
}

#[test]
fn a_damaged_or_foreign_file_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let other_schema = Options { schema: 7, ..patient() };
    for (n, damage) in [b"not a database".to_vec(), vec![0; 8192], vec![0xff; 1 << 16]].into_iter().enumerate() {
        std::fs::write(&path, &damage).unwrap();
        let db = Db::open(&path, patient()).unwrap();
        assert!(words(&db).is_empty());
        db.submit(word("a", "1"));
        drop(db);
        assert_eq!(set_aside_files(&dir), n + 1);
    }
    assert!(words(&Db::open(&path, other_schema.clone()).unwrap()).is_empty());
    assert_eq!(set_aside_files(&dir), 4);
    drop(Db::open(&path, other_schema).unwrap());
    assert_eq!(set_aside_files(&dir), 4, "the new one is fine");
}

#[test]
fn a_file_cut_short_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let db = Db::open(&path, patient()).unwrap();
    for n in 0..2000 {
        db.submit(word(&format!("{n}"), &"x".repeat(100)));
    }
    drop(db);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    assert!(words(&Db::open(&path, patient()).unwrap()).is_empty());
    assert_eq!(set_aside_files(&dir), 1);
}

#[test]
fn json_values() {
    const RECORDS: Table<str, Json<Vec<u32>>> = Table::new("records");
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(&dir.path().join("db"), patient()).unwrap();
    let mut batch = Batch::new();
    batch.put(&RECORDS, "a", &Json(vec![1, 2])).put(&Table::<str, String>::new("records"), "b", &"{".into());
    db.submit(batch);
    assert_eq!(db.get(&RECORDS, "a").unwrap(), Some(Json(vec![1, 2])));
    assert_eq!(db.get(&RECORDS, "b").unwrap(), None, "not JSON");
}

#[test]
fn a_damaged_record_is_put_aside_and_not_returned() {
    let dir = tempfile::tempdir().unwrap();
    let engine: Arc<dyn Engine> = Arc::new(RedbEngine::open(&dir.path().join("db"), 1 << 20).unwrap());
    let db = Db::over(engine.clone(), &patient()).unwrap();
    for (key, value) in [("a", "first"), ("b", "second"), ("c", "third")] {
        db.submit(word(key, value));
    }
    db.flush_blocking().unwrap();
    // One bit, as a failing disk does.
    let table = WORDS.name();
    let mut bytes = engine.snapshot().unwrap().get(table, b"b").unwrap().unwrap();
    bytes[0] ^= 0x10;
    engine.commit(&mut [Op { table, key: b"b".to_vec(), value: Some(bytes.clone()) }].into_iter()).unwrap();
    assert_eq!(words(&db), pairs([("a", "first"), ("c", "third")]), "in a scan");
    engine.commit(&mut [Op { table, key: b"c".to_vec(), value: Some(bytes) }].into_iter()).unwrap();
    assert_eq!(db.get(&WORDS, "c").unwrap(), None, "by itself; a value under another's key is no better");
    db.flush_blocking().unwrap();
    assert!(engine.snapshot().unwrap().get(table, b"b").unwrap().is_none(), "nobody meets it again");
    assert_eq!(db.read().unwrap().all(&kv::QUARANTINE).unwrap().len(), 2);
    db.submit(word("b", "again"));
    assert_eq!(words(&db), pairs([("a", "first"), ("b", "again")]));
}
