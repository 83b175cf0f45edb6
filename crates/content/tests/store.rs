#![allow(clippy::unwrap_used)]
use std::path::Path;
use std::time::Duration;

use content::{Error, Store};
use kv::Db;
use oci::Digest;

struct Home {
    dir: tempfile::TempDir,
    db: std::cell::RefCell<Option<Db>>,
}

impl Home {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), db: None.into() }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn open(&self) -> Store {
        self.open_in_boot("this boot")
    }

    fn open_in_boot(&self, boot: &str) -> Store {
        // The one before goes first: a database has one opener.
        self.db.take();
        let db = Db::open(&self.path().join("db"), kv::Options::default()).unwrap();
        self.db.replace(Some(db.clone()));
        Store::open_as_of_boot(self.path(), db, boot).unwrap()
    }

    fn submit(&self, batch: &kv::Batch) {
        self.db.borrow().as_ref().unwrap().submit(batch.clone());
    }

    fn files(&self, dir: &str) -> usize {
        std::fs::read_dir(self.path().join(dir)).unwrap().count()
    }
}

const DATA: &[u8] = b"some bytes of a blob";

fn expected() -> Option<(Digest, u64)> {
    Some((Digest::of(DATA), DATA.len() as u64))
}

#[test]
fn stores_what_it_verified() {
    let home = Home::new();
    let store = home.open();
    let digest = Digest::of(DATA);
    assert_eq!(store.has(&digest).unwrap(), None);
    let mut ingest = store.ingest("a", expected()).unwrap();
    ingest.write(&DATA[..5]).unwrap();
    ingest.write(&DATA[5..]).unwrap();
    let hold = ingest.commit().unwrap();
    assert_eq!((hold.digest(), hold.size()), (&digest, DATA.len() as u64));
    assert_eq!(store.read(&digest).unwrap(), DATA);
    let reader = store.open_blob(&digest).unwrap();
    let mut middle = [0; 5];
    assert_eq!(reader.read_at(&mut middle, 5).unwrap(), 5);
    assert_eq!(middle, DATA[5..10]);
    assert_eq!(reader.read_at(&mut middle, DATA.len() as u64 - 2).unwrap(), 2);
    drop(store);
    drop((hold, reader));
    let store = home.open();
    assert_eq!(store.has(&digest).unwrap(), Some(DATA.len() as u64), "also after a restart");
    assert_eq!(home.files("ingest"), 0);
}

#[test]
fn a_mismatch_stores_nothing() {
    let home = Home::new();
    let store = home.open();
    let mut wrong = DATA.to_vec();
    wrong[3] ^= 1;
    let mut ingest = store.ingest("a", expected()).unwrap();
    ingest.write(&wrong).unwrap();
    let error = ingest.commit().unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    assert_eq!((home.files("ingest"), home.files("blobs/sha256")), (0, 0));

    let mut ingest = store.ingest("a", expected()).unwrap();
    assert_eq!(ingest.offset(), 0);
    ingest.write(DATA).unwrap();
    let error = ingest.write(b"more").unwrap_err();
    assert!(matches!(error, Error::Size { expected: 20, actual: 24, .. }), "{error}");
    drop(ingest);
    let sha512 = format!("sha512:{}", "0".repeat(128)).parse().unwrap();
    assert!(matches!(store.ingest("b", Some((sha512, 1))), Err(Error::Algorithm { .. })));
}

#[test]
fn partial_blobs_are_resumed() {
    let home = Home::new();
    let store = home.open();
    let mut ingest = store.ingest("a", expected()).unwrap();
    ingest.write(&DATA[..7]).unwrap();
    assert!(matches!(store.ingest("a", expected()), Err(Error::Busy { .. })), "one writer at a time");
    let error = ingest.commit().unwrap_err();
    assert!(matches!(error, Error::Size { actual: 7, .. }), "{error}");
    drop(store);

    let store = home.open();
    let mut ingest = store.ingest("a", expected()).unwrap();
    assert_eq!(ingest.offset(), 7, "also after a restart");
    ingest.write(&DATA[7..]).unwrap();
    ingest.commit().unwrap();
    assert_eq!(store.read(&Digest::of(DATA)).unwrap(), DATA);

    let mut ingest = store.ingest("b", None).unwrap();
    ingest.write(b"will be").unwrap();
    ingest.truncate().unwrap();
    ingest.write(b"x").unwrap();
    assert_eq!(ingest.commit().unwrap().digest(), &Digest::of(b"x"));
    store.ingest("c", None).unwrap().abort();
    assert_eq!(home.files("ingest"), 0);
}

