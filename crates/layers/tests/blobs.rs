//! Layers as blobs. The digests here are those that BuildKit's own differ (overlay, containerd's change writer, Go's archive/tar) gives
//! for the same files.
#![allow(clippy::unwrap_used)]
mod common;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use common::{Archive, Home, image, listing, pull};
use layers::{Compression, CompressionKind, Layer, LayerBlob, Layers, Properties};
use oci::{Digest, Hasher};
use progress::{Reporter, Sink, Update};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use task::Cancel;

/// A layer that a step leaves which works on the mounted root. All times are set to `time` at its end.
fn run(layers: &Layers, parent: Option<&Layer>, time: i64, work: impl FnOnce(&Path)) -> Layer {
    let draft = layers.draft(parent, Properties::new("run")).unwrap();
    let target = tempfile::tempdir().unwrap();
    let mounted = draft.mount_spec().unwrap().mount_at(target.path()).unwrap();
    work(target.path());
    mounted.unmount().unwrap();
    set_times(&draft.own_files(), time);
    draft.commit().unwrap()
}

fn set_times(path: &Path, seconds: i64) {
    let metadata = path.symlink_metadata().unwrap();
    if metadata.is_dir() {
        std::fs::read_dir(path).unwrap().for_each(|entry| set_times(&entry.unwrap().path(), seconds));
    }
    let time = Timespec { tv_sec: seconds, tv_nsec: 123 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn chown(path: &Path, uid: u32, gid: u32) {
    rustix::fs::chown(path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).unwrap();
}

async fn blobs(layer: &Layer, kind: CompressionKind, force: bool) -> Vec<LayerBlob> {
    let compression = Compression { kind, level: None, force };
    layer.blobs(compression, &Cancel::new(), &Reporter::silent()).await.unwrap()
}

async fn diff_id(layer: &Layer) -> String {
    blobs(layer, CompressionKind::Uncompressed, false).await.last().unwrap().diff_id.to_string()
}

fn base(layers: &Layers) -> Layer {
    run(layers, None, 1_500_000_000, |root| {
        for dir in ["etc", "usr/lib/x/y", "a/b/c", "tmp"] {
            std::fs::create_dir_all(root.join(dir)).unwrap();
        }
        for (path, text) in
            [("etc/passwd", "root"), ("etc/b", "b"), ("usr/lib/x/old", "o"), ("a/b/w", "w"), ("a/b/c/q", "q"), ("a/same", "s")]
        {
            std::fs::write(root.join(path), text).unwrap();
        }
        std::fs::hard_link(root.join("etc/b"), root.join("etc/hl")).unwrap();
        symlink("usr/lib", root.join("lib")).unwrap();
        std::fs::set_permissions(root.join("tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
        std::fs::set_permissions(root.join("etc/b"), PermissionsExt::from_mode(0o4755)).unwrap();
    })
}

fn changed(layers: &Layers, base: &Layer) -> Layer {
    run(layers, Some(base), 1_600_000_000, |root| {
        std::fs::write(root.join("etc/passwd"), "more").unwrap();
        std::fs::remove_file(root.join("etc/hl")).unwrap();
        std::fs::write(root.join("usr/lib/x/y/new"), "n").unwrap();
        // Hides what is below, and has some of the same.
        std::fs::remove_dir_all(root.join("a/b")).unwrap();
        std::fs::create_dir_all(root.join("a/b/k")).unwrap();
        std::fs::write(root.join("a/b/w"), "w2").unwrap();
        std::fs::create_dir(root.join("newdir")).unwrap();
        std::fs::write(root.join("newdir/1"), "1").unwrap();
        std::fs::hard_link(root.join("newdir/1"), root.join("aaa")).unwrap();
        let node = |name: &str, kind, device| rustix::fs::mknodat(CWD, root.join(name), kind, Mode::from_raw_mode(0o640), device).unwrap();
        node("fifo", FileType::Fifo, 0);
        node("char", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
        node("block", FileType::BlockDevice, rustix::fs::makedev(7, 300));
        node("socket", FileType::Socket, 0);
    })
}

fn awkward(layers: &Layers, below: &Layer) -> Layer {
    run(layers, Some(below), -5, |root| {
        let long = "d".repeat(90);
        let deep = root.join(format!("{long}/{long}/{long}"));
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(deep.join("file"), "x").unwrap();
        std::fs::write(root.join(&long).join("split"), "x").unwrap();
        std::fs::write(root.join("ünï cödé"), "u").unwrap();
        use std::os::unix::ffi::OsStrExt as _;
        std::fs::write(root.join(std::ffi::OsStr::from_bytes(b"bad\xffname")), "x").unwrap();
        std::fs::create_dir(root.join(std::ffi::OsStr::from_bytes(b"bad\xffdir"))).unwrap();
        symlink("y".repeat(150), root.join("longtarget")).unwrap();
        std::fs::write(root.join("e".repeat(101)), "z").unwrap();
        std::fs::create_dir(root.join("f".repeat(100))).unwrap();
        std::fs::create_dir(root.join("f".repeat(99))).unwrap();
        chown(&root.join("etc/passwd"), 3_000_000, 4_000_000_000);
        let capability: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        rustix::fs::setxattr(root.join("etc/passwd"), "security.capability", capability, XattrFlags::empty()).unwrap();
        rustix::fs::setxattr(root.join("etc/passwd"), "user.not-stored", b"1", XattrFlags::empty()).unwrap();
        std::fs::remove_dir_all(root.join("usr")).unwrap();
        std::fs::remove_dir_all(root.join("newdir")).unwrap();
        std::fs::write(root.join("newdir"), "now a file").unwrap();
        std::fs::remove_file(root.join("lib")).unwrap();
        std::fs::create_dir(root.join("lib")).unwrap();
        std::fs::write(root.join("lib/x"), "l").unwrap();
    })
}

#[tokio::test]
async fn diff_ids_are_upstream_s() {
    let home = Home::new();
    let layers = home.open();
    let one = base(&layers);
    let two = changed(&layers, &one);
    let three = awkward(&layers, &two);
    let nothing = run(&layers, Some(&three), 0, |_| {});
    for (layer, want) in [
        (&one, "sha256:ba2718aeaf421279d31f1c3aede777e5480ac0683b1771593dcfdbaf8da25276"),
        (&two, "sha256:a50bcaeb0c5e91f0fde2f7024aa150705dbc6ef171ea8cedc91b5421e640daf0"),
        (&three, "sha256:786879aae5982a779372aace96bb051fdbc5c3ad4d937f00798153384db1c458"),
        (&nothing, "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"),
    ] {
        assert_eq!(diff_id(layer).await, want);
    }
}

#[tokio::test]
async fn unpacking_a_blob_gives_the_files_back() {
    let home = Home::new();
    let layers = home.open();
    let one = base(&layers);
    let two = changed(&layers, &one);
    let three = awkward(&layers, &two);
    let made = blobs(&three, CompressionKind::Gzip, false).await;
    let mut archives = Vec::new();
    for blob in &made {
        let plain = blobs(&blob.layer, CompressionKind::Uncompressed, true).await.pop().unwrap();
        archives.push(layers.content().read(&plain.descriptor.digest).unwrap());
    }
    let other = Home::new();
    let elsewhere = other.open();
    let pulled = pull(&elsewhere, &archives).await;
    let files = |layer: &Layer| -> Vec<String> {
        let mut files = listing(&layer.view().unwrap());
        // Archives do not hold sockets.
        files.retain(|line| !line.starts_with("/socket"));
        files
    };
    assert_eq!(files(&pulled), files(&three));
    assert_eq!(
        pulled.chain().iter().map(|l| l.diff_id()).collect::<Vec<_>>(),
        three.chain().iter().map(|l| l.diff_id()).collect::<Vec<_>>()
    );
}

fn tool(command: &str, input: &Path) -> Vec<u8> {
    let output = Command::new(command).arg("-dc").stdin(std::fs::File::open(input).unwrap()).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{command} refuses it");
    output.stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_are_made_once_in_the_form_asked_for() {
    let home = Home::new();
    let layers = home.open();
    let layer = run(&layers, None, 0, |root| {
        let text: String = (0..700_000u64).map(|n| format!("line {}\n", n * 7919 % 100_003)).collect();
        std::fs::write(root.join("text"), text).unwrap();
    });
    let plain = blobs(&layer, CompressionKind::Uncompressed, true).await.pop().unwrap();
    assert_eq!(plain.descriptor.digest, plain.diff_id);
    let archive = layers.content().read(&plain.diff_id).unwrap();
    assert!(archive.len() > 7 << 20, "several blocks");

    let again = blobs(&layer, CompressionKind::Gzip, false).await.pop().unwrap();
    assert_eq!(again.descriptor, plain.descriptor, "what is there is good enough");
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let layer = layer.clone();
            task::spawn("test", async move { blobs(&layer, CompressionKind::Gzip, true).await.pop().unwrap() })
        })
        .collect();
    let mut gzipped = None;
    for task in tasks {
        gzipped = Some(task.join().await.unwrap().descriptor);
    }
    let gzipped = gzipped.unwrap();
    assert_eq!(gzipped.media_type, oci::media::OCI_LAYER_GZIP);
    assert!(gzipped.size < archive.len() as u64 / 2);
    assert_eq!(tool("gzip", &layers.content().path(&gzipped.digest)), archive);
    assert_eq!(layer.known_blobs().len(), 2, "made once");
    let zstd = blobs(&layer, CompressionKind::Zstd, true).await.pop().unwrap();
    assert_eq!(zstd::decode_all(&layers.content().read(&zstd.descriptor.digest).unwrap()[..]).unwrap(), archive);
    assert_eq!(layers.content().label(&gzipped.digest, layers::UNCOMPRESSED).unwrap().unwrap(), plain.diff_id.to_string());
}

#[tokio::test]
async fn lazy_layers_are_exported_by_name_or_converted() {
    let home = Home::new();
    let layers = home.open();
    let (list, source) = image(&[Archive::default().file("a", "1").end()]);
    let source = Arc::new(source);
    let layer = layers.from_image(list.clone(), source.clone()).unwrap().unwrap();
    let named = blobs(&layer, CompressionKind::Zstd, false).await.pop().unwrap();
    assert_eq!((named.descriptor, source.fetches.load(Ordering::SeqCst)), (list[0].descriptor.clone(), 0));
    let converted = blobs(&layer, CompressionKind::Zstd, true).await.pop().unwrap();
    assert_eq!(source.fetches.load(Ordering::SeqCst), 1);
    assert_eq!((converted.diff_id, converted.descriptor.media_type.as_str()), (list[0].diff_id.clone(), oci::media::OCI_LAYER_ZSTD));
    assert!(!layer.is_realized(), "no need to unpack");
    let hold = layer.fetch_blob(&list[0].descriptor.digest, &Cancel::new(), &Reporter::silent()).await.unwrap();
    assert_eq!(hold.size(), list[0].descriptor.size);
}

#[tokio::test]
async fn an_exported_layer_is_found_when_pulled() {
    let home = Home::new();
    let layers = home.open();
    let one = base(&layers);
    let two = changed(&layers, &one);
    let made = blobs(&two, CompressionKind::Gzip, false).await;
    let list: Vec<_> = made
        .iter()
        .map(|blob| layers::ImageLayer {
            descriptor: blob.descriptor.clone(),
            diff_id: blob.diff_id.clone(),
            created: None,
            properties: Properties::default(),
        })
        .collect();
    let found = layers.from_image(list, Arc::new(common::Source::default())).unwrap().unwrap();
    assert_eq!(found, two);
}

#[derive(Default)]
struct Record(Mutex<Vec<Update>>);

impl Sink for Record {
    fn emit(&self, update: Update) {
        self.0.lock().unwrap().push(update);
    }
}

#[tokio::test]
async fn pulls_are_shown_under_their_source() {
    let home = Home::new();
    let layers = home.open();
    let (list, mut source) = image(&[Archive::default().file("a", &"1".repeat(5000)).end()]);
    let (owner, asker) = (Arc::new(Record::default()), Arc::new(Record::default()));
    let vertex = Digest::of("source vertex");
    source.owner = Some(Reporter::new(owner.clone(), vertex.clone()));
    let layer = layers.from_image(list.clone(), Arc::new(source)).unwrap().unwrap();
    layer.realize(&Cancel::new(), &Reporter::new(asker.clone(), Digest::of("step"))).await.unwrap();
    assert!(asker.0.lock().unwrap().is_empty());
    let updates = owner.0.lock().unwrap().clone();
    assert_eq!(updates.first(), Some(&Update::Started { vertex: vertex.clone() }));
    assert_eq!(updates.last(), Some(&Update::Completed { vertex, cached: false, error: None }));
    let rows = |id: String| -> Vec<(i64, i64, bool)> {
        let row = |update: &Update| match update {
            Update::Status { id: own, current, total, done, .. } if *own == id => Some((*current, *total, *done)),
            _ => None,
        };
        updates.iter().filter_map(row).collect()
    };
    let blob = &list[0].descriptor;
    let size = blob.size as i64;
    assert_eq!(rows(blob.digest.to_string()).last(), Some(&(size, size, true)));
    assert_eq!(rows(format!("extracting {}", blob.digest)).last(), Some(&(0, 0, true)));
}

#[tokio::test]
async fn deep_stacks_are_flattened() {
    let home = Home::new();
    let layers = home.open();
    let mut top: Option<Layer> = None;
    for n in 0..230 {
        let mut draft = layers.draft(top.as_ref(), Properties::default()).unwrap();
        let mut editor = draft.editor().unwrap();
        editor.mkdir_all(format!("/d{}", n % 7), 0o711).unwrap();
        editor.create_file(format!("/d{}/{n}", n % 7), 0o644).unwrap();
        if n > 0 {
            editor.remove(format!("/d{}/{}", (n - 1) % 7, n - 1)).unwrap();
        }
        drop(editor);
        top = Some(draft.commit().unwrap());
    }
    let top = top.unwrap();
    assert!(top.stack().unwrap().len() < 110);
    assert_eq!(top.chain().len(), 230);
    let files = listing(&top.view().unwrap());
    assert_eq!(files.len(), 8, "{files:?}");
    let id = diff_id(&top).await;
    let mut hasher = Hasher::new();
    hasher.update(layers.content().read(&id.parse().unwrap()).unwrap());
    assert_eq!(hasher.finish().to_string(), id);
    let target = tempfile::tempdir().unwrap();
    let mounted = top.mount_spec().unwrap().mount_at(target.path()).unwrap();
    assert!(target.path().join("d5/229").exists());
    mounted.unmount().unwrap();
}

/// Bytes that do not get smaller.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(|_| next()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_can_be_read_while_it_grows() {
    let home = Home::new();
    let layers = home.open();
    let large = run(&layers, None, 1, |root| std::fs::write(root.join("noise"), noise(12 << 20)).unwrap());
    for kind in [CompressionKind::Gzip, CompressionKind::Zstd, CompressionKind::Estargz] {
        let readers = Arc::new(Mutex::new(Vec::new()));
        let started = readers.clone();
        let read = move |told, mut growing: content::Growing| {
            assert_eq!(told, kind);
            let reader = task::spawn("reader", async move {
                let (mut all, mut early) = (Vec::new(), None);
                loop {
                    let chunk = growing.read(all.len() as u64).await.unwrap();
                    if chunk.is_empty() {
                        return (all, early.unwrap(), growing.whole().await.unwrap().digest().clone());
                    }
                    all.extend_from_slice(&chunk);
                    early.get_or_insert(all.len());
                }
            });
            started.lock().unwrap().push(reader);
        };
        let compression = Compression { kind, level: None, force: true };
        let made = large.blobs_as_they_grow(compression, Some(Arc::new(read)), &Cancel::new(), &Reporter::silent()).await.unwrap();
        let reader = readers.lock().unwrap().pop().unwrap();
        let (bytes, early, digest) = reader.join().await.unwrap();
        assert_eq!((&digest, Digest::of(&bytes)), (&made[0].descriptor.digest, digest.clone()), "{kind:?}");
        assert!(early < bytes.len(), "{kind:?}: something could be read before the end");
        assert!(readers.lock().unwrap().is_empty(), "{kind:?}: only what leaves is announced");
    }
    // What there is is not made again.
    let never = Arc::new(|_, _| panic!("nothing is made"));
    let compression = Compression { kind: CompressionKind::Zstd, level: None, force: true };
    large.blobs_as_they_grow(compression, Some(never), &Cancel::new(), &Reporter::silent()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_whose_making_is_cancelled_leaves_nothing() {
    let home = Home::new();
    let layers = home.open();
    let large = run(&layers, None, 1, |root| std::fs::write(root.join("noise"), noise(12 << 20)).unwrap());
    let cancel = Cancel::new();
    let (stop, (sender, told)) = (cancel.clone(), tokio::sync::oneshot::channel());
    let sender = Mutex::new(Some(sender));
    let begun = move |_, growing: content::Growing| {
        sender.lock().unwrap().take().unwrap().send(growing).ok().unwrap();
        stop.cancel("enough");
    };
    let compression = Compression { kind: CompressionKind::Zstd, level: None, force: true };
    let outcome = large.blobs_as_they_grow(compression, Some(Arc::new(begun)), &cancel, &Reporter::silent()).await;
    assert_eq!(outcome.unwrap_err().kind(), fault::Kind::Canceled);
    let mut growing = told.await.unwrap();
    assert_eq!(growing.whole().await.unwrap_err(), content::GivenUp);
    drop(growing);
    let left = |dir: &str| std::fs::read_dir(home.dir.path().join("content").join(dir)).unwrap().count();
    assert_eq!((left("ingest"), left("blobs/sha256")), (0, 0));
    assert!(large.blobs_at_hand(compression).is_none());
}

/// The layer's own archive need not be packed for it; if it is, it is read instead of the files, and gives the same.
#[tokio::test(flavor = "multi_thread")]
async fn clamped_times_are_the_same_from_files_and_from_a_blob() {
    let (one, other) = (Home::new(), Home::new());
    let stacks = [one.open(), other.open()].map(|layers| {
        let base = base(&layers);
        let changed = changed(&layers, &base);
        let awkward = awkward(&layers, &changed);
        // Later than a plain header can tell.
        let late = run(&layers, Some(&awkward), 1 << 34, |root| std::fs::write(root.join("late"), "l").unwrap());
        [base, changed, awkward, late]
    });
    for packed in &stacks[1] {
        blobs(packed, CompressionKind::Gzip, false).await;
    }
    let kinds = [CompressionKind::Uncompressed, CompressionKind::Gzip, CompressionKind::Zstd, CompressionKind::Estargz];
    let mut clamped = 0;
    for (files, packed) in stacks[0].iter().zip(&stacks[1]) {
        for latest in [0, 1_550_000_000] {
            for kind in kinds {
                let compression = Compression { kind, level: None, force: false };
                let retime =
                    async |layer: &Layer| layer.retimed(latest, compression, None, &Cancel::new(), &Reporter::silent()).await.unwrap();
                let (of_files, of_blob) = (retime(files).await, retime(packed).await);
                assert_eq!((&of_files.descriptor, &of_files.diff_id), (&of_blob.descriptor, &of_blob.diff_id), "{kind:?} {latest}");
                if kind == CompressionKind::Uncompressed {
                    assert_eq!(of_files.descriptor.digest, of_files.diff_id);
                    clamped += usize::from(Some(of_files.diff_id) != packed.diff_id());
                }
            }
        }
        assert_eq!((files.known_blobs().len(), files.diff_id()), (0, None));
        assert_eq!(files.packed().unwrap().last().unwrap().annotations[layers::REWRITTEN], "1550000000");
        assert_eq!(packed.known_blobs().len(), 1);
    }
    assert_eq!(clamped, 5, "the base once, the next and the last twice; the third is of 1969");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_the_same_times_at_once_gets_one_blob() {
    let home = Home::new();
    let layers = home.open();
    let large = run(&layers, None, 5, |root| std::fs::write(root.join("noise"), noise(4 << 20)).unwrap());
    let begun = Arc::new(Mutex::new(0));
    let count = begun.clone();
    let told: layers::Begun = Arc::new(move |_, _| *count.lock().unwrap() += 1);
    let compression = Compression { kind: CompressionKind::Zstd, level: None, force: true };
    let (cancel, silent) = (Cancel::new(), Reporter::silent());
    let ask = || large.retimed(1, compression, Some(told.clone()), &cancel, &silent);
    let (one, other) = tokio::join!(ask(), ask());
    let third = ask().await.unwrap();
    assert_eq!((one.unwrap().descriptor, other.unwrap().descriptor), (third.descriptor.clone(), third.descriptor));
    assert_eq!(*begun.lock().unwrap(), 1);
}