#[tokio::test]
async fn streams() {
    let home = Home::new();
    let store = home.open();
    let data = bytes::Bytes::from(vec![7u8; 3 << 20]);
    let digest = Digest::of(&data);
    let mut stream = store.ingest_stream("s", Some((digest.clone(), data.len() as u64))).await.unwrap();
    for start in (0..data.len()).step_by(64 << 10) {
        stream.write(data.slice(start..(start + (64 << 10)).min(data.len()))).await.unwrap();
    }
    assert_eq!(stream.offset(), data.len() as u64);
    assert_eq!(stream.commit().await.unwrap().digest(), &digest);
    assert_eq!(store.read(&digest).unwrap(), data);

    let mut stream = store.ingest_stream("t", expected()).await.unwrap();
    let error = loop {
        if let Err(error) = stream.write(data.slice(..100)).await {
            break error;
        }
    };
    assert!(matches!(error, Error::Size { .. }), "the reason comes out: {error}");
    let busy = store.ingest("u", None).unwrap();
    assert!(matches!(store.ingest_stream("u", None).await, Err(Error::Busy { .. })));
    drop(busy);
}

#[test]
fn holds_protect_from_sweeps() {
    let home = Home::new();
    let store = home.open();
    let held = store.put(b"held").unwrap();
    let wanted = store.put(b"wanted").unwrap().digest().clone();
    let loose = store.put(b"loose").unwrap().digest().clone();
    store.set_label(&loose, "k", "v");
    assert!(matches!(store.remove(held.digest()), Err(Error::InUse { .. })));
    assert_eq!(store.sweep(Duration::from_secs(60)).unwrap(), 0, "too young");
    let mut batch = kv::Batch::new();
    store.pin(&mut batch, &wanted, "one");
    store.pin(&mut batch, &wanted, "two");
    home.submit(&batch);
    assert_eq!(store.sweep(Duration::ZERO).unwrap(), 5);
    let left: Vec<_> = store.list().unwrap().into_iter().map(|b| b.digest).collect();
    assert_eq!(left.len(), 2);
    assert!(left.contains(&wanted) && left.contains(held.digest()));
    assert!(store.labels(&loose).unwrap().is_empty(), "labels go with the blob");
    let again = held.clone();
    drop(held);
    assert_eq!(store.sweep(Duration::ZERO).unwrap(), 0);
    let mut batch = kv::Batch::new();
    store.unpin(&mut batch, &wanted, "one");
    home.submit(&batch);
    assert_eq!(store.sweep(Duration::ZERO).unwrap(), 0, "still pinned once");
    assert!(matches!(store.remove(again.digest()), Err(Error::InUse { .. })), "a clone holds too");
    let digest = again.digest().clone();
    drop(again);
    store.remove(&digest).unwrap();
    assert!(matches!(store.open_blob(&digest), Err(Error::NotFound { .. })));
    assert!(matches!(store.remove(&digest), Err(Error::NotFound { .. })));
}

#[test]
fn the_same_blob_twice() {
    let home = Home::new();
    let store = home.open();
    let mut one = store.ingest("one", expected()).unwrap();
    let mut two = store.ingest("two", expected()).unwrap();
    one.write(DATA).unwrap();
    two.write(DATA).unwrap();
    one.commit().unwrap();
    two.commit().unwrap();
    store.put(DATA).unwrap();
    assert_eq!((home.files("ingest"), home.files("blobs/sha256")), (0, 1));
}

#[test]
fn labels() {
    let store = Home::new();
    let store = store.open();
    let digest = Digest::of(b"x");
    store.set_label(&digest, "containerd.io/uncompressed", "a");
    store.set_label(&digest, "containerd.io/uncompressed", "b");
    store.set_label(&digest, "source", "c");
    assert_eq!(store.label(&digest, "containerd.io/uncompressed").unwrap().as_deref(), Some("b"));
    let all = [("containerd.io/uncompressed", "b"), ("source", "c")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(store.labels(&digest).unwrap(), all);
    assert!(store.labels(&Digest::of(b"y")).unwrap().is_empty());
}

#[test]
fn after_a_power_cut_only_synced_blobs_are_believed() {
    let home = Home::new();
    let store = home.open_in_boot("one");
    let synced = store.put(b"synced").unwrap().digest().clone();
    store.sync().unwrap();
    let torn = store.put(b"torn").unwrap().digest().clone();
    drop(store);
    let store = home.open_in_boot("one");
    assert!(store.has(&torn).unwrap().is_some(), "a crash of the process loses nothing");
    drop(store);
    std::fs::write(home.path().join("blobs/sha256").join(torn.hex()), "t").unwrap();
    let store = home.open_in_boot("two");
    assert!(store.has(&synced).unwrap().is_some());
    assert_eq!(store.has(&torn).unwrap(), None);
    store.put(b"torn").unwrap();
    assert_eq!(store.read(&torn).unwrap(), b"torn", "the torn file is replaced");
}

#[test]
fn blobs_without_records_are_recovered_if_they_match() {
    let home = Home::new();
    let store = home.open();
    let good = store.put(b"good").unwrap().digest().clone();
    drop(store);
    std::fs::remove_file(home.path().join("db")).unwrap();
    let bad = home.path().join("blobs/sha256").join(Digest::of(b"bad").hex());
    std::fs::write(&bad, "torn").unwrap();
    let store = home.open();
    assert_eq!(store.has(&good).unwrap(), None);
    assert_eq!(store.recover().unwrap(), 1);
    assert_eq!(store.read(&good).unwrap(), b"good");
    assert!(!bad.exists());
}

#[test]
fn a_damaged_blob_is_put_aside_and_never_served() {
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let db = kv::Db::open(&dir.path().join("db"), kv::Options::default()).unwrap();
        Store::open_as_of_boot(&dir.path().join("content"), db, "boot").unwrap()
    };
    let store = open();
    let kept = store.put(b"a blob").unwrap().digest().clone();
    let (flipped, cut) = (store.put(b"another blob").unwrap().digest().clone(), store.put(b"a third one").unwrap().digest().clone());
    let used = store.used().unwrap();
    std::fs::write(store.path(&flipped), b"anothex blob").unwrap();
    std::fs::write(store.path(&cut), b"a thi").unwrap();
    drop(store);
    let store = open();
    assert_eq!(store.read(&kept).unwrap(), b"a blob");
    for damaged in [&flipped, &cut] {
        assert!(matches!(store.open_blob(damaged), Err(content::Error::NotFound { .. })));
        assert!(store.has(damaged).unwrap().is_none(), "it is as if it had never been there");
    }
    assert_eq!(std::fs::read_dir(dir.path().join("content/quarantine")).unwrap().count(), 2);
    assert_eq!(store.used().unwrap(), used / 3);
    store.put(b"another blob").unwrap();
    assert_eq!(store.read(&flipped).unwrap(), b"another blob", "brought again");
}

#[test]
fn a_scratch_file_has_no_name_and_counts_while_it_is_there() {
    let home = Home::new();
    let store = home.open();
    let scratch = store.scratch().unwrap();
    assert_eq!((scratch.append(b"one").unwrap(), scratch.append(b"three").unwrap()), (0, 3));
    assert_eq!((scratch.read(0, 3).unwrap(), scratch.read(3, 5).unwrap()), (b"one".to_vec(), b"three".to_vec()));
    assert!(scratch.read(4, 5).is_err(), "there is not so much");
    assert_eq!(store.in_flight().unwrap(), 8);
    assert_eq!(home.files("ingest"), 0, "nothing to clean up, whatever ends the process");
    drop(scratch);
    assert_eq!(store.in_flight().unwrap(), 0);
}
